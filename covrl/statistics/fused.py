# SPDX-License-Identifier: Apache-2.0
"""Per-token statistics as one operation with a custom derivative, on any mesh.

  forward   sums over a device's columns, merged over the vocabulary
  backward  dz_j = g (1{j = target} − π_j) − h π_j (log π_j + H)
            and its products with the unembedding and with the hidden states

for cotangents g of logprobs and h of entropy. Three numbers per token are kept
for the backward pass. Devices exchange a few numbers per token forward, a row of
the model's width per token backward (if the vocabulary is split), and the
unembedding's cotangent once (if tokens are split). Forward-mode derivatives are
not defined; `covrl.statistics.reference` has them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.parallel import sharding
from covrl.statistics import chunked, kernel
from covrl.statistics.reference import Normaliser, statistics_dtype
from covrl.statistics.sharded import Partition
from covrl.statistics.streaming import Inputs, Residuals, stats_from_sums
from covrl.types import TokenMoments, TokenStats

Outputs: TypeAlias = tuple[TokenStats, TokenMoments | None]
Implementation: TypeAlias = Literal['chunked', 'pallas']
Result = TypeVar('Result')


class Operands(NamedTuple):
  """Array arguments of the statistics.

  Attributes:
    hidden: hidden state of each position.
    unembedding: a column per token; impossible columns may hold −∞.
    impossible: true for columns of tokens that cannot be sampled.
    targets: the sampled tokens.
    temperatures: sampling temperature of each position.
    wanted: positions to process, if `StatsOptions.gathers`.
  """

  hidden: Float[Array, '*B D']
  unembedding: Float[Array, 'D V']
  impossible: Bool[Array, ' V']
  targets: Int[Array, '*B']
  temperatures: Float[Array, '*B 1']
  wanted: Bool[Array, '*B']


class StatsOptions(NamedTuple):
  """Static arguments of the statistics.

  Attributes:
    soft_cap: bound of |logits|, or `None`.
    moments: whether moments are computed.
    chunk_size: columns per chunk, for `'chunked'`.
    gathers: whether only the wanted positions are processed, gathered into
      blocks.
    implementation: `None` is Pallas on TPU and chunks elsewhere.
    partition: partitioning of the operands over the mesh.
  """

  soft_cap: int | float | None
  moments: bool
  chunk_size: int
  gathers: bool
  implementation: Implementation | None
  partition: Partition


def fused_stats(operands: Operands, options: StatsOptions) -> Outputs:
  """Statistics, and moments if requested, of every position."""
  return _stats(operands, options)


def _primal(operands: Operands, options: StatsOptions) -> Outputs:
  """The statistics without residuals: the primal function of the custom derivative."""
  return _forward(operands, options)[0]


_stats = jax.custom_vjp(_primal, nondiff_argnums=(1,))


def _forward(
  operands: Operands, options: StatsOptions
) -> tuple[Outputs, tuple[Operands, Normaliser]]:
  """Forward pass: the statistics, and residuals for the backward pass."""
  partition = options.partition

  def on_device(operands: Operands) -> tuple[Outputs, Normaliser]:
    inputs = local_inputs(operands, partition)
    sums = _dispatch(
      options,
      functools.partial(
        chunked.sums,
        wanted=_wanted(operands, options),
        soft_cap=options.soft_cap,
        size=options.chunk_size,
        moments=options.moments,
      ),
      functools.partial(
        kernel.sums,
        wanted=_wanted(operands, options),
        soft_cap=options.soft_cap,
        moments=options.moments,
      ),
      inputs,
    )
    stats, moments, normaliser = stats_from_sums(partition.merge_sums(sums))
    return jax.tree.map(
      lambda x: x.reshape(operands.targets.shape),
      ((stats, moments), normaliser),
    )

  outputs, normaliser = map_shards(
    on_device, partition, (operand_specs(partition),), partition.token_spec
  )(operands)
  return outputs, (operands, normaliser)


def _backward(
  options: StatsOptions,
  residuals: tuple[Operands, Normaliser],
  cotangents: Outputs,
) -> tuple[Operands]:
  """Backward pass: cotangents of hidden states and unembedding."""
  partition = options.partition
  operands, normaliser = residuals
  signal, _ = cotangents
  on_gpu = sharding.platform() == 'gpu'

  def on_device(
    operands: Operands, residuals: Residuals
  ) -> tuple[Float[Array, '*B D'], Float[Array, '_ V']]:
    hidden, unembedding = operands.hidden, operands.unembedding
    # Cotangents that are summed over devices stay wide until then.
    wide_dtype = statistics_dtype(hidden, unembedding)
    dtypes = (
      wide_dtype if partition.vocabulary_axes else hidden.dtype,
      wide_dtype if partition.token_axes else unembedding.dtype,
    )
    static_options = {'soft_cap': options.soft_cap, 'dtypes': dtypes}
    hidden_cotangent, unembedding_cotangent = _dispatch(
      options,
      functools.partial(
        chunked.cotangents,
        wanted=_wanted(operands, options),
        size=options.chunk_size,
        on_gpu=on_gpu,
        **static_options,
      ),
      functools.partial(
        kernel.cotangents, wanted=_wanted(operands, options), **static_options
      ),
      local_inputs(operands, partition),
      jax.tree.map(lambda x: x.reshape(-1, 1), residuals),
    )
    hidden_cotangent = partition.sum_over_columns(hidden_cotangent)
    unembedding_cotangent = partition.sum_over_tokens(unembedding_cotangent)
    return (
      hidden_cotangent.astype(hidden.dtype).reshape(hidden.shape),
      unembedding_cotangent.astype(unembedding.dtype),
    )

  tokens = partition.token_spec
  hidden_cotangent, unembedding_cotangent = map_shards(
    on_device,
    partition,
    (operand_specs(partition), tokens),
    (
      P(*tokens, None),
      P(partition.width_axes or None, partition.vocabulary_axes or None),
    ),
  )(operands, Residuals(normaliser, signal))
  constants: dict[str, None] = dict.fromkeys(
    ('impossible', 'targets', 'temperatures', 'wanted')
  )
  return (
    operands._replace(
      hidden=hidden_cotangent, unembedding=unembedding_cotangent, **constants
    ),
  )


_stats.defvjp(_forward, _backward)


def _dispatch(
  options: StatsOptions,
  chunked_form: Callable[..., Result],
  kernel_form: Callable[..., Result],
  *arguments: PyTree,
) -> Result:
  """Runs the chosen implementation, or the platform's default."""
  if options.implementation == 'chunked':
    return chunked_form(*arguments)
  if options.implementation == 'pallas':
    return kernel_form(*arguments)
  return jax.lax.platform_dependent(
    *arguments, tpu=kernel_form, default=chunked_form
  )


