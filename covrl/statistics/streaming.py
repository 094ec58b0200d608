# SPDX-License-Identifier: Apache-2.0
"""Streaming softmax statistics: mergeable sums over parts of a vocabulary.

Each part of the vocabulary (a kernel's tile, a chunk of columns, a device's
shard) gives `SoftmaxSums`. Sums of disjoint parts merge in any order, within a
program or over a mesh, into the sums over the whole vocabulary, from which
`stats_from_sums` computes the statistics. Per-token numbers are columns
`[N, 1]` beside logits `[N, V]`, as TPU kernels require: all functions here run
inside and outside of kernels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.statistics.compaction import Blocks
from covrl.statistics.reference import (
  Normaliser,
  project_logits,
  shift_logits,
)
from covrl.types import TokenMoments, TokenStats

# exp(−x) is 0 in float64, and in narrower types, from here on.
MAX_SHIFT = 1000.0


class Inputs(NamedTuple):
  """Inputs of the statistics of a list of tokens, for some columns.

  Attributes:
    hidden: hidden states that predict the tokens.
    unembedding: the columns; impossible ones may hold −∞.
    impossible: true for columns of tokens that cannot be sampled.
    targets: column of the sampled token; −1 or another number out of range if
      it is not among the columns.
    temperatures: sampling temperature of each token.
  """

  hidden: Float[Array, 'N D']
  unembedding: Float[Array, 'D V']
  impossible: Bool[Array, '1 V']
  targets: Int[Array, 'N 1']
  temperatures: Float[Array, 'N 1']


class SquareSums(NamedTuple):
  """Sums for the moments of π, with x = z − peak.

  Attributes:
    square: Σ exp(2x).
    square_x: Σ exp(2x) x.
    square_x2: Σ exp(2x) x².
  """

  square: Float[Array, 'N 1']
  square_x: Float[Array, 'N 1']
  square_x2: Float[Array, 'N 1']


class SoftmaxSums(NamedTuple):
  """Sums over some columns of z = logits / temperature, with x = z − peak.

  Attributes:
    peak: max z; −∞ if no column can be sampled.
    total: Σ exp(x).
    weighted: Σ exp(x) x.
    target: z of the target; 0 if its column is not among these.
    squares: sums for the moments; `None` if moments are not computed.
  """

  peak: Float[Array, 'N 1']
  total: Float[Array, 'N 1']
  weighted: Float[Array, 'N 1']
  target: Float[Array, 'N 1']
  squares: SquareSums | None


class Residuals(NamedTuple):
  """Residuals of the backward pass, beside the inputs.

  Attributes:
    normaliser: softmax normaliser over the whole vocabulary.
    signal: cotangents of the statistics.
  """

  normaliser: Normaliser
  signal: TokenStats


class LogitTile(NamedTuple):
  """Logits of some tokens and some columns.

  Attributes:
    capped: logits before the temperature; −∞ where nothing can be sampled.
    scaled: logits divided by the temperature.
    is_target: true where the column is the token's target.
  """

  capped: Float[Array, 'N V']
  scaled: Float[Array, 'N V']
  is_target: Bool[Array, 'N V']


def gather_inputs(inputs: Inputs, blocks: Blocks) -> Inputs:
  """Moves the wanted tokens of the inputs to the front."""
  return inputs._replace(
    hidden=blocks.gather(inputs.hidden),
    targets=blocks.gather(inputs.targets, -1),
    temperatures=blocks.gather(inputs.temperatures, 1),
  )


def logit_tile(inputs: Inputs, soft_cap: int | float | None) -> LogitTile:
  """Computes the logits of the inputs' tokens and columns."""
  capped = project_logits(
    inputs.hidden, inputs.unembedding, inputs.impossible, soft_cap
  )
  columns = jax.lax.broadcasted_iota(inputs.targets.dtype, capped.shape, 1)
  return LogitTile(
    capped=capped,
    scaled=capped / inputs.temperatures,
    is_target=columns == inputs.targets,
  )


def empty_sums(like: Float[Array, 'N 1'], *, moments: bool) -> SoftmaxSums:
  """Sums over no columns: the identity of `merge_sums`.

  Args:
    like: array with the shape and dtype of each sum.
    moments: whether to include the sums for moments.
  """
  zero = jnp.zeros_like(like)
  squares = SquareSums(zero, zero, zero) if moments else None
  return SoftmaxSums(jnp.full_like(like, -jnp.inf), zero, zero, zero, squares)


