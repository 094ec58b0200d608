# SPDX-License-Identifier: Apache-2.0
"""Streams of prompts and of supervised rows, resumable from one number.

Grain decides the global order of a source: epoch after epoch, each shuffled
anew from the seed. Draw `d` of a stream is the `d`-th run of that order, and
each process takes its own rows of it, so the order does not depend on how many
processes there are. Draws are prepared in a background thread while the device
works. A stream's state is the seed and the next draw; it also says over which
problems, where these are from files that may change.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, TypedDict, TypeVar

import numpy as np
from jaxtyping import Bool, Int

from covrl.data.packing import TokenRows, prompt_rows, token_rows
from covrl.data.problems import Problem, ProblemSource, fingerprint_of
from covrl.data.sampler import (
  DrawnRows,
  Draws,
  global_order,
  own_rows,
)
from covrl.data.tokenizer import Tokenizer

if TYPE_CHECKING:
  import grain

Batch = TypeVar('Batch')


class StreamState(TypedDict):
  """Where a stream stands: the same whatever the number of processes."""

  draw: int
  seed: int
  problems: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptBatch:
  """Prompts of one draw, as much of it as this process takes.

  Attributes:
    problems: what the prompts are.
    tokens: the prompts, padded on the left, so that all end in one column.
    mask: true for real tokens.
    indices: place of each prompt in the run's global order; a prompt that
      comes round again has another one.
    source_ids: place of each prompt's source in the source's `names`.
    draw: which draw of the stream.
  """

  problems: tuple[Problem, ...]
  tokens: Int[np.ndarray, 'P T']
  mask: Bool[np.ndarray, 'P T']
  indices: Int[np.ndarray, ' P']
  source_ids: Int[np.ndarray, ' P']
  draw: int


class _Stream(Generic[Batch], Iterator[Batch]):
  """Batches of a source, prepared ahead; the state is one draw index."""

  def __init__(
    self,
    source: ProblemSource,
    build: Callable[[DrawnRows], Batch],
    *,
    seed: int,
    draw_size: int,
    shuffle: bool,
    process_index: int,
    process_count: int,
    prefetch: int,
  ) -> None:
    self._seed = seed
    self._problems = fingerprint_of(source)
    self._next = 0
    self._prefetch = prefetch
    self._draws = Draws(
      global_order(source, seed, shuffle),
      build,
      draw_size,
      own_rows(draw_size, process_index, process_count),
    )
    self._iterator: grain.DatasetIterator[Batch] | None = None

  def __next__(self) -> Batch:
    if self._iterator is None:
      self._iterator = self._start()
    batch = next(self._iterator)
    self._next += 1
    return batch

  def get_state(self) -> StreamState:
    """The next draw, the seed of the order, and what the problems are."""
    return {
      'draw': self._next,
      'seed': self._seed,
      'problems': self._problems,
    }

  def set_state(self, state: StreamState) -> None:
    """Goes to where `state` was taken.

    Raises:
      ValueError: the state is of a stream with another seed or over other
        problems, or of none.
    """
    if state['seed'] != self._seed:
      raise ValueError(
        f'The state of a stream with seed {self._seed} is required, got one'
        f' with seed {state["seed"]}.'
      )
    if state['problems'] != self._problems:
      raise ValueError(
        'The state of a stream over the same problems is required, got one'
        ' over others: the files of problems have changed since.'
      )
    if state['draw'] < 0:
      raise ValueError(f'draw must be at least 0, got {state["draw"]}.')
    self.close()
    self._next = int(state['draw'])

  def close(self) -> None:
    """Stops preparing draws; the next call of `next` begins again."""
    if self._iterator is not None:
      self._iterator.close()
      self._iterator = None

  def _start(self) -> grain.DatasetIterator[Batch]:
    import grain

    # One thread: draws are made in order, and a source in pure Python gains
    # nothing from more.
    options = grain.ReadOptions(
      num_threads=1 if self._prefetch else 0,
      prefetch_buffer_size=self._prefetch,
    )
    draws = grain.MapDataset.source(self._draws)[self._next :]
    return iter(draws.to_iter_dataset(options))


class PromptStream(_Stream[PromptBatch]):
  """Prompts to sample responses for, draw after draw, without end.

  All batches have one shape: the width is the longest prompt allowed, rounded
  up to a multiple of 8, so that every process compiles the same program, once.

  Args:
    source: the problems.
    seed: of the order.
    prompts_per_draw: prompts in a draw, over all processes.
    tokenizer: turns prompts to tokens; its begin token comes first.
    max_prompt_length: most tokens a prompt may have.
    shuffle: whether each epoch is in a random order.
    process_index: which process this is.
    process_count: how many share each draw.
    prefetch: draws to prepare ahead; 0 prepares each when it is asked for.

  Raises:
    ValueError: the source is empty, or the processes cannot share a draw
      evenly; while iterating, a prompt is longer than allowed.
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

    def build(rows: DrawnRows) -> PromptBatch:
      tokens, mask = prompt_rows(
        rows.problems, tokenizer, max_prompt_length, places=rows.places
      )
      return PromptBatch(
        problems=rows.problems,
        tokens=tokens,
        mask=mask,
        indices=rows.indices,
        source_ids=np.array(
          [names.index(problem.source) for problem in rows.problems],
          np.int32,
        ),
        draw=rows.draw,
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


class SupervisedStream(_Stream[TokenRows]):
  """Problems with solutions as rows to imitate, without end.

  Args:
    source: the problems; each has a solution.
    seed: of the order.
    sequences_per_draw: rows in a draw, over all processes.
    tokenizer: turns text to tokens.
    max_length: most tokens a prompt and its solution may have together.
    shuffle: whether each epoch is in a random order.
    process_index: which process this is.
    process_count: how many share each draw.
    prefetch: draws to prepare ahead; 0 prepares each when it is asked for.

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
    shuffle: bool = True,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
  ) -> None:
    super().__init__(
      source,
      lambda rows: token_rows(rows.problems, tokenizer, max_length),
      seed=seed,
      draw_size=sequences_per_draw,
      shuffle=shuffle,
      process_index=process_index,
      process_count=process_count,
      prefetch=prefetch,
    )
