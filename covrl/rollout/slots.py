# SPDX-License-Identifier: Apache-2.0
"""Slots that decode a queue of requests, as pure functions of one state.

A request is one response to sample. A slot holds one request; when its response
ends, it takes the next waiting request in the same step. Rows and requests are
split into shards, one per part of the mesh, and never leave their shard; indices
of requests and prompts count within it.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from covrl.models.cache import DecodeCache, repeat_rows
from covrl.models.policy import Policy
from covrl.rollout.samples import Samples, count_positions, empty_samples
from covrl.rollout.sampling import Sampling, sample_token


class Requests(NamedTuple):
  """Requests, those of a prompt contiguous.

  Attributes:
    keys: PRNG key of each request.
    prompt: index of its prompt.
    queue: requests that have to be decoded, in order, by shard.
    waiting: number of valid entries of each shard's queue.
  """

  keys: Key[Array, ' R']
  prompt: Int[Array, ' R']
  queue: Int[Array, 'n M']
  waiting: Int[Array, ' n']


class SlotArrays(NamedTuple):
  """The arrays of a state whose sizes are the number of slots; see `State`."""

  prompt: Int[Array, ' S']
  keys: Float[Array, 'L S K C h']
  values: Float[Array, 'L S K C h']
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
    taken: requests that each shard's slots have taken from its queue.
  """

  requests: Requests
  samples: Samples
  cache: DecodeCache
  request: Int[Array, ' S']
  token: Int[Array, ' S']
  taken: Int[Array, ' n']

  @property
  def shards(self) -> int:
    """Number of shards."""
    return self.taken.shape[0]

  @property
  def live(self) -> Bool[Array, ' S']:
    """Whether each slot holds a request."""
    return self.request < self.requests.queue.shape[1]

  @property
  def slot_arrays(self) -> SlotArrays:
    """The arrays whose sizes are the number of slots."""
    cache = self.cache
    return SlotArrays(
      prompt=cache.prompt,
      keys=cache.keys,
      values=cache.values,
      length=cache.length,
      request=self.request,
      token=self.token,
    )

  def with_slots(self, arrays: SlotArrays) -> State:
    """The state with other slots."""
    cache = self.cache._replace(
      prompt=arrays.prompt,
      keys=arrays.keys,
      values=arrays.values,
      length=arrays.length,
    )
    return self._replace(
      cache=cache, request=arrays.request, token=arrays.token
    )

  def status(self) -> Int[Array, ' 2']:
    """Largest numbers of live slots and of waiting requests of a shard."""
    live = jnp.sum(self.live.reshape(self.shards, -1), axis=1)
    waiting = self.requests.waiting - self.taken
    return jnp.stack((jnp.max(live), jnp.max(waiting))).astype(jnp.int32)


class _Step(NamedTuple):
  """Tokens that a step has sampled, one per slot.

  Attributes:
    request: the slot's request; out of range if the slot is idle.
    position: index of the token in the response.
    token: the token.
    sampler_logprob: its log-probability before truncation, in nats.
    behaviour_logprob: the same after truncation.
    truncated: whether the length limit ended the response here.
  """

  request: Int[Array, '*N S']
  position: Int[Array, '*N S']
  token: Int[Array, '*N S']
  sampler_logprob: Float[Array, '*N S']
  behaviour_logprob: Float[Array, '*N S']
  truncated: Bool[Array, '*N S']


