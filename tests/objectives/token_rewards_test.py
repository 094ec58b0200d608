# SPDX-License-Identifier: Apache-2.0
"""Rewards of tokens and coefficients of penalties against worked numbers."""

from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import adapt_coefficient, token_rewards

REWARDS = jnp.array([1.0, -20.0, 3.0])
MASK = jnp.array(
  [
    [False, True, True, False],
    [True, False, True, True],
    [False, False, False, False],
  ]
)
LOG_RATIO = jnp.array(
  [
    [np.nan, 0.1, -0.2, np.nan],
    [0.3, np.inf, 0.0, 0.4],
    [np.nan, np.nan, np.nan, np.nan],
  ]
)


def test_the_reward_is_at_the_last_token_on_the_mask():
  actual = token_rewards(REWARDS, MASK, clip=10.0)
  expected = [[0, 0, 1, 0], [0, 0, 0, -10], [0, 0, 0, 0]]
  np.testing.assert_array_equal(actual.rewards, expected)
  assert actual.clipped.tolist() == [False, True, False]
  assert np.isnan(actual.divergence)


@pytest.mark.parametrize(
  ('kind', 'penalties'),
  [
    ('k1', [0.1, -0.2, 0.3, 0.0, 0.4]),
    ('k2', [0.005, 0.02, 0.045, 0.0, 0.08]),
    ('k3', [np.exp(-x) + x - 1 for x in (0.1, -0.2, 0.3, 0.0, 0.4)]),
  ],
)
def test_penalties_equal_their_formulas(kind, penalties):
  actual = token_rewards(
    REWARDS, MASK, log_ratio=LOG_RATIO, coefficient=0.5, kind=kind
  )
  expected = np.zeros((3, 4))
  expected[np.asarray(MASK)] = -0.5 * np.array(penalties)
  expected[0, 2] += 1
  expected[1, 3] -= 20
  np.testing.assert_allclose(actual.rewards, expected, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(actual.divergence, np.mean(penalties), rtol=1e-5)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(hnp.arrays(bool, (3, 4)))
def test_token_rewards_add_up_to_the_reward_of_the_response(mask):
  actual = jax.jit(token_rewards)(REWARDS, mask)
  expected = np.where(mask.any(axis=1), REWARDS, 0)
  np.testing.assert_array_equal(actual.rewards.sum(axis=1), expected)
  assert not actual.rewards[~mask].any()


def test_a_nan_reward_affects_no_other_response():
  actual = token_rewards(REWARDS.at[2].set(jnp.nan), MASK, clip=10.0)
  assert np.isfinite(actual.rewards).all()
  assert not actual.clipped[2]


@pytest.mark.parametrize(
  ('divergence', 'factor'),
  [(0.1, 1.0), (0.11, 1.01), (0.5, 1.02), (0.0, 0.98), (np.nan, 1.0)],
)
def test_coefficients_adapt_by_at_most_a_fifth_per_horizon(divergence, factor):
  actual = adapt_coefficient(
    jnp.float32(0.05),
    jnp.float32(divergence),
    target=0.1,
    horizon=1000,
    sequences=100,
  )
  np.testing.assert_allclose(actual, 0.05 * factor, rtol=1e-6)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('options', 'sentence'),
  [
    ({'clip': 0.0}, 'clip must be positive, got 0'),
    ({'coefficient': -1.0}, 'coefficient must be finite and at least 0'),
    ({'coefficient': 0.1}, 'log_ratio must be given .* got None and 0.1'),
    (
      {'coefficient': jnp.float32(0.5)},
      'log_ratio must be given .* got None and 0.5',
    ),
    ({'log_ratio': LOG_RATIO[:1]}, r'log_ratio must be \[S, T\] = \(3, 4\)'),
    (
      {'log_ratio': LOG_RATIO, 'kind': 'k4'},
      "kind must be one of .*, got 'k4'",
    ),
  ],
)
def test_refuses_invalid_options(options, sentence):
  with pytest.raises(ValueError, match=sentence):
    token_rewards(REWARDS, MASK, **options)


def test_a_target_of_zero_is_refused():
  one = jnp.float32(1)
  with pytest.raises(ValueError, match='target must be positive, got 0'):
    adapt_coefficient(one, one, target=0.0, horizon=1.0, sequences=1)
  with pytest.raises(
    ValueError, match=r'horizon must be above 20, 0\.2 of the'
  ):
    adapt_coefficient(one, one, target=0.1, horizon=20.0, sequences=100)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'changes',
  [
    {'coefficient': jnp.float32(-1)},
    {'coefficient': jnp.float32(jnp.nan)},
    {'coefficient': jnp.ones(3)},
    {'coefficient': '1'},
    {'divergence': jnp.ones(3)},
  ],
)
def test_a_coefficient_is_a_number_of_at_least_0(changes):
  one: dict[str, Any] = {
    'coefficient': jnp.float32(1),
    'divergence': jnp.float32(1),
  }
  with pytest.raises((TypeError, ValueError), match='must'):
    adapt_coefficient(
      **one | changes, target=0.1, horizon=1000.0, sequences=100
    )
