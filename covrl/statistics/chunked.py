# SPDX-License-Identifier: Apache-2.0
"""Per-token statistics a chunk of positions at a time: no [B, T, V] array.

The forward pass keeps three numbers per token; the backward pass computes each
chunk's logits again and uses the closed form

  dz_j = g (1{j = target} − π_j) − h π_j (log π_j + H)

of the cotangents g of logprobs and h of entropy. Positions are chunked and not
rows, so that on a mesh that splits rows every shard works on every chunk.
Forward-mode differentiation is not defined; `plain` has it.
"""

from __future__ import annotations

import functools
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.statistics.plain import (
  Normaliser,
  describe,
  is_target,
  moments_of,
  normalise,
  product_precision,
  project,
  shift,
  statistics_dtype,
)
from covrl.types import TokenMoments, TokenStats

Described: TypeAlias = tuple[TokenStats, TokenMoments | None]


class Options(NamedTuple):
  """Static choices.

  Attributes:
    chunk_size: positions per chunk.
    soft_cap: bound of the logits, or `None`.
    moments: whether moments are computed.
  """

  chunk_size: int
  soft_cap: int | float | None
  moments: bool


class Inputs(NamedTuple):
  """What the statistics depend on.

  Attributes:
    hidden: of each position.
    unembedding: finite.
    impossible: columns of tokens that cannot be sampled.
    targets: the sampled tokens.
    temperatures: of each position.
  """

  hidden: Float[Array, '*B T D']
  unembedding: Float[Array, 'D V']
  impossible: Bool[Array, ' V']
  targets: Int[Array, '*B T']
  temperatures: Float[Array, '*B T 1']


def chunked_stats(inputs: Inputs, options: Options) -> Described:
  """Statistics, and moments if asked for, of every position."""
  return _described(inputs, options)


def _only_forward(inputs: Inputs, options: Options) -> Described:
  return _forward(inputs, options)[0]


_described = jax.custom_vjp(_only_forward, nondiff_argnums=(1,))


def _forward(
  inputs: Inputs, options: Options
) -> tuple[Described, tuple[Inputs, Normaliser]]:
  """The statistics; what the backward pass needs is a few numbers per token."""

  def step(_: None, chunk: PyTree) -> tuple[None, tuple[Described, Normaliser]]:
    hidden, targets, temperatures = chunk
    logits = project(
      hidden, inputs.unembedding, inputs.impossible, options.soft_cap
    )
    scaled = logits / temperatures
    normaliser = normalise(scaled)
    stats = describe(scaled, targets, normaliser)
    moments = moments_of(scaled, normaliser) if options.moments else None
    return None, ((stats, moments), normaliser)

  axis, length = inputs.targets.ndim - 1, inputs.targets.shape[-1]
  chunks = (
    *_split((inputs.hidden, inputs.targets), axis, options.chunk_size),
    _split(inputs.temperatures, axis, options.chunk_size, fill=1),
  )
  _, results = jax.lax.scan(step, None, chunks)
  described, normaliser = _join(results, axis, length)
  return described, (inputs, normaliser)


def _backward(
  options: Options,
  residuals: tuple[Inputs, Normaliser],
  cotangents: Described,
) -> tuple[Inputs]:
  """Cotangents of hidden states and unembedding; the rest are constants."""
  inputs, normaliser = residuals
  signal, _ = cotangents
  hidden, unembedding = inputs.hidden, inputs.unembedding
  dtype = statistics_dtype(hidden, unembedding)
  multiply = functools.partial(
    jnp.einsum,
    precision=product_precision(hidden, unembedding),
    preferred_element_type=dtype,
  )

  def step(
    total: Float[Array, 'D V'], chunk: PyTree
  ) -> tuple[Float[Array, 'D V'], Float[Array, '*B C D']]:
    part, part_normaliser, part_signal = chunk
    part_inputs = inputs._replace(**part)
    pull = _logit_cotangent(
      part_inputs, part_normaliser, part_signal, options.soft_cap
    )
    total += multiply('...d,...v->dv', part_inputs.hidden, pull)
    back = multiply('...v,dv->...d', pull, unembedding)
    return total, back.astype(hidden.dtype)

  axis, length = inputs.targets.ndim - 1, inputs.targets.shape[-1]
  split = functools.partial(_split, axis=axis, size=options.chunk_size)
  part = split({'hidden': hidden, 'targets': inputs.targets})
  part['temperatures'] = split(inputs.temperatures, fill=1)
  chunks = (part, split(normaliser), split(signal))
  start = jnp.zeros(unembedding.shape, dtype)
  total, back = jax.lax.scan(step, start, chunks)
  constants: dict[str, None] = dict.fromkeys(
    ('impossible', 'targets', 'temperatures')
  )
  return (
    inputs._replace(
      hidden=_join(back, axis, length),
      unembedding=total.astype(unembedding.dtype),
      **constants,
    ),
  )


def _logit_cotangent(
  inputs: Inputs,
  normaliser: Normaliser,
  signal: TokenStats,
  soft_cap: int | float | None,
) -> Float[Array, '*B V']:
  """From cotangents of the statistics to that of hidden @ unembedding."""
  logits = project(
    inputs.hidden, inputs.unembedding, inputs.impossible, soft_cap
  )
  scaled = logits / inputs.temperatures
  shifted, possible = shift(scaled, normaliser.peak)
  pi = jnp.where(
    possible, jnp.exp(shifted - normaliser.log_total[..., None]), 0
  )
  hot = is_target(scaled, inputs.targets)
  pull = signal.logprobs[..., None] * (hot - pi)
  pull -= (
    signal.entropy[..., None] * pi * (shifted - normaliser.mean[..., None])
  )
  pull = jnp.where(possible, pull / inputs.temperatures, 0)
  if soft_cap is None:
    return pull
  return pull * (1 - jnp.where(possible, logits / soft_cap, 0) ** 2)


_described.defvjp(_forward, _backward)


def _split(tree: PyTree, axis: int, size: int, fill: int = 0) -> PyTree:
  """Cuts an axis into chunks to scan over, the last of them filled up."""

  def cut(x: Array) -> Array:
    count = -(-x.shape[axis] // size)
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, count * size - x.shape[axis])
    shape = (*x.shape[:axis], count, size, *x.shape[axis + 1 :])
    padded = jnp.pad(x, widths, constant_values=fill)
    return jnp.moveaxis(padded.reshape(shape), axis, 0)

  return jax.tree.map(cut, tree)


def _join(tree: PyTree, axis: int, length: int) -> PyTree:
  """The inverse of `_split`."""

  def paste(x: Array) -> Array:
    x = jnp.moveaxis(x, 0, axis)
    shape = (*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return jax.lax.slice_in_dim(x.reshape(shape), 0, length, axis=axis)

  return jax.tree.map(paste, tree)
