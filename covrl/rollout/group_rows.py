# SPDX-License-Identifier: Apache-2.0
"""Rows on the device for groups of responses, and their tokens on the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from covrl.rollout.admission import Sizes
from covrl.rollout.samples import SampledTokens, Samples


class GroupResponse(NamedTuple):
  """A finished response.

  Attributes:
    number: number of its group.
    index_in_group: index of the response in the group.
    tokens: the tokens, including one that ends the response.
    samples: all responses of the group, if this was the last of them.
  """

  number: int
  index_in_group: int
  tokens: list[int]
  samples: Samples | None


class GroupRows:
  """Rows of groups: one for the prompt, and one for each response.

  Row `prompt_row · group_size + index_in_group` of a shard is that of a response.

  Args:
    sizes: sizes of a shard.
    shards: number of shards.
    group_size: responses per prompt.
    batch: prompts of a shard that are processed together, at most.
    end_ids: tokens that end a response.
    pad_id: token that fills rows.
    max_length: tokens of a response, at most.
    dtype: of the log-probabilities.
  """

  def __init__(
    self,
    sizes: Sizes,
    shards: int,
    *,
    group_size: int,
    batch: int,
    end_ids: Sequence[int],
    pad_id: int,
    max_length: int,
    dtype: Any,
  ) -> None:
    self._sizes, self._group_size, self._batch = sizes, group_size, batch
    self._end_ids, self._pad_id = list(end_ids), pad_id
    self._free_prompt_rows = [
      list(range(sizes.prompts))[::-1] for _ in range(shards)
    ]
    self._unfinished = [0] * shards
    self._unprocessed: list[deque[_UnprocessedGroup]] = [
      deque() for _ in range(shards)
    ]
    self._group_numbers = np.full((shards, sizes.prompts), -1)
    shape = (shards, sizes.requests)
    self._length = np.zeros(shape, np.int32)
    self._is_finished, self._truncated = (
      np.zeros(shape, bool),
      np.zeros(shape, bool),
    )
    self._tokens = np.full((*shape, max_length), pad_id, np.int32)
    self._sampler_logprobs = np.zeros((*shape, max_length), dtype)
    self._behaviour_logprobs = np.zeros((*shape, max_length), dtype)

  @property
  def num_unfinished(self) -> int:
    """Responses that are not finished."""
    return sum(self._unfinished)

  def choose_shard(self) -> int | None:
    """The shard for the next group; `None` without room.

    The shard has a free row for a prompt. With the new group, no more of its
    responses wait for a slot than one admission has: these fill the slots until
    the next admission.
    """
    max_unfinished = self._sizes.slots + (self._batch - 1) * self._group_size
    return min(
      (
        shard
        for shard, free in enumerate(self._free_prompt_rows)
        if free and self._unfinished[shard] <= max_unfinished
      ),
      key=lambda shard: (self._unfinished[shard], shard),
      default=None,
    )

  def add(
    self,
    number: int,
    prompt: Int[np.ndarray, ' W'],
    prompt_mask: Bool[np.ndarray, ' W'],
    sequence_ids: Int[np.ndarray, ' G'],
  ) -> None:
    """Assigns rows to a group; see `GroupEngine.add`."""
    shard = self.choose_shard()
    if shard is None:
      raise RuntimeError(
        'has_room must be true when a group is added, got no free row or slot'
      )
    prompt_row = self._free_prompt_rows[shard].pop()
    self._group_numbers[shard, prompt_row] = number
    self._unfinished[shard] += self._group_size
    rows = slice(
      prompt_row * self._group_size, (prompt_row + 1) * self._group_size
    )
    self._length[shard, rows] = 0
    self._is_finished[shard, rows] = self._truncated[shard, rows] = False
    self._tokens[shard, rows] = self._pad_id
    self._sampler_logprobs[shard, rows] = self._behaviour_logprobs[
      shard, rows
    ] = 0
    self._unprocessed[shard].append(
      _UnprocessedGroup(prompt_row, prompt, prompt_mask, sequence_ids)
    )

  def admit(self, admission: Any) -> Any | None:
    """Fills an admission with groups whose prompts are not processed yet.

    Args:
      admission: one without prompts, whose arrays are filled.

    Returns:
      The admission; `None` without such groups.
    """
    if not any(self._unprocessed):
      return None
    indices_in_group = np.arange(self._group_size)
    for shard, unprocessed in enumerate(self._unprocessed):
      for index in range(min(self._batch, len(unprocessed))):
        group, entry = unprocessed.popleft(), shard * self._batch + index
        rows = slice(entry * self._group_size, (entry + 1) * self._group_size)
        admission.prompts[entry], admission.prompt_mask[entry] = (
          group.prompt,
          group.prompt_mask,
        )
        admission.prompt_row[entry] = group.prompt_row
        admission.request_row[rows] = (
          group.prompt_row * self._group_size + indices_in_group
        )
        admission.prompt_index[rows] = index
        admission.sequence_id[rows] = group.sequence_ids
    return admission

  def record(self, step: SampledTokens) -> Iterator[GroupResponse]:
    """Records new tokens; yields the responses that they end."""
    request = np.atleast_2d(step.request)
    slots_per_shard = request.shape[1] // len(self._free_prompt_rows)
    index, slot = np.nonzero(request < self._sizes.requests)

    def at_slots(x: Any) -> np.ndarray:
      return np.atleast_2d(x)[index, slot]

    shard, row = slot // slots_per_shard, at_slots(step.request)
    position, token = at_slots(step.position), at_slots(step.token)
    token_indices = shard, row, position
    self._tokens[token_indices] = token
    self._sampler_logprobs[token_indices] = at_slots(step.sampler_logprob)
    self._behaviour_logprobs[token_indices] = at_slots(step.behaviour_logprob)
    truncated = at_slots(step.truncated)
    is_last = position + 1 == self._tokens.shape[2]
    ended = np.isin(token, self._end_ids) | is_last
    ended_rows = shard[ended], row[ended]
    self._length[ended_rows], self._truncated[ended_rows] = (
      position[ended] + 1,
      truncated[ended],
    )
    for shard_and_row in zip(*ended_rows, strict=True):
      yield self._finish(*map(int, shard_and_row))

  def _finish(self, shard: int, row: int) -> GroupResponse:
    """Ends a response; frees the rows of its group after the last."""
    prompt_row, index_in_group = divmod(row, self._group_size)
    number = int(self._group_numbers[shard, prompt_row])
    self._is_finished[shard, row] = True
    self._unfinished[shard] -= 1
    length = self._length[shard, row]
    tokens = self._tokens[shard, row, :length].tolist()
    rows = slice(
      prompt_row * self._group_size, (prompt_row + 1) * self._group_size
    )
    if not self._is_finished[shard, rows].all():
      return GroupResponse(number, index_in_group, tokens, None)
    self._free_prompt_rows[shard].append(prompt_row)
    columns = np.arange(self._tokens.shape[2])
    arrays: dict[str, Any] = {
      'response_tokens': self._tokens[shard, rows].copy(),
      'response_mask': columns < self._length[shard, rows, None],
      'sampler_logprobs': self._sampler_logprobs[shard, rows].copy(),
      'behaviour_logprobs': self._behaviour_logprobs[shard, rows].copy(),
      'truncated': self._truncated[shard, rows].copy(),
    }
    return GroupResponse(number, index_in_group, tokens, Samples(**arrays))


class _UnprocessedGroup(NamedTuple):
  """A group whose prompt is not processed yet.

  Attributes:
    prompt_row: row of the prompt in the cache of prompts.
    prompt: tokens of the prompt, padded.
    prompt_mask: positions of its tokens.
    sequence_ids: ids of the responses to it.
  """

  prompt_row: int
  prompt: Int[np.ndarray, ' W']
  prompt_mask: Bool[np.ndarray, ' W']
  sequence_ids: Int[np.ndarray, ' G']
