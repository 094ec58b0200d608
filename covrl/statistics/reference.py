# SPDX-License-Identifier: Apache-2.0
"""Reference implementation of the per-token statistics, from whole logits.

Short, and the standard that other implementations are tested against; it keeps
`[..., V]` arrays. Logits of −∞ mark tokens that cannot be sampled; they are
masked before any multiplication, since 0 · ∞ is NaN, in derivatives too.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number, concrete_array
from covrl.types import TokenMoments, TokenStats

# One temperature for all tokens, or one per token.
Temperature: TypeAlias = int | float | Float[Array, '...']


class Normaliser(NamedTuple):
  """Softmax normaliser of a token's logits z, free of overflow.

    log π_j = (z_j − peak) − log_total,    H = log_total − mean

  both exact to rounding however large the logits are.

  Attributes:
    peak: max z.
    log_total: log Σ exp(z − peak), at least 0.
    mean: E_π[z − peak], at most 0.
  """

  peak: Float[Array, '*B']
  log_total: Float[Array, '*B']
  mean: Float[Array, '*B']


@overload
def token_stats_from_logits(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  moments: Literal[False] = False,
) -> TokenStats: ...


@overload
def token_stats_from_logits(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  moments: Literal[True],
) -> tuple[TokenStats, TokenMoments]: ...


def token_stats_from_logits(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  moments: bool = False,
) -> TokenStats | tuple[TokenStats, TokenMoments]:
  """Log-probability of each target and entropy, from logits; in nats.

    π = softmax(logits / temperature)
    logprobs = log π(target),    entropy = −Σ π log π

  Computed in at least float32. logprobs ≤ 0 ≤ entropy holds exactly.

  Args:
    logits: logits at each token; −∞ marks tokens that cannot be sampled.
    targets: sampled tokens, integers in [0, V). In a compiled program, where
      they are not known, the log-probability of any other number is NaN.
    temperature: positive, one for all tokens or one each; a constant to
      autodiff.
    moments: whether to return Σ π², Σ π² log π and Σ π² log² π as well.

  Returns:
    The statistics, and the moments if requested. Moments are constants to
    autodiff.

  Raises:
    TypeError: if an argument has another type than its annotation, such as targets
      of floats.
    ValueError: if shapes differ, a target is outside the vocabulary, or a
      temperature is not finite and positive.

  >>> stats = token_stats_from_logits(jnp.zeros((1, 4)), jnp.array([2]))
  >>> round(float(jnp.exp(stats.entropy[0])), 4)
  4.0
  """
  check_array('logits', logits, 'real', '...')
  check_targets(targets, logits.shape[:-1], logits.shape[-1])
  targets = wide_targets(targets)
  check_temperature(temperature, targets.shape)
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  scaled = logits.astype(dtype) / token_temperatures(
    temperature, targets, dtype
  )
  stats = stats_from_scaled_logits(scaled, targets)
  stats = nan_outside_vocabulary(stats, targets, logits.shape[-1])
  if not moments:
    return stats
  return stats, moments_from_normaliser(scaled, softmax_normaliser(scaled))


@jax.custom_jvp
def stats_from_scaled_logits(
  scaled: Float[Array, '*B V'], targets: Int[Array, '*B']
) -> TokenStats:
  """Statistics of logits that are already divided by the temperature.

  Differentiated in closed form: autodiff of the forward pass would keep more
  arrays of the size of the logits, and take two to three times as long.
  """
  return stats_from_normaliser(scaled, targets, softmax_normaliser(scaled))


@stats_from_scaled_logits.defjvp
def _stats_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[TokenStats, TokenStats]:
  """d log π(a) = Σ (1{a} − π) dz and dH = −Σ π (log π + H) dz."""
  (scaled, targets), (logit_tangent, _) = primals, tangents
  normaliser = softmax_normaliser(scaled)
  shifted, possible = shift_logits(scaled, normaliser.peak[..., None])
  log_pi = shifted - normaliser.log_total[..., None]
  pi = jnp.where(possible, jnp.exp(log_pi), 0)
  entropy_slope = pi * (shifted - normaliser.mean[..., None])
  logit_tangent = jnp.where(possible, logit_tangent, 0)
  tangent = TokenStats(
    logprobs=jnp.sum((one_hot(scaled, targets) - pi) * logit_tangent, axis=-1),
    entropy=-jnp.sum(entropy_slope * logit_tangent, axis=-1),
  )
  return stats_from_normaliser(scaled, targets, normaliser), tangent


def token_temperatures(
  temperature: Temperature, targets: Int[Array, '*B'], dtype: jnp.dtype
) -> Float[Array, '*B 1']:
  """Broadcasts the temperature to one per token; NaN where it is not positive.

  A negative one would make the likeliest token the least likely.
  """
  value = jnp.asarray(temperature, dtype)
  per_token = jnp.broadcast_to(
    jnp.where(value > 0, value, jnp.nan), targets.shape
  )
  return jax.lax.stop_gradient(per_token)[..., None]


def check_temperature(temperature: Any, shape: tuple[int, ...]) -> None:
  """Refuses a temperature that is not positive, or not one or one per token.

  Args:
    temperature: a number or an array; a traced one may have any value.
    shape: shape of the targets.
  """
  if np.ndim(temperature):
    check_array('temperature', temperature, 'real', '...', shape)
    value = concrete_array(temperature)
    if value is not None and not np.all((value > 0) & np.isfinite(value)):
      raise ValueError(
        'temperature must be finite and positive for every token, got '
        f'{value.min():g} to {value.max():g}'
      )
  else:
    check_number('temperature', temperature, 0, is_open=True)


def check_targets(
  targets: object, shape: tuple[int, ...], vocabulary: int
) -> None:
  """Refuses targets of another dtype or shape, or outside the vocabulary.

  Args:
    targets: sampled tokens; traced ones may be any numbers.
    shape: required shape.
    vocabulary: number of tokens V.
  """
  check_array('targets', targets, 'int', '...', shape)
  value = concrete_array(targets)
  if value is None or not value.size:
    return
  low, high = int(value.min()), int(value.max())
  if low < 0 or high >= vocabulary:
    raise ValueError(
      f'targets must lie in [0, {vocabulary}), the vocabulary, got '
      f'{low if low < 0 else high}'
    )


def wide_targets(targets: Int[Array, '*B']) -> Int[Array, '*B']:
  """Casts to int32 if narrower: in 8 bits, columns 3 and 259 are equal."""
  return targets.astype(jnp.int32) if targets.dtype.itemsize < 4 else targets


def nan_outside_vocabulary(
  stats: TokenStats, targets: Int[Array, '*B'], vocabulary: int
) -> TokenStats:
  """Replaces the log-probability of targets that do not exist by NaN.

  NaN is a constant to autodiff.
  """
  exists = (targets >= 0) & (targets < vocabulary)
  logprobs = jnp.where(exists, stats.logprobs, jnp.nan)
  return dataclasses.replace(stats, logprobs=logprobs)


def softmax_normaliser(scaled: Float[Array, '*B V']) -> Normaliser:
  """Normaliser of logits that are already divided by the temperature."""
  peak = jax.lax.stop_gradient(jnp.max(scaled, axis=-1))
  peak = jnp.where(peak == -jnp.inf, 0, peak)
  shifted, possible = shift_logits(scaled, peak[..., None])
  mass = jnp.where(possible, jnp.exp(shifted), 0)
  total = jnp.sum(mass, axis=-1)
  return Normaliser(
    peak=peak,
    log_total=jnp.log(total),
    mean=jnp.sum(mass * shifted, axis=-1) / total,
  )


def shift_logits(
  scaled: Float[Array, '*B V'], peak: Float[Array, '*B 1']
) -> tuple[Float[Array, '*B V'], Bool[Array, '*B V']]:
  """Returns z − peak, with 0 in place of −∞, and where z was not −∞."""
  possible = scaled > -jnp.inf
  # NaN counts as possible, so that it propagates.
  possible |= jnp.isnan(scaled)
  return jnp.where(possible, scaled - peak, 0), possible


def stats_from_normaliser(
  scaled: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  normaliser: Normaliser,
) -> TokenStats:
  """Statistics of scaled logits with a known normaliser."""
  shifted = scaled - normaliser.peak[..., None]
  target_logits = jnp.sum(
    jnp.where(one_hot(scaled, targets), shifted, 0), axis=-1
  )
  return TokenStats(
    logprobs=target_logits - normaliser.log_total,
    entropy=normaliser.log_total - normaliser.mean,
  )


def one_hot(
  logits: Float[Array, '*B V'], targets: Int[Array, '*B']
) -> Bool[Array, '*B V']:
  """One-hot targets; sums over them stay local if the vocabulary is sharded."""
  columns = jax.lax.broadcasted_iota(
    targets.dtype, logits.shape, logits.ndim - 1
  )
  return columns == targets[..., None]


def moments_from_normaliser(
  scaled: Float[Array, '*B V'], normaliser: Normaliser
) -> TokenMoments:
  """Σ π², Σ π² log π and Σ π² log² π of scaled logits; constants to autodiff."""
  scaled, normaliser = jax.lax.stop_gradient((scaled, normaliser))
  shifted, possible = shift_logits(scaled, normaliser.peak[..., None])
  log_pi = shifted - normaliser.log_total[..., None]
  pi = jnp.where(possible, jnp.exp(log_pi), 0)
  # π log π before any square: log² π may overflow where π is 0.
  weighted = pi * log_pi
  return TokenMoments(
    square=jnp.sum(pi**2, axis=-1),
    square_log=jnp.sum(pi * weighted, axis=-1),
    square_log_square=jnp.sum(weighted**2, axis=-1),
  )


def project_logits(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  impossible: Bool[Array, '... V'],
  soft_cap: int | float | None,
) -> Float[Array, '*B V']:
  """Logits in at least float32, soft-capped, −∞ for impossible tokens.

  Float32 factors are multiplied at full precision: an accelerator's default
  would round them to bfloat16 or TF32. Products of narrower factors are exact
  in float32.

  Args:
    hidden: hidden states.
    unembedding: a column per token of the vocabulary, finite if possible.
    impossible: true for columns of tokens that cannot be sampled.
    soft_cap: bound of |logits|, or `None`.
  """
  logits = jnp.einsum(
    '...d,dv->...v',
    hidden,
    unembedding,
    precision=matmul_precision(hidden, unembedding),
    preferred_element_type=statistics_dtype(hidden, unembedding),
  )
  # An infinite product is an overflow: neither a large logit, which a cap would
  # make an ordinary one, nor the mark of an impossible token.
  logits = jnp.where(jnp.abs(logits) == jnp.inf, jnp.nan, logits)
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  return jnp.where(impossible, -jnp.inf, logits)


def statistics_dtype(
  hidden: Float[Array, '...'], unembedding: Float[Array, '...']
) -> jnp.dtype:
  """Dtype of the statistics: at least float32, never narrower than the inputs."""
  return jnp.dtype(jnp.result_type(hidden, unembedding, jnp.float32))


def matmul_precision(
  hidden: Float[Array, '...'], unembedding: Float[Array, '...']
) -> jax.lax.Precision:
  """Full precision for float32 and wider, the accelerator's default below."""
  narrow = jnp.finfo(jnp.result_type(hidden, unembedding)).bits < 32
  return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
