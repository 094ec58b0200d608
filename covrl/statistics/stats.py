# SPDX-License-Identifier: Apache-2.0
"""Hidden states to per-token statistics: chooses how, says what."""

from __future__ import annotations

import math
from typing import Literal, overload

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from covrl.statistics.chunked import Inputs, Options, chunked_stats
from covrl.statistics.plain import (
  Temperature,
  closed_form,
  moments_of,
  normalise,
  project,
  statistics_dtype,
  token_temperatures,
)
from covrl.types import TokenMoments, TokenStats

# Up to this many logits, over all devices, are differentiated as one array.
# Beyond, computing them twice is cheaper than keeping arrays of their size.
WHOLE_LOGITS = 2**20
# How many a chunk has, about: 64 MiB in float32.
CHUNK_LOGITS = 2**24


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
) -> TokenStats | tuple[TokenStats, TokenMoments]:
  """What the policy thinks of each token: log π(a) and H(π), in nats.

    z = hidden @ unembedding,    z ← soft_cap · tanh(z / soft_cap)
    π = softmax(z / temperature)

  Computed in at least float32, with float32 factors at full precision;
  cotangents return in the dtypes of the inputs. Up to 2²⁰ logits in all are
  held as one array; beyond, and wherever `chunk_size` is given, there is a chunk
  of them at a time, computed again for the backward pass. The two agree to
  rounding; only the first has forward-mode derivatives.

  Args:
    hidden: states to predict from.
    unembedding: a column per token of the vocabulary. A column that holds −∞ is
      a token that cannot be sampled.
    targets: the sampled tokens, in [0, V); others give numbers that mean
      nothing.
    temperature: positive, of all tokens or of each; a constant to autodiff.
    soft_cap: bound of |z|, or `None` for none.
    moments: whether Σ π², Σ π² log π and Σ π² log² π are wanted as well.
    chunk_size: positions (of the last axis of `targets`) at a time; `None`
      chooses. Large meshes want larger chunks than it does, for it counts the
      logits of all devices.

  Returns:
    The statistics, and the moments if asked for. Moments are constants to
    autodiff.

  Raises:
    ValueError: if a number that must be positive is not.

  >>> hidden, unembedding = jnp.ones((2, 3, 4)), jnp.zeros((4, 8))
  >>> stats = token_stats(hidden, unembedding, jnp.zeros((2, 3), int))
  >>> stats.logprobs.shape, round(float(jnp.exp(stats.entropy[0, 0])), 4)
  ((2, 3), 8.0)
  """
  for name, value in (('soft_cap', soft_cap), ('chunk_size', chunk_size)):
    if value is not None and not value > 0:
      raise ValueError(f'{name} must be positive, got {value:g}')
  dtype = statistics_dtype(hidden, unembedding)
  # The mask replaces −∞ before the product: where a hidden state is 0 or
  # negative, hidden · −∞ is no −∞, and its derivative is none anywhere.
  infinite = unembedding == -jnp.inf
  inputs = Inputs(
    hidden=hidden,
    unembedding=jnp.where(infinite, 0, unembedding),
    impossible=jnp.any(infinite, axis=0),
    targets=targets,
    temperatures=token_temperatures(temperature, targets, dtype),
  )
  vocabulary = unembedding.shape[-1]
  few = chunk_size is None and targets.size * vocabulary <= WHOLE_LOGITS
  if few or targets.ndim == 0:
    stats, described = _whole(inputs, soft_cap, moments)
  else:
    size = chunk_size or _chunk_size(targets, vocabulary)
    options = Options(
      chunk_size=min(size, targets.shape[-1]),
      soft_cap=soft_cap,
      moments=moments,
    )
    stats, described = chunked_stats(inputs, options)
  return stats if described is None else (stats, described)


def _whole(
  inputs: Inputs, soft_cap: int | float | None, moments: bool
) -> tuple[TokenStats, TokenMoments | None]:
  """All logits at once."""
  logits = project(
    inputs.hidden, inputs.unembedding, inputs.impossible, soft_cap
  )
  scaled = logits / inputs.temperatures
  stats = closed_form(scaled, inputs.targets)
  return stats, moments_of(scaled, normalise(scaled)) if moments else None


def _chunk_size(targets: Int[Array, '*B'], vocabulary: int) -> int:
  """Positions whose logits, of all rows, are about `CHUNK_LOGITS`."""
  rows = math.prod(targets.shape[:-1])
  return max(CHUNK_LOGITS // (rows * vocabulary), 1)
