# SPDX-License-Identifier: Apache-2.0
"""What the sampler returns, and how it joins with the prompts."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

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
) -> dict[str, Any]:
  """Joins prompts and responses into whole sequences, on the host.

  Args:
    prompts: as given to `SamplingEngine.sample`.
    prompt_mask: likewise.
    samples: what it returned.
    group_size: likewise.

  Returns:
    The entries of `covrl.Rollouts` that follow, aligned with tokens; positions
    count real tokens from 0.
  """

  def behind(prompt: Host, response: Host) -> np.ndarray:
    rows = np.repeat(np.asarray(prompt), group_size, axis=0)
    return np.concatenate((rows, np.asarray(response)), axis=1)

  mask = behind(prompt_mask, samples.response_mask)
  silent = np.zeros(prompts.shape, np.asarray(samples.sampler_logprobs).dtype)
  return {
    'tokens': behind(prompts, samples.response_tokens),
    'positions': np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32),
    'attention_mask': mask,
    'loss_mask': behind(np.zeros(prompts.shape, bool), samples.response_mask),
    'sampler_logprobs': behind(silent, samples.sampler_logprobs),
    'behaviour_logprobs': behind(silent, samples.behaviour_logprobs),
    'truncated': np.asarray(samples.truncated),
  }


def count_positions(mask: Bool[Array, 'S T']) -> Int[Array, 'S T']:
  """Counts real tokens from 0; padding before the first also has 0."""
  return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
