# SPDX-License-Identifier: Apache-2.0
"""Resumable streams of prompt batches and of supervised token rows.

Grain defines the global order of a source: epoch after epoch, each shuffled
with the seed. Draw `d` of a stream is the `d`-th batch of that order, and each
process takes its own rows of it, so that the order does not depend on the
number of processes. Draws are prepared in a background thread while the device
computes. The state of a stream is the seed, the next draw, and a fingerprint of
the problems.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from covrl.data.packing import TokenRows, prompt_rows, token_rows
from covrl.data.problems import Problem, ProblemSource, source_fingerprint
from covrl.data.sampler import (
  DrawSource,
  ProblemDraw,
  global_order,
  process_rows,
)
from covrl.data.sources import ListSource
from covrl.data.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
  import grain

Batch = TypeVar('Batch')


class StreamState(TypedDict):
  """Position of a stream; the same for any number of processes.

  Attributes:
    draw: index of the next draw.
    seed: seed of the order of the problems.
    problems: fingerprint of the problems.
  """

  draw: int
  seed: int
  problems: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
  """This process's prompts of one draw.

  Attributes:
    problems: P problems.
    tokens: prompt tokens, padded on the left.
    mask: false for padding.
    indices: index of each prompt in the global order, which differs between
      epochs.
    source_ids: index of each prompt's source in the source's `names`.
    draw: index of the draw.
  """

  problems: tuple[Problem, ...]
  tokens: Int[np.ndarray, 'P T']
  mask: Bool[np.ndarray, 'P T']
  indices: Int[np.ndarray, ' P']
  source_ids: Int[np.ndarray, ' P']
  draw: int


def check_in_memory(
  source: ProblemSource, build: Callable[[Sequence[Problem], range], object]
) -> None:
  """Builds every problem of a `ListSource`, so that unusable ones raise early.

  A run that meets one later ends there, and again whenever it is resumed. Problems
  of files are filtered when they are read; others are too many to be built.

  Args:
    source: the problems; nothing is done with other sources.
    build: makes rows of problems and their indices.
  """
  if not isinstance(source, ListSource):
    return
  for first in range(0, len(source), 1024):
    indices = range(first, min(first + 1024, len(source)))
    build([source[index] for index in indices], indices)


class _Stream(Generic[Batch], Iterator[Batch]):
  """Endless batches of a source, prepared in advance.

  Args:
    source: the problems.
    build: makes a batch of this process's problems of a draw.
    seed: seed of the order.
    draw_size: problems in a draw, over all processes.
    shuffle: whether each epoch is shuffled.
    process_index: index of this process.
    process_count: number of processes that share each draw.
    prefetch: number of draws to prepare in advance; 0 prepares them on demand.
  """

  def __init__(
    self,
    source: ProblemSource,
    build: Callable[[ProblemDraw], Batch],
    *,
    seed: int,
    draw_size: int,
    shuffle: bool,
    process_index: int,
    process_count: int,
    prefetch: int,
  ) -> None:
    self._seed = seed
    self._fingerprint = source_fingerprint(source)
    self._next_draw = 0
    self._prefetch = prefetch
    self._draws = DrawSource(
      global_order(source, seed, shuffle),
      build,
      draw_size,
      process_rows(draw_size, process_index, process_count),
    )
    self._iterator: grain.DatasetIterator[Batch] | None = None

  def __next__(self) -> Batch:
    if self._iterator is None:
      self._iterator = self._start()
    batch = next(self._iterator)
    self._next_draw += 1
    return batch

  def draw(self, index: int) -> Batch:
    """A draw by its index; the position of the stream does not change."""
    return self._draws[index]

  def get_state(self) -> StreamState:
    """The next draw, the seed, and the fingerprint of the problems."""
    return {
      'draw': self._next_draw,
      'seed': self._seed,
      'problems': self._fingerprint,
    }

  def set_state(self, state: StreamState) -> None:
    """Moves the stream to a state returned by `get_state`.

    Raises:
      ValueError: the state has another seed, belongs to other problems, or is
        invalid.
    """
    if state['seed'] != self._seed:
      raise ValueError(
        f'the state must be of a stream with seed {self._seed}, got one'
        f' with seed {state["seed"]}'
      )
    if state['problems'] != self._fingerprint:
      raise ValueError(
        'the state must be of a stream over the same problems, got one'
        ' over others: the files of problems have changed since'
      )
    draw: object = state['draw']
    if not isinstance(draw, int) or draw < 0:
      raise ValueError(f'draw must be an integer of at least 0, got {draw!r}')
    self.close()
    self._next_draw = state['draw']

  def close(self) -> None:
    """Stops the background thread; `next` starts it again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _start(self) -> grain.DatasetIterator[Batch]:
    """Starts an iterator at the next draw, with its background thread."""
    import grain

    # One thread: draws are made in order, and sources in pure Python do not
    # become faster with more.
    options = grain.ReadOptions(
      num_threads=1 if self._prefetch else 0,
      prefetch_buffer_size=self._prefetch,
    )
    draws = grain.MapDataset.source(self._draws)[self._next_draw :]
    return iter(draws.to_iter_dataset(options))


