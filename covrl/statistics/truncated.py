# SPDX-License-Identifier: Apache-2.0
"""Statistics of a policy that is truncated to its likely tokens.

A truncation needs all logits of a position to determine the kept tokens: min-p the
largest of them, a share of the vocabulary a quantile. Therefore these statistics are
computed a few positions at a time, each with its whole logits, by
XLA on every platform; on a mesh each device has its own positions and columns.
Memory is that of the logits of `POSITIONS_PER_STEP` positions. It costs another product
with the unembedding beside `token_stats`, and two more backward.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import P
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_number
from covrl.statistics.exact import float_key
from covrl.statistics.fused import (
  Operands,
  local_inputs,
  map_shards,
  operand_specs,
)
from covrl.statistics.reference import (
  matmul_precision,
  shift_logits,
  statistics_dtype,
)
from covrl.statistics.sharded import Partition
from covrl.statistics.streaming import Inputs, LogitTile, logit_tile

# Positions whose logits exist at a time, on each device.
POSITIONS_PER_STEP = 128

State = TypeVar('State')
Extra = TypeVar('Extra')
Result = TypeVar('Result')


class Truncation(NamedTuple):
  """Truncations of the policy whose statistics are computed beside its own.

  Attributes:
    min_p: least probability of a kept token, relative to the likeliest token's,
      in (0, 1]; `None` if there is no such truncation.
    removed: share of the vocabulary, its least likely tokens, that is left out,
      in (0, 1); `None` if there is no such truncation.
  """

  min_p: float | None = None
  removed: float | None = None

  def check(self) -> Truncation:
    """Checks both numbers, and returns the truncation itself.

    Raises:
      ValueError: a number is outside its range.
    """
    if self.min_p is not None:
      check_number('min_p', self.min_p, 0, 1, is_open=True)
    if self.removed is not None:
      check_number('removed', self.removed, 0, 1, is_open=True)
      if self.removed == 1:
        raise ValueError('removed must be below 1, got 1')
    return self


NO_TRUNCATION = Truncation()


class TruncationOptions(NamedTuple):
  """Static arguments of one truncation's statistics.

  Attributes:
    soft_cap: bound of |logits|, or `None`.
    partition: partitioning of the operands over the mesh.
    truncation: `Truncation.removed` for `top_entropy`, `Truncation.min_p` for
      `filtered_logprobs`.
  """

  soft_cap: int | float | None
  partition: Partition
  truncation: float


class TruncatedNormaliser(NamedTuple):
  """Softmax normaliser of each position over the tokens that are kept.

  Attributes:
    peak: largest logit.
    total: Σ exp(z − peak) over kept tokens.
    mean: mean of z − peak over the truncated policy.
  """

  peak: Float[Array, 'N 1']
  total: Float[Array, 'N 1']
  mean: Float[Array, 'N 1']


def filtered_logprobs(
  operands: Operands, options: TruncationOptions
) -> Float[Array, '*B']:
  """Log-probability of each target in the policy filtered by min-p.

    π̃ ∝ π on tokens with π ≥ min_p · max π

  −∞ for targets that the filter removes. A constant to autodiff.
  """
  operands = jax.lax.stop_gradient(operands)
  partition, bound = options.partition, math.log(options.truncation)

  def on_device(operands: Operands) -> Float[Array, '*B']:
    def run(rows: Inputs) -> Float[Array, 'N 1']:
      tile = logit_tile(rows, options.soft_cap)
      x, possible = shift_logits(tile.scaled, _peak(tile, partition))
      kept = possible & (x >= bound)
      sums = _sum(jnp.where(kept, jnp.exp(x), 0), partition)
      target = _sum(jnp.where(tile.is_target & possible, x, 0), partition)
      has_target = (
        _sum((tile.is_target & kept).astype(jnp.int32), partition) > 0
      )
      # −∞ is for removed targets only: NaN logits, a target outside the
      # vocabulary, and a position without a possible token give NaN.
      unknown = (sums == 0) | jnp.isnan(sums) | jnp.isnan(target)
      logprob = jnp.where(has_target, target - jnp.log(sums), -jnp.inf)
      return jnp.where(unknown, jnp.nan, logprob)

    inputs = _finite_inputs(operands, partition)
    return _map_positions(run, inputs).reshape(operands.targets.shape)

  return map_shards(
    on_device, partition, (operand_specs(partition),), partition.token_spec
  )(operands)


def top_entropy(
  operands: Operands, options: TruncationOptions
) -> Float[Array, '*B']:
  """Entropy of the policy renormalised on the likely part of the vocabulary.

    π̃ ∝ π on all but the ⌊removed · V⌋ least likely tokens,   H̃ = −Σ π̃ log π̃

  Tokens that tie with the least likely kept one are kept. Forward-mode
  derivatives are not defined.
  """
  return _top_entropy(operands, options)


def _top_entropy_primal(
  operands: Operands, options: TruncationOptions
) -> Float[Array, '*B']:
  """The entropy without residuals: the primal function of the custom derivative."""
  return _top_entropy_forward(operands, options)[0]


_top_entropy = jax.custom_vjp(_top_entropy_primal, nondiff_argnums=(1,))


def _top_entropy_forward(
  operands: Operands, options: TruncationOptions
) -> tuple[Float[Array, '*B'], tuple[Operands, TruncatedNormaliser]]:
  """Forward pass of `top_entropy`: the entropy, and residuals."""
  partition = options.partition
  num_removed = int(options.truncation * operands.unembedding.shape[1])

  def on_device(
    operands: Operands,
  ) -> tuple[Float[Array, '*B'], TruncatedNormaliser]:
    def run(rows: Inputs) -> tuple[Float[Array, 'N 1'], TruncatedNormaliser]:
      tile = logit_tile(rows, options.soft_cap)
      kept = _is_kept(tile, num_removed, partition)
      peak = _peak(tile, partition)
      x, possible = shift_logits(tile.scaled, peak)
      mass = jnp.where(possible & kept, jnp.exp(x), 0)
      total = _sum(mass, partition)
      mean = _sum(mass * x, partition) / total
      return jnp.log(total) - mean, TruncatedNormaliser(peak, total, mean)

    inputs = _finite_inputs(operands, partition)
    return jax.tree.map(
      lambda x: x.reshape(operands.targets.shape), _map_positions(run, inputs)
    )

  entropy, normaliser = map_shards(
    on_device, partition, (operand_specs(partition),), partition.token_spec
  )(operands)
  return entropy, (operands, normaliser)


def _top_entropy_backward(
  options: TruncationOptions,
  residuals: tuple[Operands, TruncatedNormaliser],
  cotangent: Float[Array, '*B'],
) -> tuple[Operands]:
  """dz_j = −h π̃_j (log π̃_j + H̃) on kept tokens, and its products."""
  partition = options.partition
  operands, normaliser = residuals
  num_removed = int(options.truncation * operands.unembedding.shape[1])

  def on_device(
    operands: Operands,
    normaliser: TruncatedNormaliser,
    cotangent: Float[Array, '*B'],
  ) -> tuple[Float[Array, '*B D'], Float[Array, '_ V']]:
    hidden, unembedding = operands.hidden, operands.unembedding
    wide_dtype = statistics_dtype(hidden, unembedding)
    multiply = functools.partial(
      jnp.einsum,
      precision=matmul_precision(hidden, unembedding),
      preferred_element_type=wide_dtype,
    )

    def run(
      unembedding_cotangent: Float[Array, 'D V'],
      rows: Inputs,
      extra: tuple[TruncatedNormaliser, Float[Array, 'N 1']],
      is_copy: Bool[Array, 'N 1'],
    ) -> tuple[Float[Array, 'D V'], Float[Array, 'N D']]:
      normaliser, signal = extra[0], jnp.where(is_copy, 0, extra[1])
      tile = logit_tile(rows, options.soft_cap)
      x, possible = shift_logits(tile.scaled, normaliser.peak)
      # The mask is computed again from these logits, which may differ from those
      # of the forward pass by rounding.
      is_kept = possible & _is_kept(tile, num_removed, partition)
      pi = jnp.where(is_kept, jnp.exp(x), 0) / normaliser.total
      logit_cotangent = -signal * pi * (x - normaliser.mean) / rows.temperatures
      if options.soft_cap is not None:
        capped = jnp.where(possible, tile.capped / options.soft_cap, 0)
        logit_cotangent *= 1 - capped**2
      unembedding_cotangent += multiply(
        'nd,nv->dv', rows.hidden, logit_cotangent
      )
      return unembedding_cotangent, multiply(
        'nv,dv->nd', logit_cotangent, rows.unembedding
      )

    inputs = _finite_inputs(operands, partition)
    normaliser, cotangent = jax.tree.map(
      lambda x: x.reshape(-1, 1), (normaliser, cotangent)
    )
    unembedding_cotangent, hidden_cotangent = _scan_positions(
      run,
      jnp.zeros(unembedding.shape, wide_dtype),
      inputs,
      (normaliser, cotangent),
    )
    hidden_cotangent = partition.sum_over_columns(hidden_cotangent)
    unembedding_cotangent = partition.sum_over_tokens(unembedding_cotangent)
    return (
      hidden_cotangent.astype(hidden.dtype).reshape(hidden.shape),
      unembedding_cotangent.astype(unembedding.dtype),
    )

  token_spec = partition.token_spec
  hidden_cotangent, unembedding_cotangent = map_shards(
    on_device,
    partition,
    (operand_specs(partition), token_spec, token_spec),
    (
      P(*token_spec, None),
      P(partition.width_axes or None, partition.vocabulary_axes or None),
    ),
  )(operands, normaliser, cotangent)
  without_cotangent: dict[str, None] = dict.fromkeys(
    ('impossible', 'targets', 'temperatures', 'wanted')
  )
  return (
    operands._replace(
      hidden=hidden_cotangent,
      unembedding=unembedding_cotangent,
      **without_cotangent,
    ),
  )


_top_entropy.defvjp(_top_entropy_forward, _top_entropy_backward)


def _finite_inputs(operands: Operands, partition: Partition) -> Inputs:
  """A device's inputs, with 0 in place of the −∞ of impossible columns."""
  inputs = local_inputs(operands, partition)
  return inputs._replace(
    unembedding=jnp.where(inputs.impossible, 0, inputs.unembedding)
  )


