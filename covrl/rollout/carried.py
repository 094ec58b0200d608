# SPDX-License-Identifier: Apache-2.0
"""Partial rollouts: responses begun with older weights, and continued with new ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from covrl.array_checks import Kind, check_array, concrete_array
from covrl.models.policy import Policy
from covrl.rollout.caching import Caching
from covrl.rollout.layout import Layout
from covrl.rollout.samples import Samples
from covrl.rollout.slots import State, take_by_shard

_DTYPE_KINDS: dict[str, Kind] = {
  'response_tokens': 'int',
  'response_mask': 'bool',
  'sampler_logprobs': 'float',
  'behaviour_logprobs': 'float',
  'truncated': 'bool',
  'experts': 'int',
}


def check_carried(
  carried: Samples,
  exists: Bool[np.ndarray, ' R'],
  template: Samples,
  *,
  vocab_size: int,
  end_ids: Sequence[int],
  layout: Layout,
) -> None:
  """Refuses carried responses that no earlier call can have returned.

  Args:
    carried: the responses; values of arrays on other hosts are not checked.
    exists: whether each row has a prompt.
    template: shapes and dtypes of the responses.
    vocab_size: number of token ids.
    end_ids: tokens that end a response.
    layout: shards and slots of the call.

  Raises:
    TypeError: the responses are not `Samples`, or an array is of another dtype.
    ValueError: shapes differ, a token is not in the vocabulary, a
      log-probability is positive, a mask has a gap, a row without a prompt
      has tokens, or more responses of several tokens are unfinished than there are
      slots.
  """
  if not isinstance(carried, Samples):
    raise TypeError(f'carried must be Samples, got {type(carried).__name__}')
  for name, expected in template._asdict().items():
    value, kind = getattr(carried, name), _DTYPE_KINDS[name]
    if (value is None) != (expected is None):
      expected_type = 'None' if expected is None else 'an array'
      raise TypeError(
        f'carried.{name} must be {expected_type}, got {type(value).__name__}'
      )
    if expected is not None:
      axes = ' '.join('RTLk'[: expected.ndim])
      check_array(f'carried.{name}', value, kind, axes, expected.shape)
  tokens, mask = (
    concrete_array(carried.response_tokens),
    concrete_array(carried.response_mask),
  )
  if tokens is None or mask is None:
    return
  invalid_tokens = tokens[mask & ((tokens < 0) | (tokens >= vocab_size))]
  if invalid_tokens.size:
    raise ValueError(
      f'carried responses must have token ids in [0, {vocab_size}), got {invalid_tokens[0]}'
    )
  for name in ('sampler_logprobs', 'behaviour_logprobs'):
    logprobs = concrete_array(getattr(carried, name))
    if logprobs is None:
      continue
    # NaN is that of logits which were not finite; the response has no score.
    invalid_logprobs = logprobs[mask & (logprobs > 0)]
    if invalid_logprobs.size:
      raise ValueError(
        f'carried.{name} must be log-probabilities of at most 0, got {invalid_logprobs[0]}'
      )
  if (~mask[:, :-1] & mask[:, 1:]).any():
    raise ValueError(
      'carried responses must be padded on the right, got a token after padding'
    )
  length = mask.sum(axis=1)
  if length[~exists].any():
    raise ValueError(
      'carried responses must have a prompt, got tokens in a row without one'
    )
  truncated = concrete_array(carried.truncated)
  if truncated is not None and (truncated & (length < mask.shape[1])).any():
    raise ValueError(
      f'carried responses that are truncated must have {mask.shape[1]} tokens, got'
      f' {length[truncated].min()}'
    )
  is_end = np.isin(tokens, end_ids) & mask
  before_last = np.arange(mask.shape[1]) < length[:, None] - 1
  if (is_end & before_last).any():
    raise ValueError(
      'carried responses must end with their first token that ends a response,'
      ' got tokens after it'
    )
  started = (length > 1) & (length < mask.shape[1]) & ~is_end.any(axis=1)
  max_started = started.reshape(layout.shards, -1).sum(axis=1).max()
  if max_started > layout.slots[0]:
    raise ValueError(
      f'carried must have at most {layout.slots[0]} unfinished responses of several'
      f' tokens per shard, one per slot, got {max_started}'
    )


def insert_carried(
  samples: Samples,
  carried: Samples,
  unfinished: Bool[Array, ' R'],
  end_ids: tuple[int, ...],
) -> tuple[Samples, Bool[Array, ' R'], Bool[Array, ' R']]:
  """Replaces new responses by carried ones.

  Args:
    samples: new responses, of one token.
    carried: unfinished responses; rows without tokens are new.
    unfinished: new responses that are not finished.
    end_ids: tokens that end a response.

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
  is_end = jnp.isin(last, jnp.asarray(end_ids, jnp.int32))
  finished = is_end | (length >= carried.response_mask.shape[1])
  unfinished = jnp.where(has_tokens, ~finished, unfinished)
  return samples, unfinished, unfinished & (length > 1)


def fill_slots(
  policy: Policy,
  caching: Caching,
  params: PyTree,
  state: State,
  prompts_and_mask: tuple[Int[Array, 'P Tp'], Bool[Array, 'P Tp']],
  started: Bool[Array, ' R'],
) -> State:
  """Prefills the KV cache of the slots with the tokens of carried responses.

  Their keys and values are those of the parameters that decode the rest.

  Args:
    policy: the model.
    caching: options of the cache.
    params: parameters of the policy.
    state: its slots hold the requests.
    prompts_and_mask: prompts, padded on the left, and their masks.
    started: requests whose responses have several tokens and are unfinished.
  """
  prompts, prompt_mask = prompts_and_mask
  shards, request = state.shards, state.request
  size = state.samples.response_tokens.shape[1] - 1
  response = take_by_shard(state.samples.response_tokens, request, shards)
  length = jnp.sum(
    take_by_shard(state.samples.response_mask, request, shards), axis=1
  )
  is_started = state.live & take_by_shard(started, request, shards)
  # The last token is not in the cache yet.
  cached_length = jnp.where(is_started, length - 1, 0).astype(jnp.int32)
  tokens, mask = (
    jnp.concatenate(
      (
        take_by_shard(prompt_part, state.cache.prompt_index, shards),
        response_part,
      ),
      1,
    )
    for prompt_part, response_part in (
      (prompts, response[:, :size]),
      (prompt_mask, jnp.arange(size) < cached_length[:, None]),
    )
  )
  # The cache converts keys and values to its own type.
  exact_caching = dataclasses.replace(caching, int8=False)
  _, cache = exact_caching.prefill(policy, params, tokens, mask)
  width = prompts.shape[1]
  last = jnp.take_along_axis(response, cached_length[:, None], axis=1)[:, 0]
  keys, values = (x[..., width:, :] for x in (cache.keys, cache.values))
  windows = policy.config.windows
  return state._replace(
    cache=state.cache.with_contents(keys, values, cached_length, windows),
    token=jnp.where(is_started, last, state.token),
  )
