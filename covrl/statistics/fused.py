# SPDX-License-Identifier: Apache-2.0
"""The statistics as one differentiable operation, on any mesh.

  forward   the sums over a device's columns, merged over the vocabulary
  backward  dz_j = g (1{j = target} − π_j) − h π_j (log π_j + H)
            and its products with the unembedding and with the hidden states

of the cotangents g of logprobs and h of entropy. Three numbers per token are
kept in between. Devices exchange a few numbers per token forward, a row of the
model's width per token backward (where the vocabulary is split), and the
unembedding's cotangent once (where tokens are split). Forward-mode
differentiation is not defined; `plain` has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.statistics import chunked, kernel
from covrl.statistics.reference import Normaliser, statistics_dtype
from covrl.statistics.sharded import Placement
from covrl.statistics.streaming import Inputs, Residual, finish
from covrl.types import TokenMoments, TokenStats

Described: TypeAlias = tuple[TokenStats, TokenMoments | None]
Implementation: TypeAlias = Literal['chunked', 'pallas']
Result = TypeVar('Result')


class Operands(NamedTuple):
  """What the statistics depend on.

  Attributes:
    hidden: of each position.
    unembedding: impossible columns may hold −∞.
    impossible: columns of tokens that cannot be sampled.
    targets: the sampled tokens.
    temperatures: of each position.
  """

  hidden: Float[Array, '*B D']
  unembedding: Float[Array, 'D V']
  impossible: Bool[Array, ' V']
  targets: Int[Array, '*B']
  temperatures: Float[Array, '*B 1']


class Options(NamedTuple):
  """Static choices.

  Attributes:
    soft_cap: bound of the logits, or `None`.
    moments: whether moments are computed.
    chunk_size: columns at a time, for chunks.
    implementation: `None` is Pallas on TPU and chunks elsewhere.
    placement: of the operands on a mesh.
  """

  soft_cap: int | float | None
  moments: bool
  chunk_size: int
  implementation: Implementation | None
  placement: Placement


def fused_stats(operands: Operands, options: Options) -> Described:
  """Statistics, and moments if asked for, of every position."""
  return _described(operands, options)


def _only_forward(operands: Operands, options: Options) -> Described:
  return _forward(operands, options)[0]


_described = jax.custom_vjp(_only_forward, nondiff_argnums=(1,))


def _forward(
  operands: Operands, options: Options
) -> tuple[Described, tuple[Operands, Normaliser]]:
  """The statistics, and what the backward pass needs."""
  placement = options.placement

  def on_device(operands: Operands) -> tuple[Described, Normaliser]:
    inputs = _inputs(operands, placement)
    sums = _choose(
      options,
      functools.partial(
        chunked.sums,
        soft_cap=options.soft_cap,
        size=options.chunk_size,
        moments=options.moments,
      ),
      functools.partial(
        kernel.sums, soft_cap=options.soft_cap, moments=options.moments
      ),
      inputs,
    )
    stats, moments, normaliser = finish(placement.merge(sums))
    return jax.tree.map(
      lambda x: x.reshape(operands.targets.shape),
      ((stats, moments), normaliser),
    )

  described, normaliser = _on_mesh(
    on_device, placement, (_specs(placement),), placement.tokens
  )(operands)
  return described, (operands, normaliser)


def _backward(
  options: Options,
  residuals: tuple[Operands, Normaliser],
  cotangents: Described,
) -> tuple[Operands]:
  """Cotangents of hidden states and unembedding; the rest are constants."""
  placement = options.placement
  operands, normaliser = residuals
  signal, _ = cotangents

  def on_device(
    operands: Operands, residual: Residual
  ) -> tuple[Float[Array, '*B D'], Float[Array, '_ V']]:
    hidden, unembedding = operands.hidden, operands.unembedding
    # What is yet to be added to others' stays wide.
    wide = statistics_dtype(hidden, unembedding)
    dtypes = (
      wide if placement.vocabulary else hidden.dtype,
      wide if placement.token_axes else unembedding.dtype,
    )
    static = {'soft_cap': options.soft_cap, 'dtypes': dtypes}
    of_hidden, of_unembedding = _choose(
      options,
      functools.partial(chunked.cotangents, size=options.chunk_size, **static),
      functools.partial(kernel.cotangents, **static),
      _inputs(operands, placement),
      jax.tree.map(lambda x: x.reshape(-1, 1), residual),
    )
    of_hidden = placement.add_columns(of_hidden).astype(hidden.dtype)
    of_unembedding = placement.add_tokens(of_unembedding)
    return (
      of_hidden.reshape(hidden.shape),
      of_unembedding.astype(unembedding.dtype),
    )

  tokens = placement.tokens
  of_hidden, of_unembedding = _on_mesh(
    on_device,
    placement,
    (_specs(placement), tokens),
    (
      P(*tokens, None),
      P(placement.width or None, placement.vocabulary or None),
    ),
  )(operands, Residual(normaliser, signal))
  constants: dict[str, None] = dict.fromkeys(
    ('impossible', 'targets', 'temperatures')
  )
  return (
    operands._replace(
      hidden=of_hidden, unembedding=of_unembedding, **constants
    ),
  )


_described.defvjp(_forward, _backward)


def _choose(
  options: Options,
  by_chunks: Callable[..., Result],
  by_kernel: Callable[..., Result],
  *arguments: PyTree,
) -> Result:
  """Does it in the way that was asked for, or in the platform's."""
  if options.implementation == 'chunked':
    return by_chunks(*arguments)
  if options.implementation == 'pallas':
    return by_kernel(*arguments)
  return jax.lax.platform_dependent(
    *arguments, tpu=by_kernel, default=by_chunks
  )


def _on_mesh(
  function: Callable[..., Result],
  placement: Placement,
  in_specs: PyTree,
  out_specs: PyTree,
) -> Callable[..., Result]:
  """Runs a function on every device's part."""
  if placement.mesh is None:
    return function
  return jax.shard_map(
    function,
    mesh=placement.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def _specs(placement: Placement) -> Operands:
  """How the operands lie on the mesh."""
  vocabulary = placement.vocabulary or None
  each = P(*placement.tokens, None)
  specs: dict[str, Any] = {
    'hidden': each,
    'unembedding': P(None, vocabulary),
    'impossible': P(vocabulary),
    'targets': placement.tokens,
    'temperatures': each,
  }
  return Operands(**specs)


def _inputs(operands: Operands, placement: Placement) -> Inputs:
  """A device's operands as a list of tokens, with targets among its columns."""
  width, columns = operands.unembedding.shape
  targets = operands.targets - placement.first_column(columns)
  here = (targets >= 0) & (targets < columns)
  return Inputs(
    hidden=operands.hidden.reshape(-1, width),
    unembedding=operands.unembedding,
    impossible=operands.impossible[None],
    targets=jnp.where(here, targets, -1).astype(jnp.int32).reshape(-1, 1),
    temperatures=operands.temperatures.reshape(-1, 1),
  )
