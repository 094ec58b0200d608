# SPDX-License-Identifier: Apache-2.0
"""Decoding in slots, as pure functions of the engine's state.

All requests may be known at the start, or be admitted between two segments of
steps; the steps are the same.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from covrl.models.cache import (
  DecodeCache,
  PromptCache,
  repeat_rows,
)
from covrl.models.experts import ExpertRecord
from covrl.models.policy import Policy
from covrl.rollout.samples import (
  Samples,
  Step,
  count_positions,
  empty_samples,
  record,
)
from covrl.rollout.sampling import Sampling, policy_logprob, sample_token
from covrl.rollout.slots import (
  RequestOptions,
  Requests,
  State,
  enqueue,
  first_in_order,
  refill,
  replace_prompts,
  set_rows,
  take,
)


class Admission(NamedTuple):
  """Prompts and requests that are admitted together, split into shards.

  The arrays of prompts and those of requests may differ in length.

  Attributes:
    prompts: token ids, padded on the left.
    prompt_mask: true for real tokens.
    prompt: row of the cache for each prompt; out of range for no prompt.
    request: row for each request; out of range for no request.
    source: index of each request's prompt among the new prompts.
    seed: seed of each request.
    member: index of the request among those of the same seed.
    options: options of each request.
  """

  prompts: Int[Array, 'A W']
  prompt_mask: Bool[Array, 'A W']
  prompt: Int[Array, ' A']
  request: Int[Array, ' B']
  source: Int[Array, ' B']
  seed: UInt[Array, ' B']
  member: Int[Array, ' B']
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


@dataclasses.dataclass(frozen=True)
class SlotDecoder:
  """The functions of the engine's programs.

  Attributes:
    policy: the model to sample from.
    end_ids: tokens that end a response.
    pad_id: token that fills the rest of a row.
    max_length: maximum number of tokens of a response.
    policy_logprobs: whether to compute `Step.policy_logprob`.
    experts: form of the experts to record, for routing replay; `None` records
      none.
  """

  policy: Policy
  end_ids: tuple[int, ...]
  pad_id: int
  max_length: int
  policy_logprobs: bool = False
  experts: ExpertRecord | None = None

  def __post_init__(self) -> None:
    vocab_size = self.policy.config.vocab_size
    for token in (*self.end_ids, self.pad_id):
      if not 0 <= token < vocab_size:
        raise ValueError(
          f'token ids must lie in [0, {vocab_size}), got {token}'
        )
    check_at_least(1, max_response_length=self.max_length)

  def start(
    self,
    params: PyTree,
    prompts: Int[Array, 'P Tp'],
    prompt_mask: Bool[Array, 'P Tp'],
    key: Key[Array, ''],
    sequence_ids: Int[Array, ' R'],
    sampling: Sampling,
    carried: Samples | None = None,
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
      carried: responses so far; those without tokens begin. Not more than
        `slots` of a shard may have several tokens and be unfinished.
      shards: number of shards.
      slots: number of slots of a shard.
    """
    hidden, cache = self.policy.prefill(
      params,
      prompts,
      count_positions(prompt_mask),
      prompt_mask,
      record_experts=self.experts is not None,
    )
    experts = self._of_prompts(cache.experts, prompt_mask)
    cache = cache._replace(experts=None)
    count, requests = prompts.shape[0], sequence_ids.shape[0]
    group_size = requests // count
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_ids)
    options = RequestOptions(
      sampling, jnp.asarray(self.max_length, jnp.int32), None
    )
    step = self._first_tokens(params, hidden, keys, options)
    # Prompts without a token have no responses.
    exists = repeat_rows(cache.lengths > 0, group_size)
    samples = empty_samples(
      (requests, self.max_length),
      self.pad_id,
      self.policy.config.stats_dtype,
      None if experts is None else repeat_rows(experts, group_size),
    )
    local = jnp.arange(requests, dtype=jnp.int32) % (requests // shards)
    step = step._replace(request=jnp.where(exists, local, requests))
    samples = record(samples, step, shards)
    unfinished = exists & ~self._ends(step, options)
    started = jnp.zeros_like(exists)
    if carried is not None:
      samples, unfinished, started = self._carry(samples, carried, unfinished)
    unfinished = unfinished.reshape(shards, -1)
    # Responses with several tokens get the first slots.
    queue = first_in_order(started.reshape(shards, -1), unfinished)
    waiting = jnp.sum(unfinished, axis=1, dtype=jnp.int32)
    prompt = repeat_rows(jnp.arange(count, dtype=jnp.int32), group_size)
    state = State(
      requests=Requests(
        keys=keys,
        prompt=prompt % (count // shards),
        options=options,
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
    state = refill(state, jnp.ones(shards * slots, bool))
    if carried is None or self.max_length == 1:
      return state
    return self._fill_slots(params, state, prompts, prompt_mask, started)

  def _of_prompts(
    self,
    experts: UInt[Array, 'P Tp L k'] | None,
    prompt_mask: Bool[Array, 'P Tp'],
  ) -> UInt[Array, 'P T L k'] | None:
    """The record of prompts, without padding and with space for a response."""
    if experts is None:
      return None
    experts = jnp.where(prompt_mask[..., None, None], experts, 0)
    return jnp.pad(experts, ((0, 0), (0, self.max_length), (0, 0), (0, 0)))

  def _carry(
    self,
    samples: Samples,
    carried: Samples,
    unfinished: Bool[Array, ' R'],
  ) -> tuple[Samples, Bool[Array, ' R'], Bool[Array, ' R']]:
    """Replaces new responses by carried ones.

    Returns:
      The responses, those that are unfinished, and those of several tokens among
      these.
    """
    length = jnp.sum(carried.response_mask, axis=1)
    has_tokens = length > 0
    samples = jax.tree.map(
      lambda old, new: jnp.where(
        has_tokens.reshape(-1, *(1,) * (new.ndim - 1)), old, new
      ).astype(new.dtype),
      carried,
      samples,
    )
    last = jnp.take_along_axis(
      carried.response_tokens, jnp.maximum(length - 1, 0)[:, None], axis=1
    )[:, 0]
    is_end = jnp.isin(last, jnp.asarray(self.end_ids, jnp.int32))
    finished = is_end | (length >= self.max_length)
    unfinished = jnp.where(has_tokens, ~finished, unfinished)
    return samples, unfinished, unfinished & (length > 1)

  def _fill_slots(
    self,
    params: PyTree,
    state: State,
    prompts: Int[Array, 'P Tp'],
    prompt_mask: Bool[Array, 'P Tp'],
    started: Bool[Array, ' R'],
  ) -> State:
    """Processes the tokens of carried responses, with these parameters.

    Their keys and values are those of the parameters that decode the rest.
    """
    shards, request, size = state.shards, state.request, self.max_length - 1
    response = take(state.samples.response_tokens, request, shards)
    length = jnp.sum(take(state.samples.response_mask, request, shards), axis=1)
    is_started = state.live & take(started, request, shards)
    # The last token is not in the cache yet.
    cached = jnp.where(is_started, length - 1, 0).astype(jnp.int32)
    tokens, mask = (
      jnp.concatenate((take(of_prompt, state.cache.prompt, shards), own), 1)
      for of_prompt, own in (
        (prompts, response[:, :size]),
        (prompt_mask, jnp.arange(size) < cached[:, None]),
      )
    )
    _, cache = self.policy.prefill(params, tokens, count_positions(mask), mask)
    width = prompts.shape[1]
    last = jnp.take_along_axis(response, cached[:, None], axis=1)[:, 0]
    return state._replace(
      cache=state.cache._replace(
        keys=state.cache.keys.at[..., :size, :].set(cache.keys[..., width:, :]),
        values=state.cache.values.at[..., :size, :].set(
          cache.values[..., width:, :]
        ),
        length=cached,
      ),
      token=jnp.where(is_started, last, state.token),
    )

  def empty(self, params: PyTree, sizes: Sizes, shards: int) -> State:
    """Creates a state without requests, for `admit`.

    Responses are not stored but for their first tokens.
    """
    rows, requests = shards * sizes.prompts, shards * sizes.requests
    slots, dtype = shards * sizes.slots, self.policy.config.stats_dtype
    tokens = jax.ShapeDtypeStruct((rows, sizes.width), jnp.int32)
    _, cache = jax.eval_shape(
      lambda params, x: self.policy.prefill(params, x, x, x > 0), params, tokens
    )
    cache: PromptCache = jax.tree.map(
      lambda x: jnp.zeros(x.shape, x.dtype), cache
    )
    queue = jnp.zeros((shards, sizes.requests), jnp.int32)
    none = jnp.zeros(shards, jnp.int32)
    return State(
      requests=Requests(
        keys=jax.random.split(jax.random.key(0), requests),
        prompt=jnp.zeros(requests, jnp.int32),
        options=RequestOptions(
          Sampling.make().of_rows(requests),
          jnp.ones(requests, jnp.int32),
          jnp.full((requests, sizes.stop_ids), -1, jnp.int32),
        ),
        queue=queue,
        waiting=none,
      ),
      samples=empty_samples((requests, 1), self.pad_id, dtype),
      cache=DecodeCache.empty(
        cache, jnp.zeros(slots, jnp.int32), self.max_length - 1
      ),
      request=jnp.full(slots, sizes.requests, jnp.int32),
      token=jnp.zeros(slots, jnp.int32),
      taken=none,
    )

  def admit(
    self,
    params: PyTree,
    state: State,
    new: Admission,
    key: Key[Array, ''] | None = None,
  ) -> tuple[State, Step]:
    """Processes new prompts, samples first tokens, and fills idle slots.

    Args:
      params: parameters of the policy.
      state: rows of the new prompts and requests are not in use in it.
      new: the prompts and requests; options that are scalars of the state remain.
      key: PRNG key that all requests' `member` is folded into, in place of one
        of their `seed`.

    Returns:
      The state, and the first token of each new request.
    """
    shards, old = state.shards, state.requests
    hidden, cache = self.policy.prefill(
      params, new.prompts, count_positions(new.prompt_mask), new.prompt_mask
    )
    keys = jax.vmap(
      lambda seed, member: jax.random.fold_in(
        jax.random.key(seed) if key is None else key, member
      )
    )(new.seed, new.member)
    logits = self.policy.project(params, take(hidden, new.source, shards))
    step = self._sample(
      logits, keys, jnp.zeros_like(new.member), new.request, new.options
    )

    def put(rows: Array, values: Array) -> Array:
      return set_rows(rows, new.request, values, shards)

    requests = old._replace(
      keys=put(old.keys, keys),
      prompt=put(old.prompt, take(new.prompt, new.source, shards)),
      options=jax.tree.map(
        lambda rows, values: put(rows, values) if rows.ndim else rows,
        old.options,
        new.options,
      ),
    )
    state = state._replace(
      requests=requests,
      samples=record(state.samples, step, shards),
      cache=state.cache._replace(
        prompts=replace_prompts(state.cache.prompts, cache, new.prompt, shards)
      ),
    )
    exists = new.request < old.queue.shape[1]
    unfinished = exists & ~self._ends(step, new.options)
    state = enqueue(state, new.request, unfinished)
    return refill(state, ~state.live), step

  def run(
    self, params: PyTree, state: State, *, steps: int
  ) -> tuple[State, Step]:
    """Decodes `steps` tokens in every slot, and refills slots that end.

    Returns:
      The state, in which the tokens are not recorded yet, and the tokens.
    """

    def step(carry: State, _: None) -> tuple[State, Step]:
      return self._step(params, carry)

    return jax.lax.scan(step, state, length=steps)

  def _first_tokens(
    self,
    params: PyTree,
    hidden: Float[Array, 'P D'],
    keys: Key[Array, ' R'],
    options: RequestOptions,
  ) -> Step:
    """Samples the first tokens of all requests, one of each prompt at a time."""
    logits = self.policy.project(params, hidden)
    zero = jnp.zeros(hidden.shape[0], jnp.int32)
    by_member = keys.reshape(hidden.shape[0], -1).T

    def sample(keys: Key[Array, ' P']) -> tuple[Array, Array, Array]:
      keys = jax.vmap(jax.random.fold_in)(keys, zero)
      return sample_token(logits, keys, options.sampling)

    drawn = jax.lax.map(sample, by_member)
    token, sampler, behaviour = (x.T.reshape(-1) for x in drawn)
    index = jnp.zeros_like(token)
    return Step(
      request=index,
      position=index,
      token=token,
      sampler_logprob=sampler,
      behaviour_logprob=behaviour,
      policy_logprob=None,
      truncated=self._is_truncated(token, index, options),
    )

  def _step(self, params: PyTree, state: State) -> tuple[State, Step]:
    """Decodes one token in every slot, and refills slots that end."""
    live, options = state.live, state.slot_options()
    hidden, cache = self.policy.decode(
      params,
      state.token,
      state.cache,
      live,
      record_experts=self.experts is not None,
    )
    experts, cache = cache.experts, cache._replace(experts=None)
    logits = self.policy.project(params, hidden)
    keys = take(state.requests.keys, state.request, state.shards)
    step = self._sample(
      logits,
      keys,
      cache.length,
      jnp.where(live, state.request, state.requests.prompt.shape[0]),
      options,
    )
    step = step._replace(truncated=live & step.truncated, experts=experts)
    ended = ~live | self._ends(step, options)
    state = state._replace(
      cache=cache, token=jnp.where(live, step.token, state.token)
    )
    return refill(state, ended), step

  def _sample(
    self,
    logits: Float[Array, 'S V'],
    keys: Key[Array, ' S'],
    position: Int[Array, ' S'],
    request: Int[Array, ' S'],
    options: RequestOptions,
  ) -> Step:
    """Samples the tokens of some positions of requests."""
    keys = jax.vmap(jax.random.fold_in)(keys, position)
    token, sampler, behaviour = sample_token(logits, keys, options.sampling)
    step = Step(
      request=request,
      position=position,
      token=token,
      sampler_logprob=sampler,
      behaviour_logprob=behaviour,
      policy_logprob=None,
      truncated=self._is_truncated(token, position, options),
    )
    if self.policy_logprobs:
      temperature = options.sampling.temperature
      policy = policy_logprob(logits, token, sampler, temperature)
      step = step._replace(policy_logprob=policy)
    return step

  def _is_end(
    self, token: Int[Array, ' S'], options: RequestOptions
  ) -> Bool[Array, ' S']:
    is_end = jnp.isin(token, jnp.asarray(self.end_ids, jnp.int32))
    if options.stop_ids is None:
      return is_end
    return is_end | jnp.any(token[:, None] == options.stop_ids, axis=1)

  def _ends(self, step: Step, options: RequestOptions) -> Bool[Array, ' S']:
    """Whether responses end with the tokens of a step."""
    is_last = step.position + 1 >= options.limit
    return self._is_end(step.token, options) | is_last

  def _is_truncated(
    self,
    token: Int[Array, ' S'],
    position: Int[Array, ' S'],
    options: RequestOptions,
  ) -> Bool[Array, ' S']:
    """Whether the length limit ends responses with these tokens."""
    return ~self._is_end(token, options) & (position + 1 >= options.limit)


def check_at_least(least: int, **numbers: int) -> None:
  """Raises `ValueError` if one of some numbers is too small."""
  for name, number in numbers.items():
    if number < least:
      raise ValueError(f'{name} must be at least {least}, got {number}')
