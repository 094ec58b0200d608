# SPDX-License-Identifier: Apache-2.0
"""Formulas of the token-level losses, on a batch of one token."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.objectives import (
  cispo,
  clipped_surrogate,
  dppo,
  policy_gradient,
  sapo,
)
from covrl.types import TokenStats


def on_one_token(loss, log_ratio, advantage, old=-3.0):
  """Value, gradient and auxiliary output on a batch of one token."""
  context = {
    'advantages': jnp.full((1, 1), float(advantage)),
    'old_logprobs': jnp.full((1, 1), old),
    'weights': jnp.ones((1, 1)),
  }
  stats = TokenStats(
    logprobs=context['old_logprobs'] + log_ratio, entropy=jnp.zeros((1, 1))
  )
  (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
    stats, **context
  )
  return (
    float(value),
    float(signal.logprobs[0, 0]),
    jax.tree.map(lambda x: x[0, 0].item(), aux),
  )


@given(
  st.floats(-25, 25),
  st.floats(-3, 3),
  st.floats(0, 0.9),
  st.floats(0, 2),
  st.sampled_from([None, 1.5, 3.0]),
)
@settings(max_examples=30, deadline=None)
def test_clipped_surrogate_equals_its_formula(
  log_ratio, advantage, low, high, dual_clip
):
  advantage, log_ratio = np.float32(advantage), np.float32(log_ratio)
  # The loss computes with the sum, rounded to float32.
  old = np.float32(-3.0)
  log_ratio = np.float32(np.float32(old + log_ratio) - old)
  value, gradient, aux = on_one_token(
    functools.partial(
      clipped_surrogate, low=low, high=high, dual_clip=dual_clip
    ),
    log_ratio,
    advantage,
  )
  ratio = math.exp(max(-20, min(20, log_ratio)))
  expected = -min(
    advantage * ratio, advantage * max(1 - low, min(1 + high, ratio))
  )
  if dual_clip and advantage < 0:
    expected = min(expected, -advantage * dual_clip)
  assert value == pytest.approx(expected, rel=1e-5, abs=1e-30)
  assert aux.clipped or gradient == pytest.approx(
    -advantage * ratio, rel=1e-5, abs=1e-30
  )
  assert gradient == 0 or not aux.clipped


@pytest.mark.parametrize(
  ('log_ratio', 'advantage', 'clipped'),
  [
    (0.5, 1, True),
    (0.5, -1, False),
    (-0.5, 1, False),
    (-0.5, -1, True),
    (1.5, -1, True),
    (25, -1, True),
    (-25, 1, True),
    (0.1, 1, False),
    (0.5, 0, False),
  ],
)
def test_clipped_surrogate_clips_as_ppo(log_ratio, advantage, clipped):
  loss = functools.partial(clipped_surrogate, dual_clip=3)
  _, gradient, aux = on_one_token(loss, log_ratio, advantage)
  assert aux.clipped == clipped
  assert (gradient == 0) == (clipped or advantage == 0)
  assert aux.log_ratio == pytest.approx(log_ratio, rel=1e-6)


def test_gradient_on_the_bounds_is_full(x64):
  # A ratio of exactly 2 is on the bound of high=1.
  _, gradient, aux = on_one_token(
    functools.partial(clipped_surrogate, low=1, high=1), math.log(2.0), 1, 0.0
  )
  assert aux.ratio == 2
  assert gradient == -2
  assert not aux.clipped


def test_policy_gradient_clamps_the_ratio_if_bounded():
  value, gradient, aux = on_one_token(policy_gradient, 25.0, 1)
  assert gradient == value == pytest.approx(-math.exp(25), rel=1e-5)
  assert not aux.clipped
  clamped = functools.partial(policy_gradient, max_log_ratio=20.0)
  value, gradient, aux = on_one_token(clamped, 25.0, 1)
  assert value == pytest.approx(-math.exp(20), rel=1e-5)
  assert gradient == 0
  assert aux.clipped
  assert aux.log_ratio == 25


def test_cispo_truncates_and_keeps_the_gradient():
  value, gradient, aux = on_one_token(cispo, 2.0, 0.5)
  assert gradient == pytest.approx(-0.5 * 5)
  assert value == pytest.approx(-0.5 * 5 * -1.0)
  assert not aux.clipped
  assert aux.ratio == pytest.approx(math.exp(2.0), rel=1e-5)


@pytest.mark.parametrize('advantage', [0.7, -0.7])
def test_sapo_equals_its_formula(advantage):
  sharpness = 1.0 if advantage > 0 else 1.05
  ratio = math.exp(0.4)
  gate = 1 / (1 + math.exp(-sharpness * (ratio - 1)))
  value, gradient, _ = on_one_token(sapo, 0.4, advantage)
  assert value == pytest.approx(-advantage * gate * 4 / sharpness, rel=1e-5)
  slope = 4 * gate * (1 - gate)
  assert gradient == pytest.approx(-advantage * ratio * slope, rel=1e-5)


@pytest.mark.parametrize(
  ('old', 'new', 'advantage', 'clipped'),
  [
    # A rare token may grow a hundredfold; PPO would clip it at 1.2.
    (0.001, 0.1, 1, False),
    # A common one may not lose a fifth; PPO would barely clip that.
    (0.99, 0.8, -1, True),
    (0.99, 0.8, 1, False),
    (0.5, 0.7, 1, True),
    (0.5, 0.7, -1, False),
    (0.5, 0.6, 1, False),
  ],
)
def test_dppo_clips_by_total_variation(old, new, advantage, clipped):
  log_ratio = math.log(new) - math.log(old)
  value, gradient, aux = on_one_token(dppo, log_ratio, advantage, math.log(old))
  assert aux.clipped == clipped
  expected = 0 if clipped else -advantage * new / old
  assert value == pytest.approx(expected, rel=1e-5)
  assert gradient == pytest.approx(expected, rel=1e-5)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.sampled_from([1, -1]))
@settings(max_examples=25, deadline=None)
def test_dppo_clips_by_divergence(old, new, advantage):
  distance = old * math.log(old / new) + (1 - old) * math.log(
    (1 - old) / (1 - new)
  )
  bound = 0.05
  if abs(distance - bound) < 1e-4:
    return
  loss = functools.partial(dppo, low=bound, high=bound, measure='kl')
  _, _, aux = on_one_token(loss, math.log(new / old), advantage, math.log(old))
  is_outward = (new > old) == (advantage > 0)
  assert aux.clipped == (distance > bound and is_outward)


@pytest.mark.parametrize(('old', 'new'), [(0.0, -2.0), (-2.0, 0.0), (0.0, 0.0)])
def test_dppo_is_finite_for_tokens_of_probability_one(old, new):
  loss = functools.partial(dppo, measure='kl')
  for advantage in (1, -1):
    value, gradient, aux = on_one_token(loss, new - old, advantage, old)
    assert math.isfinite(value)
    assert math.isfinite(gradient)
    assert aux.clipped == ((new - old) * advantage > 0)


def test_dppo_truncation_bounds_the_gradient():
  loss = functools.partial(dppo, max_ratio=1.5)
  _, gradient, aux = on_one_token(loss, math.log(10), 1, math.log(0.001))
  assert gradient == pytest.approx(-1.5)
  assert aux.ratio == pytest.approx(10, rel=1e-5)
