# SPDX-License-Identifier: Apache-2.0
"""State of the sampling engine: slots, a queue of requests, KV cache.

A request is one response to sample. A slot holds one request; when its response
ends, it takes the next waiting request in the same step. Rows and requests are
split into shards, one per part of the mesh, and never leave their shard; indices
of requests and prompts count within it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Key, Shaped

from covrl.models.cache import DecodeCache, PromptCache, ResponseRing
from covrl.models.int8 import Vectors
from covrl.rollout.samples import Samples
from covrl.rollout.sampling import Sampling


class RequestOptions(NamedTuple):
  """Options of requests; scalars apply to all of them.

  Attributes:
    sampling: temperature and truncation.
    limit: maximum number of tokens.
    stop_ids: tokens that end the response besides the decoder's, filled with
      -1; `None` if no request has any.
  """

  sampling: Sampling
  limit: Int[Array, '*R']
  stop_ids: Int[Array, 'R E'] | None


class Requests(NamedTuple):
  """All requests of the engine, and queues of those that wait for a slot.

  Attributes:
    keys: PRNG key of each request.
    prompt: index of its prompt.
    options: sampling parameters and limits of each request.
    queue: requests that have to be decoded, in order, by shard; a ring buffer.
    enqueued: number of requests that have ever been put into each queue.
  """

  keys: Key[Array, ' R']
  prompt: Int[Array, ' R']
  options: RequestOptions
  queue: Int[Array, 'n M']
  enqueued: Int[Array, ' n']


class SlotArrays(NamedTuple):
  """The arrays of a state whose sizes are the number of slots; see `State`."""

  prompt: Int[Array, ' S']
  keys: Vectors
  values: Vectors
  ring: ResponseRing | None
  length: Int[Array, ' S']
  request: Int[Array, ' S']
  token: Int[Array, ' S']


class State(NamedTuple):
  """State of the engine.

  Attributes:
    requests: all requests.
    samples: their responses so far.
    cache: keys and values of prompts and slots.
    request: each slot's request; the number of a shard's requests if idle.
    token: each slot's last token, not in the cache yet.
    dequeued: number of requests that each shard's slots have taken from its queue.
  """

  requests: Requests
  samples: Samples
  cache: DecodeCache
  request: Int[Array, ' S']
  token: Int[Array, ' S']
  dequeued: Int[Array, ' n']

  @property
  def shards(self) -> int:
    """Number of shards."""
    return self.dequeued.shape[0]

  @property
  def live(self) -> Bool[Array, ' S']:
    """Whether each slot holds a request."""
    return self.request < self.requests.queue.shape[1]

  def slot_options(self) -> RequestOptions:
    """Options of the slots' requests; idle slots do not truncate."""
    slot_options = jax.tree.map(
      lambda x: (
        x if x.ndim == 0 else take_by_shard(x, self.request, self.shards)
      ),
      self.requests.options,
    )
    sampling = jax.tree.map(
      lambda x, neutral: x if x.ndim == 0 else jnp.where(self.live, x, neutral),
      slot_options.sampling,
      Sampling.make(),
    )
    return slot_options._replace(sampling=sampling)

  @property
  def slot_arrays(self) -> SlotArrays:
    """The arrays whose sizes are the number of slots."""
    cache = self.cache
    return SlotArrays(
      prompt=cache.prompt_index,
      keys=cache.keys,
      values=cache.values,
      ring=cache.ring,
      length=cache.length,
      request=self.request,
      token=self.token,
    )

  def with_slots(self, arrays: SlotArrays) -> State:
    """The state with the slots of `arrays` in place of its own."""
    cache = self.cache._replace(
      prompt_index=arrays.prompt,
      keys=arrays.keys,
      values=arrays.values,
      ring=arrays.ring,
      length=arrays.length,
    )
    return self._replace(
      cache=cache, request=arrays.request, token=arrays.token
    )

  def status(self) -> Int[Array, ' 2']:
    """Largest numbers of live slots and of waiting requests of a shard."""
    live = jnp.sum(self.live.reshape(self.shards, -1), axis=1)
    waiting = self.requests.enqueued - self.dequeued
    return jnp.stack((jnp.max(live), jnp.max(waiting))).astype(jnp.int32)


