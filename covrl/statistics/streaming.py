# SPDX-License-Identifier: Apache-2.0
"""Softmax statistics of a vocabulary seen in parts: sums that can be merged.

A part of the vocabulary (a kernel's tile, a chunk of columns, a device's shard)
gives `Sums`. Sums of disjoint parts merge in any order, within a program or
over a mesh, into what the whole vocabulary would have given; `finish` makes
statistics of them. Numbers of a token are columns `[N, 1]` beside logits
`[N, V]`, as a TPU kernel wants them too: everything here runs in one.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.statistics.reference import Normaliser, project, shift
from covrl.types import TokenMoments, TokenStats

# exp(−x) is 0 in float64, and narrower, from here on.
NEGLIGIBLE = 1000.0


class Inputs(NamedTuple):
  """What the statistics of a list of tokens depend on.

  Attributes:
    hidden: states to predict from.
    unembedding: the columns at hand; impossible ones may hold −∞.
    impossible: columns of tokens that cannot be sampled.
    targets: which of the columns was sampled; no column's number if none was.
    temperatures: of each token.
  """

  hidden: Float[Array, 'N D']
  unembedding: Float[Array, 'D V']
  impossible: Bool[Array, '1 V']
  targets: Int[Array, 'N 1']
  temperatures: Float[Array, 'N 1']


class Squares(NamedTuple):
  """What moments are made of; x = z − peak.

  Attributes:
    plain: Σ exp(2x).
    once: Σ exp(2x) x.
    twice: Σ exp(2x) x².
  """

  plain: Float[Array, 'N 1']
  once: Float[Array, 'N 1']
  twice: Float[Array, 'N 1']


class Sums(NamedTuple):
  """Sums over some columns of z = logits / temperature, with x = z − peak.

  Attributes:
    peak: max z; −∞ if there is nothing to sample.
    total: Σ exp(x).
    weighted: Σ exp(x) x.
    target: z of the target; 0 if its column is not one of them.
    squares: for moments; `None` where nothing asks for them.
  """

  peak: Float[Array, 'N 1']
  total: Float[Array, 'N 1']
  weighted: Float[Array, 'N 1']
  target: Float[Array, 'N 1']
  squares: Squares | None


class Residual(NamedTuple):
  """What a pull-back needs beside the inputs.

  Attributes:
    normaliser: of the whole vocabulary.
    signal: cotangents of the statistics.
  """

  normaliser: Normaliser
  signal: TokenStats


class Tile(NamedTuple):
  """Logits of some tokens and some columns.

  Attributes:
    capped: before temperature; −∞ where nothing can be sampled.
    scaled: divided by the temperature.
    hot: whether the column is the token's target.
  """

  capped: Float[Array, 'N V']
  scaled: Float[Array, 'N V']
  hot: Bool[Array, 'N V']


def tile_of(inputs: Inputs, soft_cap: int | float | None) -> Tile:
  """The logits of these tokens and columns."""
  capped = project(
    inputs.hidden, inputs.unembedding, inputs.impossible, soft_cap
  )
  columns = jax.lax.broadcasted_iota(inputs.targets.dtype, capped.shape, 1)
  return Tile(
    capped=capped,
    scaled=capped / inputs.temperatures,
    hot=columns == inputs.targets,
  )


def nothing(like: Float[Array, 'N 1'], *, moments: bool) -> Sums:
  """The sums over no column, which `merge` leaves others as they are with."""
  zero = jnp.zeros_like(like)
  squares = Squares(zero, zero, zero) if moments else None
  return Sums(jnp.full_like(like, -jnp.inf), zero, zero, zero, squares)


def sums_of(tile: Tile, *, moments: bool) -> Sums:
  """The sums over a tile's columns."""
  peak = jnp.max(tile.scaled, axis=-1, keepdims=True)
  x, possible = shift(tile.scaled, peak)
  mass = jnp.where(possible, jnp.exp(x), 0)
  # exp(x) x before any square: x² may overflow where exp(x) is 0.
  weighted = mass * x

  def total(terms: Float[Array, 'N V']) -> Float[Array, 'N 1']:
    return jnp.sum(terms, axis=-1, keepdims=True)

  squares = None
  if moments:
    squares = Squares(
      total(mass**2), total(mass * weighted), total(weighted**2)
    )
  return Sums(
    peak=peak,
    total=total(mass),
    weighted=total(weighted),
    target=total(jnp.where(tile.hot, tile.scaled, 0)),
    squares=squares,
  )


def merge(one: Sums, other: Sums) -> Sums:
  """The sums over the columns of both."""
  peak = jnp.maximum(one.peak, other.peak)
  one, other = rebase(one, peak), rebase(other, peak)
  return jax.tree.map(jnp.add, one, other)._replace(peak=peak)


def rebase(sums: Sums, peak: Float[Array, 'N 1']) -> Sums:
  """The same sums for x = z − peak, of a peak no lower than their own.

  All terms of a sum have one sign: nothing cancels.
  """
  step = jnp.where(peak == sums.peak, 0, peak - sums.peak)
  step = jnp.minimum(step, NEGLIGIBLE)
  shrink = jnp.exp(-step)
  squares = sums.squares
  if squares is not None:
    squares = Squares(
      plain=shrink**2 * squares.plain,
      once=shrink**2 * (squares.once - step * squares.plain),
      twice=shrink**2
      * (squares.twice - step * (2 * squares.once - step * squares.plain)),
    )
  return sums._replace(
    peak=peak,
    total=shrink * sums.total,
    weighted=shrink * (sums.weighted - step * sums.total),
    squares=squares,
  )


def finish(
  sums: Sums,
) -> tuple[TokenStats, TokenMoments | None, Normaliser]:
  """Statistics and normaliser, once the sums are over all columns."""
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
  plain, once, twice = (part / sums.total**2 for part in sums.squares)
  moments = TokenMoments(
    square=plain,
    square_log=once - log_total * plain,
    square_log_square=twice - log_total * (2 * once - log_total * plain),
  )
  return stats, moments, normaliser


def logit_cotangent(
  inputs: Inputs, residual: Residual, soft_cap: int | float | None
) -> Float[Array, 'N V']:
  """From cotangents of the statistics to that of hidden @ unembedding.

  dz_j = g (1{j = target} − π_j) − h π_j (log π_j + H)
  """
  tile, (normaliser, signal) = tile_of(inputs, soft_cap), residual
  x, possible = shift(tile.scaled, normaliser.peak)
  pi = jnp.where(possible, jnp.exp(x - normaliser.log_total), 0)
  pull = signal.logprobs * (tile.hot - pi)
  pull -= signal.entropy * pi * (x - normaliser.mean)
  pull = jnp.where(possible, pull / inputs.temperatures, 0)
  if soft_cap is None:
    return pull
  return pull * (1 - jnp.where(possible, tile.capped / soft_cap, 0) ** 2)