def _peak(tile: LogitTile, partition: Partition) -> Float[Array, 'N 1']:
  """Largest logit of each position, over the whole vocabulary."""
  peak = jnp.max(tile.scaled, axis=-1, keepdims=True)
  if not partition.vocabulary_axes:
    return peak
  return jax.lax.pmax(peak, partition.vocabulary_axes)


def _sum(terms: Array, partition: Partition) -> Array:
  """Sum over the columns of all devices."""
  total = jnp.sum(terms, axis=-1, keepdims=True, dtype=terms.dtype)
  if not partition.vocabulary_axes:
    return total
  return jax.lax.psum(total, partition.vocabulary_axes)


def _is_kept(
  tile: LogitTile, num_removed: int, partition: Partition
) -> Bool[Array, 'N V']:
  """Whether each token is among all but the `num_removed` least likely ones.

  The key of the least likely kept one is found bit by bit: the largest number
  with at most `num_removed` keys below it.
  """
  # With the barrier, the keys that are compared in the end are those that were
  # counted: XLA does not compute them again.
  keys = jax.lax.optimization_barrier(float_key(tile.scaled))
  info = jnp.iinfo(keys.dtype)

  def fits(bound: Int[Array, 'N 1']) -> Bool[Array, 'N 1']:
    return _sum((keys < bound).astype(jnp.int32), partition) <= num_removed

  def narrow(index: Array, low: Int[Array, 'N 1']) -> Int[Array, 'N 1']:
    bit = (info.bits - 2 - index).astype(keys.dtype)
    higher = low + (jnp.ones((), keys.dtype) << bit)
    return jnp.where(fits(higher), higher, low)

  zeros = jnp.zeros((keys.shape[0], 1), keys.dtype)
  start = jnp.where(fits(zeros), zeros, info.min)
  return keys >= jax.lax.fori_loop(0, info.bits - 1, narrow, start)