def shrink(state: State, *, slots: int) -> SlotArrays:
  """Keeps `slots` slots of each shard; the others must be idle."""
  live = state.live.reshape(state.shards, -1)
  kept_slots = stable_partition(live)[:, :slots]
  return jax.tree.map(
    lambda x: take_rows(x, kept_slots, axis=1 if x.ndim > 1 else 0),
    state.slot_arrays,
  )


def refill(state: State, free: Bool[Array, ' S']) -> State:
  """Assigns waiting requests to free slots; without any, the slots become idle."""
  shards, requests = state.shards, state.requests
  free_by_shard = free.reshape(shards, -1)
  queue_index = state.dequeued[:, None] + jnp.cumsum(free_by_shard, axis=1) - 1
  queue_size = requests.queue.shape[1]
  next_requests = jnp.take_along_axis(
    requests.queue, queue_index % queue_size, axis=1
  )
  next_requests = jnp.where(
    queue_index < requests.enqueued[:, None], next_requests, queue_size
  )
  dequeued = jnp.minimum(
    state.dequeued + jnp.sum(free_by_shard, axis=1), requests.enqueued
  )
  request = jnp.where(free, next_requests.reshape(-1), state.request)
  is_new = free & (request < queue_size)
  first_tokens = state.samples.response_tokens[:, 0]
  cache = state.cache
  return state._replace(
    cache=cache._replace(
      prompt_index=jnp.where(
        is_new,
        take_by_shard(requests.prompt, request, shards),
        cache.prompt_index,
      ),
      length=jnp.where(is_new, 0, cache.length),
    ),
    request=request,
    token=jnp.where(
      is_new, take_by_shard(first_tokens, request, shards), state.token
    ),
    dequeued=dequeued.astype(jnp.int32),
  )


def enqueue(
  state: State, request: Int[Array, ' A'], valid: Bool[Array, ' A']
) -> State:
  """Appends requests to the queues of their shards.

  Args:
    state: has a free entry in the queue for each of the requests.
    request: index of each request; shards are contiguous.
    valid: requests to append.
  """
  shards, requests = state.shards, state.requests
  queue_size = requests.queue.shape[1]
  # Counts are taken modulo the size, so that they never overflow.
  full_rounds = state.dequeued // queue_size * queue_size
  dequeued, enqueued = (
    state.dequeued - full_rounds,
    requests.enqueued - full_rounds,
  )
  valid_by_shard = valid.reshape(shards, -1)
  queue_index = enqueued[:, None] + jnp.cumsum(valid_by_shard, axis=1) - 1
  queue_index = jnp.where(valid_by_shard, queue_index % queue_size, queue_size)
  queue = jax.vmap(
    lambda queue, queue_index, new: queue.at[queue_index].set(new, mode='drop')
  )(requests.queue, queue_index, request.reshape(shards, -1))
  enqueued = enqueued + jnp.sum(valid_by_shard, axis=1, dtype=jnp.int32)
  return state._replace(
    requests=requests._replace(queue=queue, enqueued=enqueued),
    dequeued=dequeued,
  )


def cancel(state: State, cancelled: Bool[Array, ' R']) -> State:
  """Removes requests from slots and queues; waiting ones take free slots."""
  shards, requests = state.shards, state.requests
  queue_size = requests.queue.shape[1]
  is_removed = state.live & take_by_shard(cancelled, state.request, shards)
  queue_index = (state.dequeued[:, None] + jnp.arange(queue_size)) % queue_size
  queue = jnp.take_along_axis(requests.queue, queue_index, axis=1)
  is_cancelled = take_by_shard(cancelled, queue.reshape(-1), shards).reshape(
    queue_index.shape
  )
  is_waiting = (
    jnp.arange(queue_size) < (requests.enqueued - state.dequeued)[:, None]
  )
  is_kept = is_waiting & ~is_cancelled
  order = stable_partition(is_kept)
  state = state._replace(
    requests=requests._replace(
      queue=jnp.take_along_axis(queue, order, axis=1),
      enqueued=jnp.sum(is_kept, axis=1, dtype=jnp.int32),
    ),
    request=jnp.where(is_removed, queue_size, state.request),
    dequeued=jnp.zeros_like(state.dequeued),
  )
  return refill(state, ~state.live)