@dataclasses.dataclass(frozen=True)
class SlotDecoder:
  """The functions of the engine's programs.

  Attributes:
    policy: the model to sample from.
    end_ids: tokens that end a response.
    pad_id: token that fills the rest of a row.
    max_length: maximum number of tokens of a response.
  """

  policy: Policy
  end_ids: tuple[int, ...]
  pad_id: int
  max_length: int

  def start(
    self,
    params: PyTree,
    prompts: Int[Array, 'P Tp'],
    prompt_mask: Bool[Array, 'P Tp'],
    key: Key[Array, ''],
    sequence_ids: Int[Array, ' R'],
    sampling: Sampling,
    *,
    shards: int,
    slots: int,
  ) -> State:
    """Processes the prompts, samples all first tokens, and fills the slots.

    Args:
      params: parameters of the policy.
      prompts: token ids, padded on the left.
      prompt_mask: true for real tokens.
      key: PRNG key.
      sequence_ids: one per request.
      sampling: temperature and truncation.
      shards: number of shards.
      slots: number of slots of a shard.
    """
    hidden, cache = self.policy.prefill(
      params, prompts, count_positions(prompt_mask), prompt_mask
    )
    count, requests = prompts.shape[0], sequence_ids.shape[0]
    group_size = requests // count
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_ids)
    step = self._first_tokens(params, hidden, keys, sampling)
    # Prompts without a token have no responses.
    exists = repeat_rows(cache.lengths > 0, group_size)
    samples = empty_samples(
      (requests, self.max_length), self.pad_id, self.policy.config.stats_dtype
    )
    local = jnp.arange(requests, dtype=jnp.int32) % (requests // shards)
    step = step._replace(request=jnp.where(exists, local, requests))
    samples = _record(samples, step, shards)

    unfinished = exists & ~self._ends(step.token, step.position)
    unfinished = unfinished.reshape(shards, -1)
    queue = jnp.argsort(~unfinished, axis=1, stable=True).astype(jnp.int32)
    waiting = jnp.sum(unfinished, axis=1, dtype=jnp.int32)
    prompt = repeat_rows(jnp.arange(count, dtype=jnp.int32), group_size)
    state = State(
      requests=Requests(
        keys=keys,
        prompt=prompt % (count // shards),
        queue=queue,
        waiting=waiting,
      ),
      samples=samples,
      cache=DecodeCache.empty(
        cache, jnp.zeros(shards * slots, jnp.int32), self.max_length - 1
      ),
      request=jnp.full(shards * slots, queue.shape[1], jnp.int32),
      token=jnp.zeros(shards * slots, jnp.int32),
      taken=jnp.zeros(shards, jnp.int32),
    )
    return _refill(state, jnp.ones(shards * slots, bool))

  def run(
    self, params: PyTree, state: State, sampling: Sampling, *, steps: int
  ) -> State:
    """Decodes `steps` tokens in every slot, and refills slots that end."""

    def step(carry: State, _: None) -> tuple[State, _Step]:
      return self._step(params, carry, sampling)

    samples = state.samples
    # The steps do not read the responses but for first tokens.
    state, taken = jax.lax.scan(step, state, length=steps)
    return state._replace(samples=_record(samples, taken, state.shards))

  def _first_tokens(
    self,
    params: PyTree,
    hidden: Float[Array, 'P D'],
    keys: Key[Array, ' R'],
    sampling: Sampling,
  ) -> _Step:
    """Samples the first tokens of all requests, one of each prompt at a time."""
    logits = self.policy.project(params, hidden)
    zero = jnp.zeros(hidden.shape[0], jnp.int32)
    by_member = keys.reshape(hidden.shape[0], -1).T

    def sample(keys: Key[Array, ' P']) -> tuple[Array, Array, Array]:
      keys = jax.vmap(jax.random.fold_in)(keys, zero)
      return sample_token(logits, keys, sampling)

    drawn = jax.lax.map(sample, by_member)
    token, sampler, behaviour = (x.T.reshape(-1) for x in drawn)
    index = jnp.zeros_like(token)
    return _Step(
      request=index,
      position=index,
      token=token,
      sampler_logprob=sampler,
      behaviour_logprob=behaviour,
      truncated=self._is_truncated(token, index),
    )

  def _step(
    self, params: PyTree, state: State, sampling: Sampling
  ) -> tuple[State, _Step]:
    """Decodes one token in every slot, and refills slots that end."""
    live = state.live
    hidden, cache = self.policy.decode(params, state.token, state.cache, live)
    logits = self.policy.project(params, hidden)
    own_keys = _take(state.requests.keys, state.request, state.shards)
    keys = jax.vmap(jax.random.fold_in)(own_keys, cache.length)
    token, *logprobs = sample_token(logits, keys, sampling)
    step = _Step(
      request=jnp.where(live, state.request, state.requests.prompt.shape[0]),
      position=cache.length,
      token=token,
      sampler_logprob=logprobs[0],
      behaviour_logprob=logprobs[1],
      truncated=live & self._is_truncated(token, cache.length),
    )
    ended = ~live | self._ends(token, cache.length)
    state = state._replace(
      cache=cache, token=jnp.where(live, token, state.token)
    )
    return _refill(state, ended), step

  def _is_end(self, token: Int[Array, '*S']) -> Bool[Array, '*S']:
    return jnp.isin(token, jnp.asarray(self.end_ids, jnp.int32))

  def _ends(
    self, token: Int[Array, ' S'], index: Int[Array, ' S']
  ) -> Bool[Array, ' S']:
    """Whether a response ends with this token."""
    return self._is_end(token) | (index + 1 >= self.max_length)

  def _is_truncated(
    self, token: Int[Array, ' S'], index: Int[Array, ' S']
  ) -> Bool[Array, ' S']:
    """Whether the length limit ends a response with this token."""
    return ~self._is_end(token) & (index + 1 >= self.max_length)


def shrink(state: State, *, slots: int) -> SlotArrays:
  """Keeps `slots` slots of each shard; the others must be idle."""
  live = state.live.reshape(state.shards, -1)
  kept = jnp.argsort(~live, axis=1, stable=True)[:, :slots]
  arrays = state.slot_arrays
  return SlotArrays(
    *(_take_rows(x, kept, axis=1 if x.ndim > 1 else 0) for x in arrays)
  )


def _refill(state: State, free: Bool[Array, ' S']) -> State:
  """Gives waiting requests to free slots; without any, the slots become idle."""
  shards, requests = state.shards, state.requests
  own = free.reshape(shards, -1)
  at = state.taken[:, None] + jnp.cumsum(own, axis=1) - 1
  size = requests.queue.shape[1]
  found = jnp.take_along_axis(requests.queue, jnp.minimum(at, size - 1), axis=1)
  found = jnp.where(at < requests.waiting[:, None], found, size)
  taken = jnp.minimum(state.taken + jnp.sum(own, axis=1), requests.waiting)
  request = jnp.where(free, found.reshape(-1), state.request)
  is_new = free & (request < size)
  first = state.samples.response_tokens[:, 0]
  cache = state.cache
  return state._replace(
    cache=cache._replace(
      prompt=jnp.where(
        is_new, _take(requests.prompt, request, shards), cache.prompt
      ),
      length=jnp.where(is_new, 0, cache.length),
    ),
    request=request,
    token=jnp.where(is_new, _take(first, request, shards), state.token),
    taken=taken.astype(jnp.int32),
  )


def _record(samples: Samples, step: _Step, shards: int) -> Samples:
  """Writes sampled tokens into the responses of their requests."""

  def by_shard(x: Shaped[Array, '...']) -> Array:
    x = x.reshape(-1, shards, x.shape[-1] // shards)
    return x.swapaxes(0, 1).reshape(shards, -1)

  request, index = by_shard(step.request), by_shard(step.position)

  def write(rows: Array, values: Array, *columns: Array) -> Array:
    split = rows.reshape(shards, -1, *rows.shape[1:])
    written = jax.vmap(
      lambda rows, values, *at: rows.at[at].set(values, mode='drop')
    )(split, values.astype(rows.dtype), request, *columns)
    return written.reshape(rows.shape)

  # A request that is not truncated here is out of range.
  truncated = by_shard(step.truncated)
  out = jnp.where(truncated, request, samples.truncated.shape[0])
  flags = samples.truncated.reshape(shards, -1)
  flags = jax.vmap(lambda rows, at: rows.at[at].set(True, mode='drop'))(
    flags, out
  )
  return Samples(
    response_tokens=write(samples.response_tokens, by_shard(step.token), index),
    response_mask=write(samples.response_mask, jnp.ones_like(truncated), index),
    sampler_logprobs=write(
      samples.sampler_logprobs, by_shard(step.sampler_logprob), index
    ),
    behaviour_logprobs=write(
      samples.behaviour_logprobs, by_shard(step.behaviour_logprob), index
    ),
    truncated=flags.reshape(-1),
  )


def _take(
  x: Shaped[Array, ' R'], index: Int[Array, ' S'], shards: int
) -> Array:
  """Takes entries by their indices within the shard; the last if out of range."""
  index = jnp.minimum(index, x.shape[0] // shards - 1)
  return _take_rows(x, index.reshape(shards, -1), 0)


def _take_rows(
  x: Shaped[Array, '...'], index: Int[Array, 'n S'], axis: int
) -> Shaped[Array, '...']:
  """Takes rows of an axis by their indices within each shard."""
  shards = index.shape[0]
  if shards == 1:
    return jnp.take(x, index[0], axis=axis)
  shape = x.shape
  split = x.reshape(*shape[:axis], shards, -1, *shape[axis + 1 :])
  take = functools.partial(jnp.take, axis=axis)
  taken = jax.vmap(take, in_axes=(axis, 0), out_axes=axis)(split, index)
  return taken.reshape(*shape[:axis], -1, *shape[axis + 1 :])