def _map_positions(run: Callable[[Inputs], Result], inputs: Inputs) -> Result:
  """Runs a function on a few positions at a time."""
  _, results = _scan_positions(
    lambda state, rows, _extra, _is_copy: (state, run(rows)), (), inputs, ()
  )
  return results


def _scan_positions(
  run: Callable[
    [State, Inputs, Extra, Bool[Array, 'N 1']], tuple[State, Result]
  ],
  state: State,
  inputs: Inputs,
  extra: Extra,
) -> tuple[State, Result]:
  """Runs a function on a few positions at a time, with a carried state.

  Args:
    run: `(state, inputs, extra, is_copy) -> (state, [n, …] arrays)` of some
      positions. Copies of the last position pad the last call; their arrays are
      dropped.
    state: initial state.
    inputs: all positions and columns.
    extra: further arrays `[N, …]`.

  Returns:
    The last state, and arrays `[N, …]`.
  """
  count = inputs.hidden.shape[0]
  size = min(count, POSITIONS_PER_STEP)
  padding = -count % size if size else 0
  per_position = inputs.hidden, inputs.targets, inputs.temperatures

  def split(leaf: Array) -> Array:
    widths = (0, padding), *[(0, 0)] * (leaf.ndim - 1)
    return jnp.pad(leaf, widths, mode='edge').reshape(-1, size, *leaf.shape[1:])

  def step(state: State, chunk: Any) -> tuple[State, Result]:
    (hidden, targets, temperatures), chunk_extra, is_copy = chunk
    rows = inputs._replace(
      hidden=hidden, targets=targets, temperatures=temperatures
    )
    return run(state, rows, chunk_extra, is_copy)

  is_copy = jnp.arange(count + padding) >= count
  if count == size:
    return run(state, inputs, extra, is_copy[:, None])
  chunks = jax.tree.map(split, (per_position, extra))
  state, results = jax.lax.scan(
    step, state, (*chunks, is_copy.reshape(-1, size, 1))
  )
  return state, jax.tree.map(
    lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], results
  )
