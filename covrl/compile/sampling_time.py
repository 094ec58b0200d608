# SPDX-License-Identifier: Apache-2.0
"""Estimated time of decoding an iteration's responses.

The slots are simulated for given lengths of responses, and every step takes its
roofline time with the tokens that are in the cache then.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from covrl.rollout.layout import Layout


class StepCost(NamedTuple):
  """Cost of a decoding step on one chip.

  Attributes:
    bytes: traffic of a step with a full cache.
    response_bytes: the part of it that reads the responses' own tokens.
    bandwidth: bytes per second.
    seconds: lower bound of the time of a step: that of the busiest unit other
      than memory.
    max_response_tokens: tokens of a response in a full cache.
    reads_by_row: whether each row is read up to its own length; otherwise all rows are
      read up to the length of the longest.
  """

  bytes: float
  response_bytes: float
  bandwidth: float
  seconds: float
  max_response_tokens: int
  reads_by_row: bool


class DecodingTime(NamedTuple):
  """Estimated time of an iteration's decoding, for one distribution of lengths.

  Attributes:
    lengths: name of the distribution.
    mean: mean number of tokens of a response.
    steps: decoding steps.
    seconds: time of all steps.
    tokens: tokens of all responses.
  """

  lengths: str
  mean: float
  steps: int
  seconds: float
  tokens: int


class Occupancy(NamedTuple):
  """Contents of the slots at each step; each the largest over the shards.

  Attributes:
    live: slots that hold a response.
    tokens: tokens of their responses, the one being decoded included.
    longest: tokens of the longest of them.
  """

  live: Int[np.ndarray, ' T']
  tokens: Int[np.ndarray, ' T']
  longest: Int[np.ndarray, ' T']


def decoding_times(
  step: StepCost, layout: Layout, num_responses: int
) -> tuple[DecodingTime, ...]:
  """Estimates the time of an iteration's decoding for three kinds of lengths.

  Args:
    step: cost of a step.
    layout: the division into shards and slots.
    num_responses: number of responses.
  """
  times: list[DecodingTime] = []
  for name, lengths in typical_lengths(
    step.max_response_tokens + 1, num_responses
  ).items():
    seconds = step_seconds(step, layout, occupancy(lengths, layout))
    times.append(
      DecodingTime(
        lengths=name,
        mean=float(lengths.mean()),
        steps=len(seconds),
        seconds=float(seconds.sum()),
        tokens=int(lengths.sum()),
      )
    )
  return tuple(times)


def typical_lengths(
  limit: int, num_responses: int
) -> dict[str, Int[np.ndarray, ' R']]:
  """Returns lengths of responses: full, uniform, and geometric.

  >>> lengths = typical_lengths(8192, 2048)
  >>> [round(each.mean(), -3).item() for each in lengths.values()]
  [8000.0, 4000.0, 2000.0]
  """
  rng = np.random.default_rng(0)
  return {
    'full': np.full(num_responses, limit),
    'uniform': rng.integers(1, limit + 1, num_responses),
    # The mean is limit / 4 before truncation at the limit.
    'geometric': np.minimum(
      rng.geometric(min(4 / limit, 1), num_responses), limit
    ),
  }


def occupancy(lengths: Int[np.ndarray, ' R'], layout: Layout) -> Occupancy:
  """Simulates slots that are refilled from a queue, in every shard.

  The first token of a response comes from its prompt and takes no step.

  >>> layout = Layout(shards_per_prompt=1, shards=1, slots=(2,))
  >>> [each.tolist() for each in occupancy(np.array([4, 2, 3, 1]), layout)]
  [[2, 2, 2], [2, 3, 5], [1, 2, 3]]
  """
  # Shards may have one response more than others.
  shards = [
    _shard_occupancy(shard_lengths, layout.slots[0])
    for shard_lengths in np.array_split(lengths, layout.shards)
  ]
  steps = max(len(shard.live) for shard in shards)
  return Occupancy(
    *(
      np.max([np.pad(x, (0, steps - len(x))) for x in arrays], axis=0)
      for arrays in zip(*shards, strict=True)
    )
  )


def _shard_occupancy(lengths: Int[np.ndarray, ' R'], slots: int) -> Occupancy:
  """Returns the occupancy of one shard."""
  steps = lengths[lengths > 1] - 1
  free_from, starts = [0] * slots, np.zeros_like(steps)
  for index, num_steps in enumerate(steps):
    starts[index] = heapq.heappop(free_from)
    heapq.heappush(free_from, int(starts[index] + num_steps))
  total_steps = max(free_from)
  live, tokens, longest = (np.zeros(total_steps, np.int64) for _ in range(3))
  for start, num_steps in zip(starts, steps, strict=True):
    active, length = (
      slice(start, start + num_steps),
      np.arange(1, num_steps + 1),
    )
    live[active] += 1
    tokens[active] += length
    longest[active] = np.maximum(longest[active], length)
  return Occupancy(live, tokens, longest)


def step_seconds(
  step: StepCost, layout: Layout, occupied: Occupancy
) -> Float[np.ndarray, ' T']:
  """Returns the roofline time of each step, in seconds."""
  all_slots = layout.slots[0]
  if step.reads_by_row:
    read_tokens = occupied.tokens
  else:
    # The number of slots is reduced at the end.
    sizes = np.sort(layout.slots)
    read_tokens = (
      sizes[np.searchsorted(sizes, occupied.live)] * occupied.longest
    )
  fixed_bytes = step.bytes - step.response_bytes
  moved_bytes = fixed_bytes + step.response_bytes * read_tokens / (
    all_slots * step.max_response_tokens
  )
  return np.maximum(moved_bytes / step.bandwidth, step.seconds)
