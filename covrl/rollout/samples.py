# SPDX-License-Identifier: Apache-2.0
"""What the sampler returns, and how it joins with the prompts."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias, TypedDict

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from covrl.models.cache import repeat_rows

Host: TypeAlias = Array | np.ndarray


class Samples(NamedTuple):
  """Responses, one a row: the responses of a prompt are neighbours.

  Attributes:
    response_tokens: the sampled tokens, then padding.
    response_mask: true for sampled tokens, the end-of-sequence token among
      them; the only statement of a response's length.
    sampler_logprobs: of the sampled tokens, in nats, temperature applied,
      before truncation; 0 off the mask.
    behaviour_logprobs: the same after top-k and top-p.
    truncated: true where the length limit, and not the policy, ended it.
  """

  response_tokens: Int[Array, 'S R']
  response_mask: Bool[Array, 'S R']
  sampler_logprobs: Float[Array, 'S R']
  behaviour_logprobs: Float[Array, 'S R']
  truncated: Bool[Array, ' S']


class RolloutRows(TypedDict):
  """The entries of `Rollouts` that follow from prompts and samples."""

  tokens: Int[Array, 'S T']
  positions: Int[Array, 'S T']
  attention_mask: Bool[Array, 'S T']
  loss_mask: Bool[Array, 'S T']
  sampler_logprobs: Float[Array, 'S T']
  behaviour_logprobs: Float[Array, 'S T']
  truncated: Bool[Array, ' S']


def blank_samples(
  shape: tuple[int, int], pad_id: int, dtype: jnp.dtype
) -> Samples:
  """Rows in which nothing has been sampled yet."""
  return Samples(
    response_tokens=jnp.full(shape, pad_id, jnp.int32),
    response_mask=jnp.zeros(shape, bool),
    sampler_logprobs=jnp.zeros(shape, dtype),
    behaviour_logprobs=jnp.zeros(shape, dtype),
    truncated=jnp.zeros(shape[:1], bool),
  )


def to_rollout_rows(
  prompts: Int[Host, 'P Tp'],
  prompt_mask: Bool[Host, 'P Tp'],
  samples: Samples,
  group_size: int,
) -> RolloutRows:
  """Joins prompts and responses into whole sequences, aligned with tokens.

  Args:
    prompts: as given to `SamplingEngine.sample`.
    prompt_mask: likewise.
    samples: what it returned.
    group_size: likewise.

  Returns:
    Entries for `covrl.Rollouts`; positions count real tokens from 0.
  """
  prompts = repeat_rows(jnp.asarray(prompts), group_size)
  prompt_mask = repeat_rows(jnp.asarray(prompt_mask), group_size)

  def behind(prompt: Array, response: Array) -> Array:
    return jnp.concatenate((prompt, response), axis=1)

  mask = behind(prompt_mask, samples.response_mask)
  zeros = jnp.zeros(prompts.shape, samples.sampler_logprobs.dtype)
  return RolloutRows(
    tokens=behind(prompts, samples.response_tokens),
    positions=count_positions(mask),
    attention_mask=mask,
    loss_mask=behind(jnp.zeros_like(prompt_mask), samples.response_mask),
    sampler_logprobs=behind(zeros, samples.sampler_logprobs),
    behaviour_logprobs=behind(zeros, samples.behaviour_logprobs),
    truncated=samples.truncated,
  )


def count_positions(mask: Bool[Array, 'S T']) -> Int[Array, 'S T']:
  """Counts real tokens from 0; padding before the first also has 0."""
  return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
