# SPDX-License-Identifier: Apache-2.0
"""Rows of tokens: of prompts with their solutions, and packed several a row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Int

from covrl.data.problems import Problem
from covrl.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows:
  """Sequences to imitate, one a row (or packed), padded on the right.

  Attributes:
    tokens: inputs.
    targets: the token that follows each input.
    loss_mask: true where the target belongs to the response, its
      end-of-sequence token among them.
    positions: place within the sequence, from 0.
    segment_ids: which sequence of the row, from 1; 0 is padding.
  """

  tokens: Int[np.ndarray, 'B T']
  targets: Int[np.ndarray, 'B T']
  loss_mask: Bool[np.ndarray, 'B T']
  positions: Int[np.ndarray, 'B T']
  segment_ids: Int[np.ndarray, 'B T']


@runtime_checkable
class _Rows(Protocol):
  """A dataclass of `[B, T]` arrays, `segment_ids` among them."""

  __dataclass_fields__: ClassVar[dict[str, Any]]

  @property
  def segment_ids(self) -> Any: ...


RowsT = TypeVar('RowsT', bound=_Rows)
# Row and columns of a sequence; its new row, first column and segment.
_Sequence = tuple[int, Int[np.ndarray, ' N']]
_Place = tuple[int, int, int]


def prompt_ids(problem: Problem, tokenizer: Tokenizer) -> list[int]:
  """The tokens of a prompt, with the begin token where the model has one."""
  begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
  return begin + tokenizer.encode(problem.prompt)


def prompt_rows(
  problems: Sequence[Problem],
  tokenizer: Tokenizer,
  max_length: int,
  *,
  places: Sequence[int] | None = None,
) -> tuple[Int[np.ndarray, 'P T'], Bool[np.ndarray, 'P T']]:
  """Prompts, padded on the left, so that all of them end in one column.

  Args:
    problems: what to ask.
    tokenizer: turns text to tokens; its begin token comes first.
    max_length: most tokens a prompt may have. The width is this, rounded up to
      a multiple of 8, whatever the prompts: every process and every batch has
      the same shape.
    places: index of each problem in its source, for the error.

  Returns:
    Tokens, and a mask that is true for real ones.

  Raises:
    ValueError: a prompt is longer than allowed.
  """
  width = prompt_width(max_length)
  tokens = np.full((len(problems), width), tokenizer.pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, problem in enumerate(problems):
    ids = prompt_ids(problem, tokenizer)
    if len(ids) > max_length:
      place = row if places is None else places[row]
      raise ValueError(
        f'A prompt may have {max_length} tokens, got {len(ids)} in problem'
        f' {place} of source {problem.source!r}.'
      )
    tokens[row, width - len(ids) :] = ids
    mask[row, width - len(ids) :] = True
  return tokens, mask


def prompt_width(max_length: int) -> int:
  """Columns of prompts that may have so many tokens: a multiple of 8."""
  return -(-max_length // 8) * 8


def token_rows(
  problems: Sequence[Problem], tokenizer: Tokenizer, max_length: int
) -> TokenRows:
  """Prompts with their solutions, ready for the cross-entropy.

  Prompt and solution are tokenised apart, as they are when a response is
  sampled; the end-of-sequence token follows.

  Args:
    problems: each with a solution.
    tokenizer: turns text to tokens.
    max_length: width of the rows, in inputs.

  Returns:
    One row a problem; only response tokens are in the loss mask.

  Raises:
    ValueError: a problem has no solution, or does not fit a row.
  """
  shape = len(problems), max_length
  tokens = np.full(shape, tokenizer.pad_id, np.int32)
  targets = np.full(shape, tokenizer.pad_id, np.int32)
  loss_mask = np.zeros(shape, bool)
  positions = np.zeros(shape, np.int32)
  segment_ids = np.zeros(shape, np.int32)
  for row, problem in enumerate(problems):
    prompt = prompt_ids(problem, tokenizer)
    ids = [*prompt, *_response_ids(problem, tokenizer)]
    length = len(ids) - 1
    if length > max_length:
      raise ValueError(
        f'A prompt and its solution may have {max_length} tokens, got'
        f' {length} in {problem.prompt!r} of source {problem.source!r}.'
      )
    tokens[row, :length] = ids[:-1]
    targets[row, :length] = ids[1:]
    loss_mask[row, len(prompt) - 1 : length] = True
    positions[row, :length] = np.arange(length)
    segment_ids[row, :length] = 1
  return TokenRows(
    tokens=tokens,
    targets=targets,
    loss_mask=loss_mask,
    positions=positions,
    segment_ids=segment_ids,
  )


def pack_rows(rows: RowsT, *, length: int, count: int | None = None) -> RowsT:
  """Puts several sequences into each row; every array moves alike.

  First fit: each sequence goes to the first row that still has room, in the
  order they come, so the same rows always pack the same way. Sequences of one
  row are told apart by their segment, from 1; all arrays are 0 elsewhere.

  Args:
    rows: any dataclass of `[B, T]` arrays, or trees of them, with
      `segment_ids`: `TokenRows`, `TokenBatch`. Padding may be on either side.
    length: width of the packed rows.
    count: how many packed rows, empty ones at the end; as few as it takes
      unless given.

  Returns:
    The same dataclass, of NumPy arrays `[count, length]`.

  Raises:
    ValueError: a sequence is longer than a row, or `count` rows are too few.
  """
  sequences = _sequences(rows.segment_ids)
  places = _first_fit([len(columns) for _, columns in sequences], length)
  needed = _rows_of(places)
  if count is not None and needed > count:
    raise ValueError(
      f'{len(sequences)} sequences need {needed} rows of {length} tokens,'
      f' got {count}.'
    )
  shape = needed if count is None else count, length
  return _moved(rows, sequences, places, shape)


def pack_if_fit(rows: RowsT, *, length: int, count: int) -> RowsT:
  """Packs the rows into so many, or leaves them as they are.

  First fit as in `pack_rows`, but the longest sequences first, which takes
  fewer rows.

  Args:
    rows: see `pack_rows`.
    length: width of the packed rows.
    count: how many packed rows, empty ones at the end.
  """
  sequences = _sequences(rows.segment_ids)
  sequences.sort(key=lambda sequence: -len(sequence[1]))
  places = _first_fit([len(columns) for _, columns in sequences], length)
  if _rows_of(places) > count:
    return rows
  return _moved(rows, sequences, places, (count, length))


def _moved(
  rows: RowsT,
  sequences: Sequence[_Sequence],
  places: Sequence[_Place],
  shape: tuple[int, int],
) -> RowsT:
  """The sequences at their places, 0 elsewhere."""
  moves = [
    ((row, columns), (to_row, slice(start, start + len(columns))), segment)
    for (row, columns), (to_row, start, segment) in zip(
      sequences, places, strict=True
    )
  ]

  def pack(array: Any) -> np.ndarray:
    array = np.asarray(array)
    out = np.zeros(shape, array.dtype)
    for source, destination, _ in moves:
      out[destination] = array[source]
    return out

  packed = {
    field.name: jax.tree.map(pack, getattr(rows, field.name))
    for field in dataclasses.fields(rows)
  }
  for _, destination, segment in moves:
    packed['segment_ids'][destination] = segment
  return dataclasses.replace(rows, **packed)


def _rows_of(places: Sequence[_Place]) -> int:
  return 1 + max((row for row, _, _ in places), default=-1)


def _sequences(segment_ids: Any) -> list[_Sequence]:
  """Every sequence, in order."""
  return [
    (row, np.flatnonzero(segments == segment))
    for row, segments in enumerate(np.asarray(segment_ids))
    for segment in dict.fromkeys(segments[segments > 0].tolist())
  ]


def _first_fit(lengths: Sequence[int], width: int) -> list[_Place]:
  """A place for each length.

  >>> _first_fit([3, 4, 2, 1], 5)
  [(0, 0, 1), (1, 0, 1), (0, 3, 2), (1, 4, 2)]
  """
  used: list[int] = []
  segments: list[int] = []
  places: list[_Place] = []
  for length in lengths:
    if length > width:
      raise ValueError(
        f'A sequence to pack may have {width} tokens, got {length}.'
      )
    row = next(
      (row for row, taken in enumerate(used) if taken + length <= width),
      len(used),
    )
    if row == len(used):
      used.append(0)
      segments.append(0)
    segments[row] += 1
    places.append((row, used[row], segments[row]))
    used[row] += length
  return places


def _response_ids(problem: Problem, tokenizer: Tokenizer) -> list[int]:
  if problem.solution is None:
    raise ValueError(
      f'Problems with a solution are required, got {problem.prompt!r} of'
      f' source {problem.source!r} without one.'
    )
  return [*tokenizer.encode(problem.solution), tokenizer.end_ids[0]]
