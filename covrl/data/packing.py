# SPDX-License-Identifier: Apache-2.0
"""Token rows of prompts and solutions, and packing of several sequences per row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import jax
import numpy as np
from jaxtyping import Bool, Int

from covrl.data.problems import Problem, abbreviate, check_unicode
from covrl.data.tokenizers.tokenizer import Tokenizer, check_token_ids


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenRows:
  """Sequences for supervised training, padded on the right or packed.

  Attributes:
    tokens: input tokens.
    targets: the next token of each input token.
    loss_mask: true where the target belongs to the response, including its
      end-of-sequence token.
    positions: position within the sequence, from 0.
    segment_ids: index of the sequence within the row, from 1; 0 is padding.
  """

  tokens: Int[np.ndarray, 'B T']
  targets: Int[np.ndarray, 'B T']
  loss_mask: Bool[np.ndarray, 'B T']
  positions: Int[np.ndarray, 'B T']
  segment_ids: Int[np.ndarray, 'B T']


@runtime_checkable
class _Rows(Protocol):
  """A dataclass of `[B, T]` arrays that include `segment_ids`."""

  __dataclass_fields__: ClassVar[dict[str, Any]]

  @property
  def segment_ids(self) -> Any: ...


RowsT = TypeVar('RowsT', bound=_Rows)
# Row and columns of a sequence before packing.
_Sequence = tuple[int, Int[np.ndarray, ' N']]
# Row, first column and segment id of a sequence after packing.
_Slot = tuple[int, int, int]


def prompt_ids(problem: Problem, tokenizer: Tokenizer) -> list[int]:
  """Tokens of a prompt, with one BOS token in front if the tokenizer has one.

  A chat template or a prompt template may have written the BOS token already, which
  then remains the only one; white space before it is dropped.

  Raises:
    TypeError: it is not a problem, or its prompt is not a text.
    ValueError: the prompt is not valid Unicode, has words outside the
      vocabulary, or has no tokens.
  """
  entry: object = problem
  if not isinstance(entry, Problem) or not isinstance(problem.prompt, str):
    raise TypeError(
      f'a source must hold Problem objects with a text prompt, got {entry!r:.200}'
    )
  ids = _encode(problem.prompt, problem, 'the prompt', tokenizer)
  bos = tokenizer.bos_id
  if bos is None and not ids:
    raise ValueError(
      f'a prompt must have at least one token, got none in {_description(problem)}'
    )
  if bos is None or ids[:1] == [bos]:
    return ids
  if problem.prompt[:1].isspace():
    stripped_ids = tokenizer.encode(problem.prompt.lstrip())
    if stripped_ids[:1] == [bos]:
      return stripped_ids
  return [bos, *ids]


def prompt_rows(
  problems: Sequence[Problem],
  tokenizer: Tokenizer,
  max_length: int,
  *,
  indices: Sequence[int] | None = None,
) -> tuple[Int[np.ndarray, 'P T'], Bool[np.ndarray, 'P T']]:
  """Tokenises prompts into left-padded rows.

  Args:
    problems: P problems.
    tokenizer: the tokenizer; prompts begin with its BOS token.
    max_length: longest prompt allowed, in tokens. The width T is this number
      rounded up to a multiple of 8, so that all batches have the same shape.
    indices: index of each problem in its source, for the error message.

  Returns:
    Tokens, and a mask that is false for padding.

  Raises:
    ValueError: a prompt is too long.
  """
  width = prompt_width(max_length)
  tokens = np.full((len(problems), width), tokenizer.pad_id, np.int32)
  mask = np.zeros(tokens.shape, bool)
  for row, problem in enumerate(problems):
    ids = prompt_ids(problem, tokenizer)
    if len(ids) > max_length:
      index = row if indices is None else indices[row]
      raise ValueError(
        f'a prompt must have at most {max_length} tokens, got {len(ids)} in problem'
        f' {index} of source {problem.source!r}'
      )
    tokens[row, width - len(ids) :] = ids
    mask[row, width - len(ids) :] = True
  return tokens, mask


def prompt_width(max_length: int) -> int:
  """Width of prompt rows: `max_length`, rounded up to a multiple of 8."""
  return -(-max_length // 8) * 8


def token_rows(
  problems: Sequence[Problem],
  tokenizer: Tokenizer,
  max_length: int,
  *,
  width_multiple: int = 1,
) -> TokenRows:
  """Tokenises prompts with their solutions for supervised training.

  Prompt and solution are tokenised separately, as in sampling; the
  end-of-sequence token follows.

  Args:
    problems: problems with solutions.
    tokenizer: the tokenizer.
    max_length: longest prompt with its solution, in input tokens.
    width_multiple: the width of the rows is `max_length`, rounded up to a multiple
      of this number.

  Returns:
    One row per problem; the loss mask covers response tokens only.

  Raises:
    ValueError: a problem has no solution, or does not fit into a row.
  """
  shape = len(problems), -(-max_length // width_multiple) * width_multiple
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
        f'a prompt and its solution must have at most {max_length} tokens, got'
        f' {length} in {_description(problem)}'
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
  """Packs several sequences into each row, by first fit.

  Each sequence, in order, goes into the first row with enough free space.
  `segment_ids` number the sequences of a row from 1; padding is 0 in all
  arrays.

  Args:
    rows: any dataclass of `[B, T, …]` arrays, or pytrees of them, with
      `segment_ids`: `TokenRows`, `TokenBatch`. Padding may be on either side.
    length: width of the packed rows, in tokens.
    count: number of packed rows, the last of which may be empty; as few as
      possible unless given.

  Returns:
    The same dataclass, of NumPy arrays `[count, length]`.

  Raises:
    ValueError: a sequence is longer than a row, `count` is too small, a segment
      id is not an integer of at least 0, or the arrays have other rows.
  """
  sequences = _sequences(rows)
  slots = _first_fit([len(columns) for _, columns in sequences], length)
  num_needed_rows = _num_rows(slots)
  if count is not None and num_needed_rows > count:
    raise ValueError(
      f'count must be at least {num_needed_rows} for {len(sequences)} sequences in rows of'
      f' {length} tokens, got {count}'
    )
  shape = num_needed_rows if count is None else count, length
  return _copy_to_slots(rows, sequences, slots, shape)


def pack_if_fit(rows: RowsT, *, length: int, count: int) -> RowsT:
  """Packs the sequences into `count` rows, or returns the rows unchanged.

  First fit as in `pack_rows`, but in decreasing order of length, which needs
  fewer rows.

  Args:
    rows: see `pack_rows`.
    length: width of the packed rows, in tokens.
    count: number of packed rows, the last of which may be empty.

  Returns:
    The packed rows, or `rows` if the sequences do not fit.
  """
  sequences = _sequences(rows)
  sequences.sort(key=lambda sequence: -len(sequence[1]))
  slots = _first_fit([len(columns) for _, columns in sequences], length)
  if _num_rows(slots) > count:
    return rows
  return _copy_to_slots(rows, sequences, slots, (count, length))


def _copy_to_slots(
  rows: RowsT,
  sequences: Sequence[_Sequence],
  slots: Sequence[_Slot],
  shape: tuple[int, int],
) -> RowsT:
  """Copies each sequence to its slot of zero-filled arrays of a shape."""
  copies = [
    ((row, columns), (packed_row, slice(start, start + len(columns))), segment)
    for (row, columns), (packed_row, start, segment) in zip(
      sequences, slots, strict=True
    )
  ]

  def pack(array: Any) -> np.ndarray:
    array = np.asarray(array)
    out = np.zeros((*shape, *array.shape[2:]), array.dtype)
    for source, destination, _ in copies:
      out[destination] = array[source]
    return out

  packed = {
    field.name: jax.tree.map(pack, getattr(rows, field.name))
    for field in dataclasses.fields(rows)
  }
  for _, destination, segment in copies:
    packed['segment_ids'][destination] = segment
  return dataclasses.replace(rows, **packed)


def _num_rows(slots: Sequence[_Slot]) -> int:
  """Number of packed rows that the slots need."""
  return 1 + max((row for row, _, _ in slots), default=-1)


def _sequences(rows: _Rows) -> list[_Sequence]:
  """Row and columns of each sequence, in order."""
  segment_ids = np.asarray(rows.segment_ids)
  if segment_ids.dtype.kind not in 'iu' or np.min(segment_ids, initial=0) < 0:
    raise ValueError(
      'segment_ids must be integers of at least 0, got'
      f' {segment_ids.dtype} from {np.min(segment_ids, initial=0):g}'
    )
  for leaf in jax.tree.leaves(vars(rows)):
    if np.shape(leaf)[:2] != segment_ids.shape:
      raise ValueError(
        f'arrays to pack must be [B, T, …] = {segment_ids.shape}, as the'
        f' segment_ids are, got {np.shape(leaf)}'
      )
  return [
    (row, np.flatnonzero(segments == segment))
    for row, segments in enumerate(segment_ids)
    for segment in dict.fromkeys(segments[segments > 0].tolist())
  ]


def _first_fit(lengths: Sequence[int], width: int) -> list[_Slot]:
  """Assigns each length a slot by first fit.

  >>> _first_fit([3, 4, 2, 1], 5)
  [(0, 0, 1), (1, 0, 1), (0, 3, 2), (1, 4, 2)]
  """
  used_lengths: list[int] = []
  segment_counts: list[int] = []
  slots: list[_Slot] = []
  for length in lengths:
    if length > width:
      raise ValueError(
        f'a sequence to pack must have at most {width} tokens, got {length}'
      )
    row = next(
      (
        row
        for row, used_length in enumerate(used_lengths)
        if used_length + length <= width
      ),
      len(used_lengths),
    )
    if row == len(used_lengths):
      used_lengths.append(0)
      segment_counts.append(0)
    segment_counts[row] += 1
    slots.append((row, used_lengths[row], segment_counts[row]))
    used_lengths[row] += length
  return slots


def _response_ids(problem: Problem, tokenizer: Tokenizer) -> list[int]:
  """Tokens of the solution, with the end-of-sequence token."""
  solution: object = problem.solution or ''
  if not isinstance(solution, str):
    raise TypeError(
      f'the solution of a problem must be a text, got {solution!r:.200}'
    )
  if not solution.strip():
    raise ValueError(
      f'a problem must have a solution, got {_description(problem)} without one'
    )
  ids = _encode(solution, problem, 'the solution', tokenizer)
  return [*ids, tokenizer.end_ids[0]]


def _encode(
  text: str, problem: Problem, name: str, tokenizer: Tokenizer
) -> list[int]:
  """Tokens of the prompt or the solution of a problem, see `prompt_ids`."""
  check_unicode(text, name, problem.location)
  try:
    ids = tokenizer.encode(text)
  except ValueError as error:
    if not problem.location:
      raise
    raise ValueError(f'{problem.location}: {error}') from error
  check_token_ids(ids, tokenizer, f'{name} of {_description(problem)}')
  return ids


def _description(problem: Problem) -> str:
  """A problem for error messages: its row, or its prompt and source."""
  if problem.location:
    return problem.location
  return f'{abbreviate(problem.prompt)} of source {problem.source!r}'
