# SPDX-License-Identifier: Apache-2.0
"""Per-token statistics by way of all logits: short, and what others are tested by.

Nothing here treats a `[..., V]` array as precious. Logits of −∞ are tokens that
cannot be sampled; they are taken out before anything is multiplied, since 0 · ∞
is no number, in a derivative either.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, TypeAlias, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.types import TokenMoments, TokenStats

# One number, or one per token.
Temperature: TypeAlias = int | float | Float[Array, '...']


class Normaliser(NamedTuple):
  """What turns logits z of a token into log-probabilities, without overflow.

  log π_j = (z_j − peak) − log_total, and H = log_total − mean, both exact to
  rounding however large the logits are.

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


@overload
def token_stats_from_logits(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  moments: bool,
) -> TokenStats | tuple[TokenStats, TokenMoments]: ...


def token_stats_from_logits(
  logits: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  *,
  temperature: Temperature = 1.0,
  moments: bool = False,
) -> TokenStats | tuple[TokenStats, TokenMoments]:
  """What the policy thinks of each token, given the logits.

    π = softmax(logits / temperature)
    logprobs = log π(target),    entropy = −Σ π log π

  Computed in at least float32. logprobs ≤ 0 ≤ entropy holds exactly.

  Args:
    logits: −∞ marks a token that cannot be sampled.
    targets: in [0, V); others give numbers that mean nothing.
    temperature: positive, of all tokens or of each; a constant to autodiff.
    moments: whether Σ π², Σ π² log π and Σ π² log² π are wanted as well.

  Returns:
    The statistics, and the moments if asked for. Moments are constants to
    autodiff.

  Raises:
    ValueError: if a temperature given as a number is not positive.

  >>> stats = token_stats_from_logits(jnp.zeros((1, 4)), jnp.array([2]))
  >>> round(float(jnp.exp(stats.entropy[0])), 4)
  4.0
  """
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  scaled = logits.astype(dtype) / token_temperatures(
    temperature, targets, dtype
  )
  stats = closed_form(scaled, targets)
  if not moments:
    return stats
  return stats, moments_of(scaled, normalise(scaled))


@jax.custom_jvp
def closed_form(
  scaled: Float[Array, '*B V'], targets: Int[Array, '*B']
) -> TokenStats:
  """Statistics of logits that are divided by the temperature already.

  Differentiated in closed form: autodiff of the forward pass keeps more arrays
  of the size of the logits, and takes two to three times as long.
  """
  return describe(scaled, targets, normalise(scaled))


@closed_form.defjvp
def _closed_form_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[TokenStats, TokenStats]:
  """d log π(a) = Σ (1{a} − π) dz and dH = −Σ π (log π + H) dz."""
  (scaled, targets), (change, _) = primals, tangents
  normaliser = normalise(scaled)
  shifted, possible = shift(scaled, normaliser.peak[..., None])
  log_pi = shifted - normaliser.log_total[..., None]
  pi = jnp.where(possible, jnp.exp(log_pi), 0)
  surplus = pi * (shifted - normaliser.mean[..., None])
  change = jnp.where(possible, change, 0)
  tangent = TokenStats(
    logprobs=jnp.sum((is_target(scaled, targets) - pi) * change, axis=-1),
    entropy=-jnp.sum(surplus * change, axis=-1),
  )
  return describe(scaled, targets, normaliser), tangent


def token_temperatures(
  temperature: Temperature, targets: Int[Array, '*B'], dtype: jnp.dtype
) -> Float[Array, '*B 1']:
  """One temperature per token, beside its logits."""
  if isinstance(temperature, int | float) and not temperature > 0:
    raise ValueError(f'temperature must be positive, got {temperature:g}')
  each = jnp.broadcast_to(jnp.asarray(temperature, dtype), targets.shape)
  return jax.lax.stop_gradient(each)[..., None]


