# SPDX-License-Identifier: Apache-2.0
"""Decoding in slots, as pure functions of the engine's state.

All requests may be known at the start, or be admitted between two segments of
steps; the steps are the same.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from covrl.array_checks import check_at_least, check_integer
from covrl.models.cache import repeat_rows
from covrl.models.experts import ExpertRecordSpec
from covrl.models.policy import Policy
from covrl.rollout.admission import Admission, Sizes
from covrl.rollout.caching import EXACT_CACHING, Caching
from covrl.rollout.carried import fill_slots, insert_carried
from covrl.rollout.samples import (
  SampledTokens,
  Samples,
  empty_samples,
  record,
)
from covrl.rollout.sampling import Sampling, policy_logprob, sample_token
from covrl.rollout.slots import (
  RequestOptions,
  Requests,
  State,
  enqueue,
  refill,
  replace_prompts,
  set_rows,
  stable_partition_of_three,
  take_by_shard,
)


@dataclasses.dataclass(frozen=True)
class SlotDecoder:
  """The functions of the engine's programs.

  Attributes:
    policy: the model to sample from.
    end_ids: tokens that end a response.
    pad_id: token that fills the rest of a row.
    max_length: maximum number of tokens of a response.
    computes_policy_logprobs: whether to compute `SampledTokens.policy_logprob`.
    experts: shape and dtype of the record of experts, for routing replay; `None`
      records none.
    caching: options of the KV cache and of prefill.
  """

  policy: Policy
  end_ids: tuple[int, ...]
  pad_id: int
  max_length: int
  computes_policy_logprobs: bool = False
  experts: ExpertRecordSpec | None = None
  caching: Caching = EXACT_CACHING

  def __post_init__(self) -> None:
    vocab_size = self.policy.config.vocab_size
    if self.policy.config.value_head:
      raise ValueError(
        'a policy to sample from must have no value head, got one'
      )
    for token in (*self.end_ids, self.pad_id):
      check_integer('token ids', token)
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
    hidden, cache = self.caching.prefill(
      self.policy,
      params,
      prompts,
      prompt_mask,
      record_experts=self.experts is not None,
    )
    experts = self._prompt_experts(cache.experts, prompt_mask)
    cache = cache._replace(experts=None)
    num_prompts, num_requests = prompts.shape[0], sequence_ids.shape[0]
    group_size = num_requests // num_prompts
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, sequence_ids)
    options = RequestOptions(
      sampling, jnp.asarray(self.max_length, jnp.int32), None
    )
    sampled = self._sample_first_tokens(params, hidden, keys, options)
    # Prompts without a token have no responses.
    exists = repeat_rows(cache.lengths > 0, group_size)
    samples = empty_samples(
      (num_requests, self.max_length),
      self.pad_id,
      self.policy.config.stats_dtype,
      None if experts is None else repeat_rows(experts, group_size),
    )
    index_in_shard = jnp.arange(num_requests, dtype=jnp.int32) % (
      num_requests // shards
    )
    sampled = sampled._replace(
      request=jnp.where(exists, index_in_shard, num_requests)
    )
    samples = record(samples, sampled, shards)
    unfinished = exists & ~self._is_done(sampled, options)
    started = jnp.zeros_like(exists)
    if carried is not None:
      samples, unfinished, started = insert_carried(
        samples, carried, unfinished, self.end_ids
      )
    unfinished = unfinished.reshape(shards, -1)
    # Responses with several tokens get the first slots.
    queue = stable_partition_of_three(started.reshape(shards, -1), unfinished)
    enqueued = jnp.sum(unfinished, axis=1, dtype=jnp.int32)
    prompt = repeat_rows(jnp.arange(num_prompts, dtype=jnp.int32), group_size)
    state = State(
      requests=Requests(
        keys=keys,
        prompt=prompt % (num_prompts // shards),
        options=options,
        queue=queue,
        enqueued=enqueued,
      ),
      samples=samples,
      cache=self.caching.empty_cache(
        self.policy, cache, shards * slots, self.max_length - 1
      ),
      request=jnp.full(shards * slots, queue.shape[1], jnp.int32),
      token=jnp.zeros(shards * slots, jnp.int32),
      dequeued=jnp.zeros(shards, jnp.int32),
    )
    state = refill(state, jnp.ones(shards * slots, bool))
    if carried is None or self.max_length == 1:
      return state
    return fill_slots(
      self.policy, self.caching, params, state, (prompts, prompt_mask), started
    )

  def _prompt_experts(
    self,
    experts: UInt[Array, 'P Tp L k'] | None,
    prompt_mask: Bool[Array, 'P Tp'],
  ) -> UInt[Array, 'P T L k'] | None:
    """Experts of prompts without padding, with space for those of a response."""
    if experts is None:
      return None
    experts = jnp.where(prompt_mask[..., None, None], experts, 0)
    return jnp.pad(experts, ((0, 0), (0, self.max_length), (0, 0), (0, 0)))

  def empty_state(self, params: PyTree, sizes: Sizes, shards: int) -> State:
    """Creates a state without requests, for `admit`.

    Of the responses only the first tokens are stored.
    """
    rows, requests = shards * sizes.prompts, shards * sizes.requests
    slots, dtype = shards * sizes.slots, self.policy.config.stats_dtype
    shape = rows, sizes.width
    cache = self.caching.empty_prompts(self.policy, params, shape)
    zeros = jnp.zeros(shards, jnp.int32)
    return State(
      requests=Requests(
        keys=jax.random.split(jax.random.key(0), requests),
        prompt=jnp.zeros(requests, jnp.int32),
        options=RequestOptions(
          Sampling.make().of_rows(requests),
          jnp.ones(requests, jnp.int32),
          jnp.full((requests, sizes.stop_ids), -1, jnp.int32),
        ),
        queue=jnp.zeros((shards, sizes.requests), jnp.int32),
        enqueued=zeros,
      ),
      samples=empty_samples((requests, 1), self.pad_id, dtype),
      cache=self.caching.empty_cache(
        self.policy, cache, slots, self.max_length - 1
      ),
      request=jnp.full(slots, sizes.requests, jnp.int32),
      token=jnp.zeros(slots, jnp.int32),
      dequeued=zeros,
    )

  def admit(
    self,
    params: PyTree,
    state: State,
    admission: Admission,
    key: Key[Array, ''] | None = None,
  ) -> tuple[State, SampledTokens]:
    """Processes new prompts, samples first tokens, and fills idle slots.

    Args:
      params: parameters of the policy.
      state: rows of the new prompts and requests are not in use in it.
      admission: the prompts and requests; scalar options of the state are kept.
      key: PRNG key into which the `sequence_id` of each request is folded; by
        default a key made from the request's `seed`.

    Returns:
      The state, and the first token of each new request.
    """
    shards, old_requests = state.shards, state.requests
    hidden, cache = self.caching.prefill(
      self.policy, params, admission.prompts, admission.prompt_mask
    )
    keys = jax.vmap(
      lambda seed, sequence_id: jax.random.fold_in(
        jax.random.key(seed) if key is None else key, sequence_id
      )
    )(admission.seed, admission.sequence_id)
    logits = self.policy.project(
      params, take_by_shard(hidden, admission.prompt_index, shards)
    )
    sampled = self._sample(
      logits,
      keys,
      jnp.zeros_like(admission.sequence_id),
      admission.request_row,
      admission.options,
    )

    def write(rows: Array, values: Array) -> Array:
      return set_rows(rows, admission.request_row, values, shards)

    requests = old_requests._replace(
      keys=write(old_requests.keys, keys),
      prompt=write(
        old_requests.prompt,
        take_by_shard(admission.prompt_row, admission.prompt_index, shards),
      ),
      options=jax.tree.map(
        lambda rows, values: write(rows, values) if rows.ndim else rows,
        old_requests.options,
        admission.options,
      ),
    )
    state = state._replace(
      requests=requests,
      samples=record(state.samples, sampled, shards),
      cache=state.cache._replace(
        prompts=replace_prompts(
          state.cache.prompts, cache, admission.prompt_row, shards
        )
      ),
    )
    exists = admission.request_row < old_requests.queue.shape[1]
    unfinished = exists & ~self._is_done(sampled, admission.options)
    state = enqueue(state, admission.request_row, unfinished)
    return refill(state, ~state.live), sampled

  def run(
    self, params: PyTree, state: State, *, steps: int
  ) -> tuple[State, SampledTokens]:
    """Decodes `steps` tokens in every slot, and refills slots that end.

    Returns:
      The state, in which the tokens are not recorded yet, and the tokens.
    """

    def step(carry: State, _: None) -> tuple[State, SampledTokens]:
      return self._step(params, carry)

    return jax.lax.scan(step, state, length=steps)

  def _sample_first_tokens(
    self,
    params: PyTree,
    hidden: Float[Array, 'P D'],
    keys: Key[Array, ' R'],
    options: RequestOptions,
  ) -> SampledTokens:
    """Samples the first tokens of all requests, one of each prompt at a time."""
    logits = self.policy.project(params, hidden)
    position = jnp.zeros(hidden.shape[0], jnp.int32)
    keys_by_index = keys.reshape(hidden.shape[0], -1).T

    def sample(keys: Key[Array, ' P']) -> tuple[Array, Array, Array]:
      keys = jax.vmap(jax.random.fold_in)(keys, position)
      return sample_token(logits, keys, options.sampling)

    first_tokens = jax.lax.map(sample, keys_by_index)
    token, *logprobs = (x.T.reshape(-1) for x in first_tokens)
    zeros = jnp.zeros_like(token)
    return SampledTokens(
      request=zeros,  # Set by `start`.
      position=zeros,
      token=token,
      sampler_logprob=logprobs[0],
      behaviour_logprob=logprobs[1],
      policy_logprob=None,
      truncated=self._is_truncated(token, zeros, options),
    )

  def _step(self, params: PyTree, state: State) -> tuple[State, SampledTokens]:
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
    keys = take_by_shard(state.requests.keys, state.request, state.shards)
    sampled = self._sample(
      logits,
      keys,
      cache.length,
      jnp.where(live, state.request, state.requests.prompt.shape[0]),
      options,
    )
    sampled = sampled._replace(
      truncated=live & sampled.truncated, experts=experts
    )
    ended = ~live | self._is_done(sampled, options)
    token = jnp.where(live, sampled.token, state.token)
    return refill(state._replace(cache=cache, token=token), ended), sampled

  def _sample(
    self,
    logits: Float[Array, 'S V'],
    keys: Key[Array, ' S'],
    position: Int[Array, ' S'],
    request: Int[Array, ' S'],
    options: RequestOptions,
  ) -> SampledTokens:
    """Samples the tokens of some positions of requests."""
    keys = jax.vmap(jax.random.fold_in)(keys, position)
    token, *logprobs = sample_token(logits, keys, options.sampling)
    sampled = SampledTokens(
      request=request,
      position=position,
      token=token,
      sampler_logprob=logprobs[0],
      behaviour_logprob=logprobs[1],
      policy_logprob=None,
      truncated=self._is_truncated(token, position, options),
    )
    if self.computes_policy_logprobs:
      temperature = options.sampling.temperature
      logprob = policy_logprob(logits, token, logprobs[0], temperature)
      sampled = sampled._replace(policy_logprob=logprob)
    return sampled

  def _is_end(
    self, token: Int[Array, ' S'], options: RequestOptions
  ) -> Bool[Array, ' S']:
    is_end = jnp.isin(token, jnp.asarray(self.end_ids, jnp.int32))
    if options.stop_ids is None:
      return is_end
    return is_end | jnp.any(token[:, None] == options.stop_ids, axis=1)

  def _is_done(
    self, sampled: SampledTokens, options: RequestOptions
  ) -> Bool[Array, ' S']:
    """Whether responses end with these tokens, by an end token or the limit."""
    is_last = sampled.position + 1 >= options.limit
    return self._is_end(sampled.token, options) | is_last

  def _is_truncated(
    self,
    token: Int[Array, ' S'],
    position: Int[Array, ' S'],
    options: RequestOptions,
  ) -> Bool[Array, ' S']:
    """Whether the length limit ends responses with these tokens."""
    return ~self._is_end(token, options) & (position + 1 >= options.limit)
