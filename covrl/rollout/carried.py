# SPDX-License-Identifier: Apache-2.0
"""Partial rollouts: responses begun with older weights, and continued with new ones."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from covrl.models.policy import Policy
from covrl.rollout.caching import Caching
from covrl.rollout.samples import Samples
from covrl.rollout.slots import State, take


def carry(
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
  rows: tuple[Int[Array, 'P Tp'], Bool[Array, 'P Tp']],
  started: Bool[Array, ' R'],
) -> State:
  """Processes the tokens of carried responses, with these parameters.

  Their keys and values are those of the parameters that decode the rest.

  Args:
    policy: the model.
    caching: options of the cache.
    params: parameters of the policy.
    state: its slots hold the requests.
    rows: prompts, padded on the left, and their masks.
    started: requests whose responses have several tokens and are unfinished.
  """
  prompts, prompt_mask = rows
  shards, request = state.shards, state.request
  size = state.samples.response_tokens.shape[1] - 1
  response = take(state.samples.response_tokens, request, shards)
  length = jnp.sum(take(state.samples.response_mask, request, shards), axis=1)
  is_started = state.live & take(started, request, shards)
  # The last token is not in the cache yet.
  cached = jnp.where(is_started, length - 1, 0).astype(jnp.int32)
  tokens, mask = (
    jnp.concatenate(
      (take(prompt_part, state.cache.prompt, shards), response_part), 1
    )
    for prompt_part, response_part in (
      (prompts, response[:, :size]),
      (prompt_mask, jnp.arange(size) < cached[:, None]),
    )
  )
  # The cache converts keys and values to its own type.
  exact = dataclasses.replace(caching, int8=False)
  _, cache = exact.prefill(policy, params, tokens, mask)
  width = prompts.shape[1]
  last = jnp.take_along_axis(response, cached[:, None], axis=1)[:, 0]
  keys, values = (x[..., width:, :] for x in (cache.keys, cache.values))
  windows = policy.config.windows
  return state._replace(
    cache=state.cache.filled(keys, values, cached, windows),
    token=jnp.where(is_started, last, state.token),
  )