class PromptStream(_Stream[PromptBatch]):
  """An endless stream of prompts to sample responses for.

  All batches have the same shape: the width is the longest prompt allowed,
  rounded up to a multiple of 8, so that all processes compile one program once.

  Args:
    source: the problems.
    seed: seed of the order.
    prompts_per_draw: prompts in a draw, over all processes.
    tokenizer: the tokenizer; prompts begin with its BOS token.
    max_prompt_length: longest prompt allowed, in tokens.
    shuffle: whether each epoch is shuffled.
    process_index: index of this process.
    process_count: number of processes that share each draw.
    prefetch: number of draws to prepare in advance; 0 prepares them on demand.

  Raises:
    ValueError: the source is empty, or the processes cannot share a draw
      evenly; while iterating, a prompt is too long.
  """

  def __init__(
    self,
    source: ProblemSource,
    *,
    seed: int,
    prompts_per_draw: int,
    tokenizer: Tokenizer,
    max_prompt_length: int,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
  ) -> None:
    names = source.names

    def build(draw: ProblemDraw) -> PromptBatch:
      tokens, mask = prompt_rows(
        draw.problems,
        tokenizer,
        max_prompt_length,
        indices=draw.source_indices,
      )
      source_ids = [_source_id(names, each) for each in draw.problems]
      return PromptBatch(
        problems=draw.problems,
        tokens=tokens,
        mask=mask,
        indices=draw.order_indices,
        source_ids=np.array(source_ids, np.int32),
        draw=draw.draw,
      )

    super().__init__(
      source,
      build,
      seed=seed,
      draw_size=prompts_per_draw,
      shuffle=shuffle,
      process_index=process_index,
      process_count=process_count,
      prefetch=prefetch,
    )


def _source_id(names: Sequence[str], problem: Problem) -> int:
  """Returns the index of a problem's source among the names of its source."""
  if problem.source not in names:
    raise ValueError(
      f'the source of a problem must be one of {list(names)}, the names of its'
      f' ProblemSource, got {problem.source!r}'
    )
  return names.index(problem.source)


class SupervisedStream(_Stream[TokenRows]):
  """An endless stream of prompts with solutions, for supervised training.

  Args:
    source: problems with solutions.
    seed: seed of the order.
    sequences_per_draw: rows in a draw, over all processes.
    tokenizer: the tokenizer.
    max_length: longest prompt with its solution, in tokens.
    width_multiple: the width of the rows is a multiple of it.
    shuffle: whether each epoch is shuffled.
    process_index: index of this process.
    process_count: number of processes that share each draw.
    prefetch: number of draws to prepare in advance; 0 prepares them on demand.

  Raises:
    ValueError: the source is empty, or the processes cannot share a draw
      evenly; while iterating, a row is too long or has no solution.
  """

  def __init__(
    self,
    source: ProblemSource,
    *,
    seed: int,
    sequences_per_draw: int,
    tokenizer: Tokenizer,
    max_length: int,
    width_multiple: int = 1,
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
  ) -> None:
    super().__init__(
      source,
      lambda draw: token_rows(
        draw.problems, tokenizer, max_length, width_multiple=width_multiple
      ),
      seed=seed,
      draw_size=sequences_per_draw,
      shuffle=shuffle,
      process_index=process_index,
      process_count=process_count,
      prefetch=prefetch,
    )
