# SPDX-License-Identifier: Apache-2.0
"""`token_stats`: per-token statistics from hidden states and unembedding."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number
from covrl.statistics import truncated
from covrl.statistics.compaction import block_rows
from covrl.statistics.fused import (
  Implementation,
  Operands,
  StatsOptions,
  fused_stats,
)
from covrl.statistics.reference import (
  Temperature,
  check_targets,
  check_temperature,
  moments_from_normaliser,
  nan_outside_vocabulary,
  project_logits,
  softmax_normaliser,
  statistics_dtype,
  stats_from_scaled_logits,
  token_temperatures,
  wide_targets,
)
from covrl.statistics.sharded import Partition, partition_of
from covrl.statistics.tiling import LANES
from covrl.statistics.truncated import NO_TRUNCATION, Truncation
from covrl.types import TokenMoments, TokenStats

# Up to this many logits, over all devices, are kept as one array. Above that,
# computing them twice is cheaper than keeping arrays of their size.
MAX_WHOLE_LOGITS = 2**20
# Number of chunks that the XLA implementation cuts a device's columns into:
# memory is about that many times less than for whole logits.
NUM_CHUNKS = 64
# Number of chunks where masked positions are skipped: positions are then cut into
# blocks as well.
NUM_MASKED_CHUNKS = 16
# Fewest logits of a chunk that are computed at a time, if the vocabulary allows:
# the fixed costs of a product outweigh smaller ones.
MIN_CHUNK_LOGITS = 2**18
IMPLEMENTATIONS = (None, *get_args(Implementation))


@overload
def token_stats(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  soft_cap: int | float | None = None,
  moments: Literal[False] = False,
  mask: Bool[Array, '*B'] | None = None,
  truncation: Truncation = NO_TRUNCATION,
  chunk_size: int | None = None,
  implementation: Implementation | None = None,
) -> TokenStats: ...


@overload
def token_stats(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  soft_cap: int | float | None = None,
  moments: Literal[True],
  mask: Bool[Array, '*B'] | None = None,
  truncation: Truncation = NO_TRUNCATION,
  chunk_size: int | None = None,
  implementation: Implementation | None = None,
) -> tuple[TokenStats, TokenMoments]: ...


def token_stats(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  soft_cap: int | float | None = None,
  moments: bool = False,
  mask: Bool[Array, '*B'] | None = None,
  truncation: Truncation = NO_TRUNCATION,
  chunk_size: int | None = None,
  implementation: Implementation | None = None,
) -> TokenStats | tuple[TokenStats, TokenMoments]:
  """Statistics of the policy at each token: log π(a) and H(π), in nats.

    z = hidden @ unembedding,    z ← soft_cap · tanh(z / soft_cap)
    π = softmax(z / temperature)

  Computed in at least float32, with float32 factors at full precision;
  cotangents are summed in float32 and have the dtypes of the inputs. Up to 2²⁰
  logits in all are kept as one array, which has forward-mode derivatives too.
  Beyond, or if an implementation is chosen, no array of their size exists,
  forward or backward: the vocabulary is processed block by block, in Pallas
  kernels on TPU and as chunks in XLA elsewhere. The implementations agree to
  rounding.

  On a mesh with covrl's axes each device processes its own tokens and its own
  columns of the vocabulary; logits are never exchanged. On any other mesh XLA
  partitions the computation.

  Args:
    hidden: hidden states that predict the targets.
    unembedding: a column per token of the vocabulary. A column that holds −∞
      marks a token that cannot be sampled.
    targets: sampled tokens, integers in [0, V). In a compiled program, where
      they are not known, the log-probability of any other number is NaN.
    temperature: positive, one for all tokens or one each; a constant to
      autodiff.
    soft_cap: bound of |z|; `None` does not bound it.
    moments: whether to return Σ π², Σ π² log π and Σ π² log² π as well.
    mask: true where statistics are wanted; elsewhere they and their derivatives
      are 0, whatever the other arguments hold there. `None` is everywhere. The wanted positions of a device are gathered, and the cost
      grows with their number: in XLA in steps of an eighth of all positions, at
      least 512; in kernels in steps of a block. Truncated policies process every
      position.
    truncation: truncations of the policy of which the statistics have the
      entropy (`top_entropy`) and the moments the log-probability of the target
      (`filtered_logprobs`). They are computed by XLA, with any
      `implementation` of the others, from the whole logits of a few tokens at a
      time; see `covrl.statistics.truncated`.
    chunk_size: columns of the vocabulary per chunk, which selects `'chunked'`;
      `None` cuts those of a device into 64 chunks, or 16 with a mask, or into
      fewer if these would have less than 2¹⁸ logits.
    implementation: `'pallas'` or `'chunked'`; `None` chooses by size and
      platform.

  Returns:
    The statistics, and the moments if requested. Moments are constants to
    autodiff.

  Raises:
    TypeError: if an argument has another type than its annotation, such as targets
      of floats.
    ValueError: if shapes differ, a target is outside the vocabulary, a number
      is not finite and positive, the implementation is unknown, or min-p is
      requested without moments.

  >>> hidden, unembedding = jnp.ones((2, 3, 4)), jnp.zeros((4, 8))
  >>> stats = token_stats(hidden, unembedding, jnp.zeros((2, 3), int))
  >>> stats.logprobs.shape, round(float(jnp.exp(stats.entropy[0, 0])), 4)
  ((2, 3), 8.0)
  """
  if soft_cap is not None:
    check_number('soft_cap', soft_cap, 0, is_open=True)
  if chunk_size is not None:
    check_array('chunk_size', chunk_size, 'int', '')
    check_number('chunk_size', chunk_size, 0, is_open=True)
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}'
    )
  if not isinstance(truncation, Truncation):
    raise TypeError(f'truncation must be a Truncation, got {truncation!r}')
  truncation.check()
  if truncation.min_p is not None and not moments:
    raise ValueError(
      'moments must be True with truncation.min_p, whose log-probabilities'
      ' they hold, got False'
    )
  _check_arrays(hidden, unembedding, targets)
  targets = jnp.asarray(wide_targets(targets))
  hidden, unembedding = jnp.asarray(hidden), jnp.asarray(unembedding)
  if mask is not None:
    check_array('mask', mask, 'bool', '...', targets.shape)
    mask = jnp.asarray(mask)
  check_temperature(temperature, targets.shape)
  dtype = statistics_dtype(hidden, unembedding)
  infinite = unembedding == -jnp.inf
  operands = Operands(
    hidden=hidden,
    unembedding=unembedding,
    impossible=jnp.any(infinite, axis=0),
    targets=targets,
    temperatures=token_temperatures(temperature, targets, dtype),
    wanted=jnp.ones(targets.shape, bool) if mask is None else mask,
  )
  if chunk_size and not implementation:
    implementation = 'chunked'
  is_small = targets.size * unembedding.shape[-1] <= MAX_WHOLE_LOGITS
  masked_operands = operands if mask is None else _masked(operands)
  if is_small and implementation is None:
    stats, token_moments = _whole_stats(masked_operands, soft_cap, moments)
  else:
    partition = partition_of(unembedding, targets)
    gathers = mask is not None and not partition.by_xla
    options = StatsOptions(
      soft_cap=soft_cap,
      moments=moments,
      chunk_size=_chunk_size(
        chunk_size,
        partition.local_columns(unembedding.shape[-1]),
        partition.local_tokens(targets.size),
        gathers=gathers,
      ),
      gathers=gathers,
      implementation=implementation
      or _default_implementation(operands, partition),
      partition=partition,
    )
    stats, token_moments = fused_stats(
      operands if gathers else masked_operands, options
    )
  stats = nan_outside_vocabulary(stats, targets, unembedding.shape[-1])
  if any(number is not None for number in truncation):
    stats, token_moments = _with_truncated(
      stats, token_moments, masked_operands, soft_cap, truncation
    )
  if mask is not None:
    stats, token_moments = jax.tree.map(
      lambda x: jnp.where(mask, x, 0), (stats, token_moments)
    )
  return stats if token_moments is None else (stats, token_moments)


def _check_arrays(hidden: object, unembedding: object, targets: object) -> None:
  """Refuses arrays of other dtypes, or whose shapes do not fit."""
  shape = check_array('hidden', hidden, 'float', '...')
  width, vocabulary = check_array('unembedding', unembedding, 'float', 'D V')
  if not shape or shape[-1] != width:
    raise ValueError(
      f'hidden must be [..., D] with D = {width}, the rows of the unembedding, '
      f'got {shape}'
    )
  check_targets(targets, shape[:-1], vocabulary)


def _masked(operands: Operands) -> Operands:
  """Replaces what is not wanted by numbers of which the derivatives are finite.

  A cotangent of 0 times a NaN is NaN.
  """
  wanted = operands.wanted[..., None]
  return operands._replace(
    hidden=jnp.where(wanted, operands.hidden, 0),
    temperatures=jnp.where(wanted, operands.temperatures, 1),
  )


def _whole_stats(
  operands: Operands, soft_cap: int | float | None, moments: bool
) -> tuple[TokenStats, TokenMoments | None]:
  """Statistics from the whole logits as one array."""
  # −∞ is replaced before the product: hidden · −∞ is not −∞ where a hidden
  # state is 0 or negative, and its derivative is NaN.
  finite = jnp.where(operands.impossible, 0, operands.unembedding)
  logits = project_logits(
    operands.hidden, finite, operands.impossible, soft_cap
  )
  scaled = logits / operands.temperatures
  stats = stats_from_scaled_logits(scaled, operands.targets)
  return stats, moments_from_normaliser(
    scaled, softmax_normaliser(scaled)
  ) if moments else None


def _with_truncated(
  stats: TokenStats,
  token_moments: TokenMoments | None,
  operands: Operands,
  soft_cap: int | float | None,
  truncation: Truncation,
) -> tuple[TokenStats, TokenMoments | None]:
  """Adds the statistics of truncated policies."""
  partition = partition_of(operands.unembedding, operands.targets)

  def options(number: float) -> truncated.TruncationOptions:
    return truncated.TruncationOptions(soft_cap, partition, number)

  if truncation.removed is not None:
    entropy = truncated.top_entropy(operands, options(truncation.removed))
    stats = dataclasses.replace(stats, top_entropy=entropy)
  if truncation.min_p is not None and token_moments is not None:
    logprobs = truncated.filtered_logprobs(operands, options(truncation.min_p))
    token_moments = dataclasses.replace(
      token_moments, filtered_logprobs=logprobs
    )
  return stats, token_moments


def _chunk_size(
  chosen: int | None, columns: int, tokens: int, *, gathers: bool
) -> int:
  """Columns per chunk, at most those of a device.

  Args:
    chosen: the caller's choice.
    columns: columns of a device.
    tokens: tokens of a device.
    gathers: whether masked positions are skipped.
  """
  rows = block_rows(tokens) if gathers else tokens
  chunks = NUM_MASKED_CHUNKS if gathers else NUM_CHUNKS
  default = max(columns // chunks, MIN_CHUNK_LOGITS // max(rows, 1))
  default = max(default // LANES, 1) * LANES
  return min(chosen or default, columns)


def _default_implementation(
  operands: Operands, partition: Partition
) -> Implementation | None:
  """`'chunked'` if the kernels do not apply; else the platform decides."""
  dtype = jnp.result_type(operands.hidden, operands.unembedding)
  supported = (
    operands.hidden.shape[-1] % LANES == 0 and jnp.finfo(dtype).bits <= 32
  )
  return None if supported and not partition.by_xla else 'chunked'