def map_shards(
  function: Callable[..., Result],
  partition: Partition,
  in_specs: PyTree,
  out_specs: PyTree,
) -> Callable[..., Result]:
  """Maps a function over the mesh's shards; without a mesh, returns it."""
  if partition.mesh is None:
    return function
  return jax.shard_map(
    function,
    mesh=partition.mesh,
    in_specs=in_specs,
    out_specs=out_specs,
    check_vma=False,
  )


def operand_specs(partition: Partition) -> Operands:
  """Partition specs of the operands."""
  vocabulary = partition.vocabulary_axes or None
  token_rows = P(*partition.token_spec, None)
  specs: dict[str, Any] = {
    'hidden': token_rows,
    'unembedding': P(None, vocabulary),
    'impossible': P(vocabulary),
    'targets': partition.token_spec,
    'temperatures': token_rows,
    'wanted': partition.token_spec,
  }
  return Operands(**specs)


def _wanted(
  operands: Operands, options: StatsOptions
) -> Bool[Array, 'N 1'] | None:
  """One device's positions to process; `None` for all."""
  return operands.wanted.reshape(-1, 1) if options.gathers else None


def local_inputs(operands: Operands, partition: Partition) -> Inputs:
  """One device's operands as a list of tokens, targets relative to its columns."""
  width, columns = operands.unembedding.shape
  targets = operands.targets - partition.first_column(columns)
  is_local = (targets >= 0) & (targets < columns)
  return Inputs(
    hidden=operands.hidden.reshape(-1, width),
    unembedding=operands.unembedding,
    impossible=operands.impossible[None],
    targets=jnp.where(is_local, targets, -1).astype(jnp.int32).reshape(-1, 1),
    temperatures=operands.temperatures.reshape(-1, 1),
  )