def stable_partition(first: Bool[Array, 'n M']) -> Int[Array, 'n M']:
  """Indices of each row: those in `first`, then the others, both in order.

  A sum over the row in place of a sort.

  >>> stable_partition(jnp.array([[False, True, False, True]])).tolist()
  [[1, 3, 0, 2]]
  """
  before = jnp.cumsum(first, axis=1, dtype=jnp.int32)
  index = jnp.arange(first.shape[1], dtype=jnp.int32)
  target = jnp.where(first, before - 1, before[:, -1:] + index - before)
  return jax.vmap(
    lambda target: (
      jnp.zeros_like(target)
      .at[target]
      .set(index, unique_indices=True, mode='promise_in_bounds')
    )
  )(target)


def stable_partition_of_three(
  first: Bool[Array, 'n M'], then: Bool[Array, 'n M']
) -> Int[Array, 'n M']:
  """Indices of each row: those in `first`, others in `then`, and the rest.

  Args:
    first: a part of `then`.
    then: entries before the rest.

  >>> first = jnp.array([[False, True]])
  >>> stable_partition_of_three(first, jnp.ones((1, 2), bool)).tolist()
  [[1, 0]]
  """
  order = stable_partition(then)
  return jnp.take_along_axis(
    order, stable_partition(jnp.take_along_axis(first, order, axis=1)), axis=1
  )


def take_by_shard(
  x: Shaped[Array, 'R ...'], index: Int[Array, ' S'], shards: int
) -> Array:
  """Takes entries by their indices within the shard; the last if out of range."""
  index = jnp.minimum(index, x.shape[0] // shards - 1)
  return take_rows(x, index.reshape(shards, -1), 0)


def take_rows(
  x: Shaped[Array, '...'], index: Int[Array, 'n S'], axis: int
) -> Shaped[Array, '...']:
  """Takes rows of an axis by their indices within each shard."""
  shards = index.shape[0]
  if shards == 1:
    return jnp.take(x, index[0], axis=axis)
  shape = x.shape
  split = x.reshape(*shape[:axis], shards, -1, *shape[axis + 1 :])
  take = functools.partial(jnp.take, axis=axis)
  taken_rows = jax.vmap(take, in_axes=(axis, 0), out_axes=axis)(split, index)
  return taken_rows.reshape(*shape[:axis], -1, *shape[axis + 1 :])


def set_rows(
  x: Shaped[Array, '...'],
  index: Int[Array, ' A'],
  new: Shaped[Array, '...'],
  shards: int,
) -> Shaped[Array, '...']:
  """Replaces rows by their indices within each shard; drops those beyond."""

  def replace(x: Array, index: Array, new: Array) -> Array:
    return x.at[index].set(new, mode='drop')

  if shards == 1:
    return replace(x, index, new)
  split = (a.reshape(shards, -1, *a.shape[1:]) for a in (x, index, new))
  return jax.vmap(replace)(*split).reshape(x.shape)


def replace_prompts(
  cache: PromptCache,
  new: PromptCache,
  index: Int[Array, ' A'],
  shards: int,
) -> PromptCache:
  """Replaces prompts by their indices within each shard; drops those beyond.

  Args:
    cache: the cache.
    new: prompts of the same or a smaller width.
    index: row of each new prompt.
    shards: number of shards of both.
  """
  first_column = cache.keys.shape[3] - new.keys.shape[3]

  def replace(rows: Array, new: Array, index: Array) -> Array:
    return rows.at[:, index, :, first_column:].set(new, mode='drop')

  def by_shard(rows: Array, new: Array) -> Array:
    if shards == 1:
      return replace(rows, new, index)
    old, new = (
      x.reshape(x.shape[0], shards, -1, *x.shape[2:]) for x in (rows, new)
    )
    written = jax.vmap(replace, (1, 1, 0), 1)(
      old, new, index.reshape(shards, -1)
    )
    return written.reshape(rows.shape)

  return PromptCache(
    keys=jax.tree.map(by_shard, cache.keys, new.keys),
    values=jax.tree.map(by_shard, cache.values, new.values),
    lengths=set_rows(cache.lengths, index, new.lengths, shards),
  )
