# SPDX-License-Identifier: Apache-2.0
"""Tests of fits of the reward–entropy law."""

from __future__ import annotations

import numpy as np
import pytest

from covrl.evaluation.reward_law import reward_law


def noisy_run(size=300, noise=0.01, seed=1):
  """Entropy and reward of a run that follows the law with a = 0.15, b = 0.9."""
  rng = np.random.default_rng(seed)
  entropy = 0.1 + 1.4 * np.exp(-3 * np.arange(size) / size)
  reward = 0.9 - 0.15 * np.exp(entropy) + noise * rng.normal(size=size)
  return entropy, reward


def test_fit_recovers_the_law():
  entropy, reward = noisy_run()
  law = reward_law(entropy, reward)
  assert law.exponential.a.value == pytest.approx(0.15, abs=0.005)
  assert law.exponential.b.value == pytest.approx(0.9, abs=0.01)
  assert law.exponential.r_squared > law.linear.r_squared
  assert abs(law.exponential.error) < 0.01 < abs(law.linear.error)
  np.testing.assert_allclose(law.at(entropy), reward, atol=0.05)


def test_intervals_cover_the_true_value():
  intervals = [
    reward_law(*noisy_run(seed=seed), resamples=300).exponential.a
    for seed in range(60)
  ]
  covered = np.mean(
    [interval.low < 0.15 < interval.high for interval in intervals]
  )
  assert covered > 0.8


def test_intervals_narrow_with_the_number_of_points():
  few, many = (reward_law(*noisy_run(size)).exponential.a for size in (60, 960))
  assert many.high - many.low < (few.high - few.low) / 2


def test_refuses_few_points_and_constant_entropies():
  with pytest.raises(ValueError, match='at least 9, got'):
    reward_law(np.ones(5), np.ones(5))
  with pytest.raises(ValueError, match='entropies must differ'):
    reward_law(np.ones(30), np.ones(30))
  entropy, reward = noisy_run(30)
  for wrong in (np.nan, np.inf, 1e6, -0.5):
    wrong_entropy = np.where(entropy == entropy[3], wrong, entropy)
    with pytest.raises(
      ValueError, match='rewards must be finite and entropies lie'
    ):
      reward_law(wrong_entropy, reward)


def test_constant_rewards_have_no_explained_variance():
  law = reward_law(np.linspace(1.0, 0.1, 30), np.full(30, 0.5), resamples=10)
  assert np.isnan(law.exponential.r_squared)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('entropy', 'options'),
  [
    (np.ma.array(np.linspace(1, 0.1, 30), mask=[True] + [False] * 29), {}),
    (np.linspace(1, 0.1, 30)[:, None], {}),
    (np.array(['a'] * 30), {}),
    (np.linspace(1, 0.1, 30), {'resamples': 0}),
    (np.linspace(1, 0.1, 30), {'seed': -1}),
  ],
)
def test_refuses_invalid_arrays_and_options(entropy, options):
  with pytest.raises((TypeError, ValueError), match='must'):
    reward_law(entropy, np.linspace(0.1, 1, 30), **options)