def tile_sums(tile: LogitTile, *, moments: bool) -> SoftmaxSums:
  """Sums over a tile's columns, with those for moments if requested."""
  peak = jnp.max(tile.scaled, axis=-1, keepdims=True)
  x, possible = shift_logits(tile.scaled, peak)
  mass = jnp.where(possible, jnp.exp(x), 0)
  # exp(x) x before any square: x² may overflow where exp(x) is 0.
  weighted = mass * x

  def total(terms: Float[Array, 'N V']) -> Float[Array, 'N 1']:
    return jnp.sum(terms, axis=-1, keepdims=True)

  squares = None
  if moments:
    squares = SquareSums(
      total(mass**2), total(mass * weighted), total(weighted**2)
    )
  return SoftmaxSums(
    peak=peak,
    total=total(mass),
    weighted=total(weighted),
    target=total(jnp.where(tile.is_target, tile.scaled, 0)),
    squares=squares,
  )


def merge_sums(one: SoftmaxSums, other: SoftmaxSums) -> SoftmaxSums:
  """Merges the sums over two disjoint sets of columns."""
  peak = jnp.maximum(one.peak, other.peak)
  one, other = raise_peak(one, peak), raise_peak(other, peak)
  return jax.tree.map(jnp.add, one, other)._replace(peak=peak)


def raise_peak(sums: SoftmaxSums, peak: Float[Array, 'N 1']) -> SoftmaxSums:
  """Rewrites sums relative to a peak that is at least their own.

  All terms of each sum have the same sign, so nothing cancels.
  """
  increase = jnp.where(peak == sums.peak, 0, peak - sums.peak)
  increase = jnp.minimum(increase, MAX_SHIFT)
  shrink = jnp.exp(-increase)
  squares = sums.squares
  if squares is not None:
    squares = SquareSums(
      square=shrink**2 * squares.square,
      square_x=shrink**2 * (squares.square_x - increase * squares.square),
      square_x2=shrink**2
      * (
        squares.square_x2
        - increase * (2 * squares.square_x - increase * squares.square)
      ),
    )
  return sums._replace(
    peak=peak,
    total=shrink * sums.total,
    weighted=shrink * (sums.weighted - increase * sums.total),
    squares=squares,
  )


def stats_from_sums(
  sums: SoftmaxSums,
) -> tuple[TokenStats, TokenMoments | None, Normaliser]:
  """Statistics, moments and normaliser, from sums over all columns."""
  log_total = jnp.log(sums.total)
  normaliser = Normaliser(
    peak=sums.peak, log_total=log_total, mean=sums.weighted / sums.total
  )
  stats = TokenStats(
    logprobs=(sums.target - sums.peak) - log_total,
    entropy=log_total - normaliser.mean,
  )
  if sums.squares is None:
    return stats, None, normaliser
  square, square_x, square_x2 = (each / sums.total**2 for each in sums.squares)
  moments = TokenMoments(
    square=square,
    square_log=square_x - log_total * square,
    square_log_square=square_x2
    - log_total * (2 * square_x - log_total * square),
  )
  return stats, moments, normaliser


def logit_cotangent(
  inputs: Inputs, residuals: Residuals, soft_cap: int | float | None
) -> Float[Array, 'N V']:
  """Pulls cotangents of the statistics back to hidden @ unembedding.

  dz_j = g (1{j = target} − π_j) − h π_j (log π_j + H)
  """
  tile, (normaliser, signal) = logit_tile(inputs, soft_cap), residuals
  x, possible = shift_logits(tile.scaled, normaliser.peak)
  pi = jnp.where(possible, jnp.exp(x - normaliser.log_total), 0)
  cotangent = signal.logprobs * (tile.is_target - pi)
  cotangent -= signal.entropy * pi * (x - normaliser.mean)
  cotangent = jnp.where(possible, cotangent / inputs.temperatures, 0)
  if soft_cap is None:
    return cotangent
  return cotangent * (1 - jnp.where(possible, tile.capped / soft_cap, 0) ** 2)
