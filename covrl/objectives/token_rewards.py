# SPDX-License-Identifier: Apache-2.0
"""Rewards of tokens: a response's reward at its end, minus a divergence."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from covrl.array_checks import (
  check_array,
  check_number,
  concrete_number,
)
from covrl.objectives.base import Number
from covrl.objectives.divergences import DivergenceEstimator, divergence
from covrl.statistics.exact import exact_mean
from covrl.types import Scalar

# Largest relative error that `adapt_coefficient` responds to.
_MAX_ERROR = 0.2


class TokenRewards(NamedTuple):
  """Rewards of tokens.

  Attributes:
    rewards: reward of each token, 0 off the mask.
    divergence: mean divergence of the tokens, in nats; NaN if it was not
      computed, or without tokens.
    clipped: true for responses whose reward was clipped.
  """

  rewards: Float[Array, 'S T']
  divergence: Scalar
  clipped: Bool[Array, ' S']


def token_rewards(
  rewards: Float[Array, ' S'],
  mask: Bool[Array, 'S T'],
  *,
  clip: Number | None = None,
  log_ratio: Float[Array, 'S T'] | None = None,
  coefficient: Number = 0.0,
  kind: DivergenceEstimator = 'k1',
) -> TokenRewards:
  """Rewards of the last tokens of responses, and penalties of all tokens.

    r_t = clip(R) · 1{t is the last token on the mask} − coefficient · KL_t

  Args:
    rewards: R, one per response.
    mask: true for response tokens.
    clip: bound of |R|; `None` does not clip. With a bound, rewards that are not
      finite become NaN.
    log_ratio: log π_old − log π_ref of each token, in nats; `None` without a
      penalty.
    coefficient: coefficient of the penalty.
    kind: estimator of the divergence; see `covrl.losses.divergence`.

  Raises:
    TypeError: an argument has another type than its annotation.
    ValueError: shapes differ, an option is out of range, or there is a
      coefficient without `log_ratio`.

  >>> mask = jnp.array([[True, True, False]])
  >>> token_rewards(jnp.array([12.0]), mask, clip=10.0).rewards.tolist()
  [[0.0, 10.0, 0.0]]

  References:
    Ouyang et al., Training Language Models to Follow Instructions with Human
    Feedback, arXiv:2203.02155, eq. 2; verl and OpenRLHF (clipped rewards).
  """
  shape = check_array('mask', mask, 'bool', 'S T')
  check_array('rewards', rewards, 'real', 'S', shape[:1])
  check_number('coefficient', coefficient, 0)
  dtype = jnp.promote_types(rewards.dtype, jnp.float32)
  rewards = rewards.astype(dtype)
  clipped = jnp.zeros(rewards.shape, bool)
  if clip is not None:
    check_number('clip', clip, 0, is_open=True)
    clipped = jnp.any(mask, axis=1) & (jnp.abs(rewards) > clip)
    clipped_rewards = jnp.clip(rewards, -clip, clip)
    rewards = jnp.where(jnp.isfinite(rewards), clipped_rewards, jnp.nan)
  tokens_left = jnp.cumsum(mask[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
  at_last_token = jnp.where(mask & (tokens_left == 1), rewards[:, None], 0)
  if log_ratio is None:
    number = concrete_number(coefficient, 'coefficient', allow_schedule=False)
    if number:
      raise ValueError(
        'log_ratio must be given with a coefficient other than 0, got None and'
        f' {number:g}'
      )
    return TokenRewards(at_last_token, jnp.asarray(jnp.nan, dtype), clipped)
  check_array('log_ratio', log_ratio, 'real', 'S T', shape)
  penalties = divergence(jnp.where(mask, log_ratio, 0), kind)
  return TokenRewards(
    at_last_token - coefficient * jnp.where(mask, penalties, 0).astype(dtype),
    exact_mean(penalties, mask),
    clipped,
  )


def adapt_coefficient(
  coefficient: Scalar,
  divergence: Scalar,
  *,
  target: Number,
  horizon: Number,
  sequences: Number,
) -> Scalar:
  """Next coefficient of a penalty that holds the divergence at a target.

    coefficient · (1 + clip(divergence / target − 1, ±0.2) · sequences / horizon)

  Args:
    coefficient: the present coefficient.
    divergence: mean divergence that was measured with it, in nats; if it is not
      finite, the coefficient stays.
    target: divergence to hold, in nats.
    horizon: sequences after which an error of 20 % or more has changed the
      coefficient by 20 %.
    sequences: number of sequences of the measurement.

  Raises:
    TypeError: an argument is not a number.
    ValueError: the target or the horizon is not positive, the coefficient is
      negative or the divergence not a scalar, or the horizon is so short that the
      coefficient could become negative.

  >>> adapt_coefficient(jnp.float32(1.0), jnp.float32(0.2), target=0.1,
  ...                   horizon=1000.0, sequences=500.0).item()
  1.100000023841858

  References:
    Ziegler et al., Fine-Tuning Language Models from Human Preferences,
    arXiv:1909.08593, section 2.2.
  """
  check_number('coefficient', coefficient, 0)
  check_array('divergence', divergence, 'real', '')
  check_number('target', target, 0, is_open=True)
  check_number('horizon', horizon, 0, is_open=True)
  check_number('sequences', sequences, 0)
  horizon_number, sequences_number = (
    concrete_number(value, name, allow_schedule=False)
    for name, value in (('horizon', horizon), ('sequences', sequences))
  )
  if horizon_number is not None and sequences_number is not None:
    least = _MAX_ERROR * sequences_number
    if horizon_number <= least:
      raise ValueError(
        f'horizon must be above {least:g}, {_MAX_ERROR:g} of the sequences, or '
        f'the coefficient could become negative, got {horizon_number:g}'
      )
  error = jnp.clip(divergence / target - 1, -_MAX_ERROR, _MAX_ERROR)
  factor = 1 + error * sequences / horizon
  return jnp.where(jnp.isfinite(divergence), coefficient * factor, coefficient)
