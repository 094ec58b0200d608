# SPDX-License-Identifier: Apache-2.0
"""Hidden states to per-token statistics: chooses how, says what."""

from __future__ import annotations

from typing import Literal, get_args, overload

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from covrl.statistics.fused import (
  Implementation,
  Operands,
  Options,
  fused_stats,
)
from covrl.statistics.reference import (
  Temperature,
  closed_form,
  moments_of,
  normalise,
  project,
  statistics_dtype,
  token_temperatures,
)
from covrl.statistics.sharded import Placement, placement_of
from covrl.types import TokenMoments, TokenStats

# Up to this many logits, over all devices, are differentiated as one array.
# Beyond, computing them twice is cheaper than keeping arrays of their size.
WHOLE_LOGITS = 2**20
# Where XLA does it by chunks, a device's part of the vocabulary is cut into this
# many: memory is about so many times less than that of whole logits.
CHUNKS = 64
# Columns that a chunk has at least, and whose multiples a TPU works on.
LANES = 128
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
  chunk_size: int | None = None,
  implementation: Implementation | None = None,
) -> tuple[TokenStats, TokenMoments]: ...


@overload
def token_stats(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  soft_cap: int | float | None = None,
  moments: bool,
  chunk_size: int | None = None,
  implementation: Implementation | None = None,
) -> TokenStats | tuple[TokenStats, TokenMoments]: ...


def token_stats(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  soft_cap: int | float | None = None,
  moments: bool = False,
  chunk_size: int | None = None,
  implementation: Implementation | None = None,
) -> TokenStats | tuple[TokenStats, TokenMoments]:
  """What the policy thinks of each token: log π(a) and H(π), in nats.

    z = hidden @ unembedding,    z ← soft_cap · tanh(z / soft_cap)
    π = softmax(z / temperature)

  Computed in at least float32, with float32 factors at full precision;
  cotangents return in the dtypes of the inputs, summed in float32. Up to 2²⁰
  logits in all are held as one array, which has forward-mode derivatives too.
  Beyond, and wherever a way is asked for, no array of their size exists, forward
  or backward: columns of the vocabulary come and go, in Pallas kernels on TPU
  and as chunks in XLA elsewhere. The ways agree to rounding.

  On a mesh with covrl's axes each device works on its own tokens and its own
  columns of the vocabulary; the logits stay where they are made. XLA's
  partitioner divides the work on any other mesh.

  Args:
    hidden: states to predict from.
    unembedding: a column per token of the vocabulary. A column that holds −∞ is
      a token that cannot be sampled.
    targets: the sampled tokens, in [0, V); others give numbers that mean
      nothing.
    temperature: positive, of all tokens or of each; a constant to autodiff.
    soft_cap: bound of |z|, or `None` for none.
    moments: whether Σ π², Σ π² log π and Σ π² log² π are wanted as well.
    chunk_size: columns of the vocabulary at a time, which asks for chunks;
      `None` cuts those of a device into 64.
    implementation: `'pallas'` or `'chunked'`; `None` chooses.

  Returns:
    The statistics, and the moments if asked for. Moments are constants to
    autodiff.

  Raises:
    ValueError: if a number that must be positive is not, or if there is no such
      implementation.

  >>> hidden, unembedding = jnp.ones((2, 3, 4)), jnp.zeros((4, 8))
  >>> stats = token_stats(hidden, unembedding, jnp.zeros((2, 3), int))
  >>> stats.logprobs.shape, round(float(jnp.exp(stats.entropy[0, 0])), 4)
  ((2, 3), 8.0)
  """
  for name, value in (('soft_cap', soft_cap), ('chunk_size', chunk_size)):
    if value is not None and not value > 0:
      raise ValueError(f'{name} must be positive, got {value:g}')
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f'implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}'
    )
  dtype = statistics_dtype(hidden, unembedding)
  infinite = unembedding == -jnp.inf
  operands = Operands(
    hidden=hidden,
    unembedding=unembedding,
    impossible=jnp.any(infinite, axis=0),
    targets=targets,
    temperatures=token_temperatures(temperature, targets, dtype),
  )
  asked = 'chunked' if chunk_size and not implementation else implementation
  few = targets.size * unembedding.shape[-1] <= WHOLE_LOGITS
  if few and asked is None:
    stats, described = _whole(operands, soft_cap, moments)
  else:
    placement = placement_of(unembedding, targets)
    options = Options(
      soft_cap=soft_cap,
      moments=moments,
      chunk_size=_chunk_size(chunk_size, unembedding, placement),
      implementation=asked or _implementation(operands, placement),
      placement=placement,
    )
    stats, described = fused_stats(operands, options)
  return stats if described is None else (stats, described)


def _whole(
  operands: Operands, soft_cap: int | float | None, moments: bool
) -> tuple[TokenStats, TokenMoments | None]:
  """All logits at once."""
  # The mask replaces −∞ before the product: where a hidden state is 0 or
  # negative, hidden · −∞ is no −∞, and its derivative is none anywhere.
  finite = jnp.where(operands.impossible, 0, operands.unembedding)
  logits = project(operands.hidden, finite, operands.impossible, soft_cap)
  scaled = logits / operands.temperatures
  stats = closed_form(scaled, operands.targets)
  return stats, moments_of(scaled, normalise(scaled)) if moments else None


def _chunk_size(
  asked: int | None, unembedding: Float[Array, 'D V'], placement: Placement
) -> int:
  """Columns of a chunk, of those that a device has."""
  columns = placement.columns_of(unembedding.shape[-1])
  chosen = max(columns // (CHUNKS * LANES), 1) * LANES
  return min(asked or chosen, columns)


def _implementation(
  operands: Operands, placement: Placement
) -> Implementation | None:
  """Chunks for what the kernels are not made for; else the platform decides."""
  dtype = jnp.result_type(operands.hidden, operands.unembedding)
  fits = operands.hidden.shape[-1] % LANES == 0 and jnp.finfo(dtype).bits <= 32
  divided_by_hand = placement.alone or placement.mesh is not None
  return None if fits and divided_by_hand else 'chunked'
