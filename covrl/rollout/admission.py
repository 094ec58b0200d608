# SPDX-License-Identifier: Apache-2.0
"""Admission of waiting requests to rows on the device."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Int, UInt

from covrl.rollout.requests import Request
from covrl.rollout.sampling import Sampling
from covrl.rollout.slots import RequestOptions


class Admission(NamedTuple):
  """Prompts and requests that are admitted together, split into shards.

  The arrays of prompts and those of requests may differ in length.

  Attributes:
    prompts: token ids, padded on the left.
    prompt_mask: true for real tokens.
    prompt_row: row of the cache for each prompt; out of range for no prompt.
    request_row: row for each request; out of range for no request.
    prompt_index: index of each request's prompt among the new prompts.
    seed: seed of each request.
    sequence_id: of each request; distinguishes those of one prompt and seed.
    options: options of each request.
  """

  prompts: Int[Array, 'A W']
  prompt_mask: Bool[Array, 'A W']
  prompt_row: Int[Array, ' A']
  request_row: Int[Array, ' B']
  prompt_index: Int[Array, ' B']
  seed: UInt[Array, ' B']
  sequence_id: Int[Array, ' B']
  options: RequestOptions


class Sizes(NamedTuple):
  """Sizes of a state that requests are admitted to, all of one shard.

  Attributes:
    prompts: rows for prompts.
    width: tokens of a prompt, at most.
    requests: rows for requests.
    slots: number of slots.
    stop_ids: tokens that end a request besides the decoder's, at most.
  """

  prompts: int
  width: int
  requests: int
  slots: int
  stop_ids: int


@dataclasses.dataclass
class Row:
  """A request on the device.

  Attributes:
    number: number of the request.
    request: the request.
    shard: shard of the row and of its prompt.
    prompt_row: row of its prompt in the shard's cache.
    length: tokens of the response so far.
  """

  number: int
  request: Request
  shard: int
  prompt_row: int
  length: int = 0


class WaitingRequests:
  """Requests in order of arrival, by width of the program for their prompts.

  Args:
    widths: widths of prompts in tokens, in ascending order.
  """

  def __init__(self, widths: tuple[int, ...]) -> None:
    self._queues: dict[int, collections.deque[tuple[int, Request]]] = {
      width: collections.deque() for width in widths
    }
    self._numbers: set[int] = set()

  def __len__(self) -> int:
    return len(self._numbers)

  def add(self, number: int, request: Request) -> None:
    """Appends a request; numbers ascend."""
    width = min(w for w in self._queues if w >= len(request.prompt))
    self._queues[width].append((number, request))
    self._numbers.add(number)

  def remove(self, number: int) -> bool:
    """Removes a request; returns whether it was waiting."""
    if number not in self._numbers:
      return False
    self._numbers.remove(number)
    return True

  def next_width(self) -> int | None:
    """Width of the request that has waited longest; `None` without any."""
    first = {width: self.first(width) for width in self._queues}
    numbers = {width: entry[0] for width, entry in first.items() if entry}
    return min(numbers, key=lambda width: numbers[width], default=None)

  def first(self, width: int) -> tuple[int, Request] | None:
    """Number and request of the longest waiting one of a width."""
    queue = self._queues[width]
    while queue and queue[0][0] not in self._numbers:
      queue.popleft()
    return queue[0] if queue else None


class Rows:
  """Rows of a state on the device, and the requests in them.

  Args:
    sizes: sizes of a shard.
    shards: number of shards.
    batch: prompts and requests of a shard that are admitted together, at most.
    pad_id: fills prompts.
  """

  def __init__(
    self, sizes: Sizes, shards: int, *, batch: int, pad_id: int
  ) -> None:
    self.sizes, self.shards = sizes, shards
    self._batch, self._pad_id = batch, pad_id
    self._rows: dict[tuple[int, int], Row] = {}
    self._free = [list(range(sizes.requests))[::-1] for _ in range(shards)]
    self._free_prompts = [
      list(range(sizes.prompts))[::-1] for _ in range(shards)
    ]
    self._prompt_uses: collections.Counter[tuple[int, int]] = (
      collections.Counter()
    )

  def __len__(self) -> int:
    return len(self._rows)

  def get(self, shard: int, row: int) -> Row | None:
    """The request in a row of a shard, if any."""
    return self._rows.get((shard, row))

  def find(self, number: int) -> tuple[int, int] | None:
    """Shard and row of a request, if it is on the device."""
    for shard_and_row, row in self._rows.items():
      if row.number == number:
        return shard_and_row
    return None

  def release(self, shard_and_row: tuple[int, int]) -> None:
    """Frees a row, and its prompt's if no other request has the prompt."""
    row = self._rows.pop(shard_and_row)
    self._free[row.shard].append(shard_and_row[1])
    prompt = (row.shard, row.prompt_row)
    self._prompt_uses[prompt] -= 1
    if not self._prompt_uses[prompt]:
      del self._prompt_uses[prompt]
      self._free_prompts[row.shard].append(row.prompt_row)

  def empty_admission(self, width: int) -> Admission:
    """An admission without requests, to be filled in place."""
    count = self.shards * self._batch

    def rows(value: int, dtype: type, *shape: int) -> Any:
      return np.full((count, *shape), value, dtype)

    return Admission(
      prompts=rows(self._pad_id, np.int32, width),
      prompt_mask=rows(False, bool, width),
      prompt_row=rows(self.sizes.prompts, np.int32),
      request_row=rows(self.sizes.requests, np.int32),
      prompt_index=rows(0, np.int32),
      seed=rows(0, np.uint32),
      sequence_id=rows(0, np.int32),
      options=RequestOptions(
        Sampling(
          temperature=rows(1, np.float32),
          top_p=rows(1, np.float32),
          top_k=rows(0, np.int32),
          min_p=rows(0, np.float32),
        ),
        limit=rows(1, np.int32),
        stop_ids=rows(-1, np.int32, self.sizes.stop_ids),
      ),
    )

  def admit(self, waiting: WaitingRequests) -> Admission | None:
    """Assigns free rows to requests of one width, the longest waiting first.

    Consecutive requests with the same prompt share its row.

    Returns:
      The rows and requests; `None` if nothing waits or no row is free.
    """
    width = waiting.next_width()
    if width is None or not any(self._free):
      return None
    admission: Any = self.empty_admission(width)
    fillings = [_Filling() for _ in range(self.shards)]
    while (entry := waiting.first(width)) is not None:
      number, request = entry
      shard = self._choose_shard(fillings, request)
      if shard is None:
        break
      waiting.remove(number)
      filling, first = fillings[shard], shard * self._batch
      if filling.prompt != request.prompt:
        prompt_entry = first + filling.prompts
        filling.prompts, filling.prompt = filling.prompts + 1, request.prompt
        filling.prompt_row = self._free_prompts[shard].pop()
        length = len(request.prompt)
        admission.prompts[prompt_entry, width - length :] = request.prompt
        admission.prompt_mask[prompt_entry, width - length :] = True
        admission.prompt_row[prompt_entry] = filling.prompt_row
      row, entry = self._free[shard].pop(), first + filling.requests
      filling.requests += 1
      self._prompt_uses[shard, filling.prompt_row] += 1
      self._rows[shard, row] = Row(number, request, shard, filling.prompt_row)
      admission.request_row[entry], admission.prompt_index[entry] = (
        row,
        filling.prompts - 1,
      )
      _write_options(admission, entry, request)
    return admission

  def admitted(self, admission: Admission) -> Iterator[tuple[int, int, int]]:
    """Yields index, shard and row of each request of an admission."""
    for entry in np.flatnonzero(
      admission.request_row < self.sizes.requests
    ).tolist():
      yield entry, entry // self._batch, int(admission.request_row[entry])

  def _choose_shard(
    self, shards: list[_Filling], request: Request
  ) -> int | None:
    """A shard with room: one with the prompt, else with the most free rows."""
    open_shards = [
      shard
      for shard, filling in enumerate(shards)
      if self._free[shard] and filling.requests < self._batch
    ]
    for shard in open_shards:
      if shards[shard].prompt == request.prompt:
        return shard
    return max(
      open_shards, key=lambda n: (len(self._free[n]), -n), default=None
    )


@dataclasses.dataclass
class _Filling:
  """Numbers of prompts and requests that a shard has in an admission so far.

  Attributes:
    prompts: number of prompts.
    requests: number of requests.
    prompt: tokens of the last prompt.
    prompt_row: row of the last prompt in the cache of prompts.
  """

  prompts: int = 0
  requests: int = 0
  prompt: tuple[int, ...] = ()
  prompt_row: int = 0


def _write_options(admission: Any, entry: int, request: Request) -> None:
  """Writes seed and options of a request into an admission's arrays."""
  admission.seed[entry], admission.sequence_id[entry] = (
    request.seed,
    request.sequence_id,
  )
  sampling, options = admission.options.sampling, admission.options
  sampling.temperature[entry] = request.temperature
  sampling.top_p[entry] = request.top_p
  sampling.top_k[entry] = request.top_k
  sampling.min_p[entry] = request.min_p
  options.limit[entry] = request.max_tokens
  options.stop_ids[entry, : len(request.stop_ids)] = request.stop_ids