def normalise(scaled: Float[Array, '*B V']) -> Normaliser:
  """The normaliser of logits that are divided by the temperature already."""
  peak = jax.lax.stop_gradient(jnp.max(scaled, axis=-1))
  peak = jnp.where(peak == -jnp.inf, 0, peak)
  shifted, possible = shift(scaled, peak[..., None])
  mass = jnp.where(possible, jnp.exp(shifted), 0)
  total = jnp.sum(mass, axis=-1)
  return Normaliser(
    peak=peak,
    log_total=jnp.log(total),
    mean=jnp.sum(mass * shifted, axis=-1) / total,
  )


def shift(
  scaled: Float[Array, '*B V'], peak: Float[Array, '*B 1']
) -> tuple[Float[Array, '*B V'], Bool[Array, '*B V']]:
  """z − peak with 0 in place of −∞, and where there was no −∞."""
  possible = scaled > -jnp.inf
  # A NaN is no −∞: it has to show.
  possible |= jnp.isnan(scaled)
  return jnp.where(possible, scaled - peak, 0), possible


def describe(
  scaled: Float[Array, '*B V'],
  targets: Int[Array, '*B'],
  normaliser: Normaliser,
) -> TokenStats:
  """Statistics of logits, given their normaliser."""
  shifted = scaled - normaliser.peak[..., None]
  chosen = jnp.sum(jnp.where(is_target(scaled, targets), shifted, 0), axis=-1)
  return TokenStats(
    logprobs=chosen - normaliser.log_total,
    entropy=normaliser.log_total - normaliser.mean,
  )


def is_target(
  logits: Float[Array, '*B V'], targets: Int[Array, '*B']
) -> Bool[Array, '*B V']:
  """One-hot targets; a sum over them stays local where the vocabulary is split."""
  columns = jax.lax.broadcasted_iota(
    targets.dtype, logits.shape, logits.ndim - 1
  )
  return columns == targets[..., None]


def moments_of(
  scaled: Float[Array, '*B V'], normaliser: Normaliser
) -> TokenMoments:
  """Σ π², Σ π² log π and Σ π² log² π, constants to autodiff."""
  scaled, normaliser = jax.lax.stop_gradient((scaled, normaliser))
  shifted, possible = shift(scaled, normaliser.peak[..., None])
  log_pi = shifted - normaliser.log_total[..., None]
  pi = jnp.where(possible, jnp.exp(log_pi), 0)
  # π log π before any square: log² π may overflow where π is 0.
  weighted = pi * log_pi
  return TokenMoments(
    square=jnp.sum(pi**2, axis=-1),
    square_log=jnp.sum(pi * weighted, axis=-1),
    square_log_square=jnp.sum(weighted**2, axis=-1),
  )


def project(
  hidden: Float[Array, '*B D'],
  unembedding: Float[Array, 'D V'],
  impossible: Bool[Array, '*1 V'],
  soft_cap: int | float | None,
) -> Float[Array, '*B V']:
  """Logits in at least float32, capped, −∞ for what cannot be sampled.

  An accelerator's default would round float32 factors to bfloat16 or TF32; the
  product of narrower ones is exact in float32.
  """
  logits = jnp.einsum(
    '...d,dv->...v',
    hidden,
    unembedding,
    precision=product_precision(hidden, unembedding),
    preferred_element_type=statistics_dtype(hidden, unembedding),
  )
  if soft_cap is not None:
    logits = soft_cap * jnp.tanh(logits / soft_cap)
  return jnp.where(impossible, -jnp.inf, logits)


def statistics_dtype(
  hidden: Float[Array, '...'], unembedding: Float[Array, '...']
) -> jnp.dtype:
  """At least float32, never narrower than the inputs."""
  return jnp.dtype(jnp.result_type(hidden, unembedding, jnp.float32))


def product_precision(
  hidden: Float[Array, '...'], unembedding: Float[Array, '...']
) -> jax.lax.Precision:
  """Full for wide inputs; the accelerator's own for narrow ones."""
  narrow = jnp.finfo(jnp.result_type(hidden, unembedding)).bits < 32
  return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
