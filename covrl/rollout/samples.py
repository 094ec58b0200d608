# SPDX-License-Identifier: Apache-2.0
"""Samples of the engine, and their conversion to whole sequences."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from covrl.array_checks import check_array, concrete_array

AnyArray: TypeAlias = Array | np.ndarray
"""An array of JAX, on devices, or of NumPy, on the host."""


class Samples(NamedTuple):
  """Sampled responses, one per row; those of a prompt are contiguous.

  Attributes:
    response_tokens: the sampled tokens, then padding.
    response_mask: true for sampled tokens, including the end-of-sequence token;
      it defines a response's length.
    sampler_logprobs: log-probabilities of the sampled tokens, in nats,
      temperature applied, before truncation; 0 off the mask.
    behaviour_logprobs: the same after top-k and top-p.
    truncated: true where the length limit ended the response.
    experts: experts that each token of prompt and response was routed to, see
      `covrl.models.experts.ExpertRecordSpec`, for routing replay; `None` unless they
      are recorded. The last token of a response is not routed.
  """

  response_tokens: Int[Array, 'S R']
  response_mask: Bool[Array, 'S R']
  sampler_logprobs: Float[Array, 'S R']
  behaviour_logprobs: Float[Array, 'S R']
  truncated: Bool[Array, ' S']
  experts: UInt[Array, 'S T L k'] | None = None


class SampledTokens(NamedTuple):
  """Tokens that a step has sampled, one per slot.

  Attributes:
    request: the slot's request; out of range if the slot is idle.
    position: index of the token in the response.
    token: the token.
    sampler_logprob: its log-probability before truncation, in nats.
    behaviour_logprob: the same after truncation.
    policy_logprob: the same at temperature 1 and before truncation; `None`
      unless the decoder computes it.
    truncated: whether the length limit ended the response here.
    experts: experts that the token before was routed to; `None` unless they are
      recorded.
  """

  request: Int[Array, '*N S']
  position: Int[Array, '*N S']
  token: Int[Array, '*N S']
  sampler_logprob: Float[Array, '*N S']
  behaviour_logprob: Float[Array, '*N S']
  policy_logprob: Float[Array, '*N S'] | None
  truncated: Bool[Array, '*N S']
  experts: UInt[Array, '*N S L k'] | None = None


def empty_samples(
  shape: tuple[int, int],
  pad_id: int,
  dtype: jnp.dtype,
  experts: Array | None = None,
) -> Samples:
  """Creates samples without any token.

  Args:
    shape: numbers of rows and of response tokens.
    pad_id: token that fills the rows.
    dtype: of the log-probabilities.
    experts: see `Samples`.
  """
  return Samples(
    response_tokens=jnp.full(shape, pad_id, jnp.int32),
    response_mask=jnp.zeros(shape, bool),
    sampler_logprobs=jnp.zeros(shape, dtype),
    behaviour_logprobs=jnp.zeros(shape, dtype),
    truncated=jnp.zeros(shape[:1], bool),
    experts=experts,
  )


def record(samples: Samples, step: SampledTokens, shards: int) -> Samples:
  """Writes sampled tokens into the responses of their requests."""

  def by_shard(x: Shaped[Array, '...']) -> Array:
    axes, trailing_shape = step.request.ndim, x.shape[step.request.ndim :]
    x = x.reshape(-1, shards, x.shape[axes - 1] // shards, *trailing_shape)
    return x.swapaxes(0, 1).reshape(shards, -1, *trailing_shape)

  request, index = by_shard(step.request), by_shard(step.position)

  def write(rows: Array, values: Array, *columns: Array) -> Array:
    rows_by_shard = rows.reshape(shards, -1, *rows.shape[1:])
    written = jax.vmap(
      lambda rows, values, *at: rows.at[at].set(values, mode='drop')
    )(rows_by_shard, values.astype(rows.dtype), request, *columns)
    return written.reshape(rows.shape)

  # Requests that are not truncated here get an index out of range.
  truncated = by_shard(step.truncated)
  truncated_requests = jnp.where(truncated, request, samples.truncated.shape[0])
  truncated_rows = samples.truncated.reshape(shards, -1)
  truncated_rows = jax.vmap(
    lambda rows, at: rows.at[at].set(True, mode='drop')
  )(truncated_rows, truncated_requests)
  experts = samples.experts
  if experts is not None and step.experts is not None:
    prompt_length = experts.shape[1] - samples.response_tokens.shape[1]
    experts = write(experts, by_shard(step.experts), prompt_length + index - 1)
  return Samples(
    response_tokens=write(samples.response_tokens, by_shard(step.token), index),
    response_mask=write(samples.response_mask, jnp.ones_like(truncated), index),
    sampler_logprobs=write(
      samples.sampler_logprobs, by_shard(step.sampler_logprob), index
    ),
    behaviour_logprobs=write(
      samples.behaviour_logprobs, by_shard(step.behaviour_logprob), index
    ),
    truncated=truncated_rows.reshape(-1),
    experts=experts,
  )


def to_rollout_rows(
  prompts: Int[AnyArray, 'P Tp'],
  prompt_mask: Bool[AnyArray, 'P Tp'],
  samples: Samples,
  group_size: int,
) -> dict[str, Any]:
  """Joins prompts and responses into whole sequences, on the host.

  Args:
    prompts: token ids, as given to `SamplingEngine.sample`.
    prompt_mask: true for real tokens of the prompts.
    samples: the engine's result.
    group_size: responses per prompt.

  Returns:
    Entries of `covrl.types.Rollouts`, aligned with tokens; positions count real
    tokens from 0.
  """

  def join(prompt: AnyArray, response: AnyArray) -> np.ndarray:
    rows = np.repeat(np.asarray(prompt), group_size, axis=0)
    return np.concatenate((rows, np.asarray(response)), axis=1)

  mask = join(prompt_mask, samples.response_mask)
  no_logprobs = np.zeros(
    prompts.shape, np.asarray(samples.sampler_logprobs).dtype
  )
  return {
    'tokens': join(prompts, samples.response_tokens),
    'positions': np.maximum(np.cumsum(mask, 1) - 1, 0).astype(np.int32),
    'attention_mask': mask,
    'loss_mask': join(np.zeros(prompts.shape, bool), samples.response_mask),
    'sampler_logprobs': join(no_logprobs, samples.sampler_logprobs),
    'behaviour_logprobs': join(no_logprobs, samples.behaviour_logprobs),
    'truncated': np.asarray(samples.truncated),
    'experts': None if samples.experts is None else np.asarray(samples.experts),
  }


def count_positions(mask: Bool[Array, 'S T']) -> Int[Array, 'S T']:
  """Counts real tokens from 0; padding before the first also has 0."""
  return jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)


def check_prompts(
  prompts: Int[AnyArray, 'P Tp'],
  prompt_mask: Bool[AnyArray, 'P Tp'],
  vocab_size: int,
) -> None:
  """Refuses prompts that are not token ids, or not padded on the left.

  For an id outside the vocabulary a model would look up another token's embedding.

  Args:
    prompts: token ids; values of arrays on other hosts are not checked.
    prompt_mask: true for real tokens.
    vocab_size: number of token ids.

  Raises:
    TypeError: an array is of another dtype.
    ValueError: shapes differ, an array is empty, an id is not in the vocabulary,
      or padding follows a token.
  """
  shape = check_array('prompts', prompts, 'int', 'P T')
  check_array('prompt_mask', prompt_mask, 'bool', 'P T', shape)
  if not all(shape):
    raise ValueError(f'prompts must not be an empty array, got {shape}')
  ids, mask = concrete_array(prompts), concrete_array(prompt_mask)
  if ids is None or mask is None:
    return
  invalid_ids = ids[mask & ((ids < 0) | (ids >= vocab_size))]
  if invalid_ids.size:
    raise ValueError(
      f'prompts must have token ids in [0, {vocab_size}), got {invalid_ids[0]}'
    )
  if (mask[:, :-1] & ~mask[:, 1:]).any():
    raise ValueError(
      'prompts must be padded on the left, got padding after a token'
    )


def check_sequence_ids(
  sequence_ids: Int[AnyArray, ' S'],
  prompt_mask: Bool[AnyArray, 'P Tp'],
  group_size: int,
) -> None:
  """Refuses ids that are not one per response and different in each group.

  Responses of a group with the same id would be the same response.

  Args:
    sequence_ids: ids of the responses; values on other hosts are not checked.
    prompt_mask: true for real tokens; ids of rows without any are not compared.
    group_size: responses per prompt.

  Raises:
    TypeError: the ids are of another dtype.
    ValueError: there is not one id per response, or a group has an id twice.
  """
  count = len(prompt_mask) * group_size
  check_array('sequence_ids', sequence_ids, 'int', 'S', (count,))
  ids, mask = concrete_array(sequence_ids), concrete_array(prompt_mask)
  if ids is None or mask is None:
    return
  ids_by_group = np.sort(ids.reshape(-1, group_size)[mask.any(axis=1)], axis=1)
  repeated = ids_by_group[:, 1:][ids_by_group[:, 1:] == ids_by_group[:, :-1]]
  if repeated.size:
    raise ValueError(
      f'sequence_ids must be unique in each group, got {repeated[0]} twice'
    )
