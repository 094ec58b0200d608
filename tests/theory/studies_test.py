# SPDX-License-Identifier: Apache-2.0
"""Claims that train policies, and the law's fit."""

from __future__ import annotations

import numpy as np
import pytest
from theory_checks import check, is_study

from covrl.evaluation.reward_law import reward_law
from covrl.theory.table import CLAIMS


@pytest.mark.parametrize(
  'claim', [c for c in CLAIMS if is_study(c)], ids=lambda claim: claim.name
)
def test_a_study_is_as_recorded_and_a_wrong_formula_is_seen(claim):
  check(claim)


def law_with_noise(size=300, noise=0.01, seed=1):
  random = np.random.default_rng(seed)
  entropy = 0.1 + 1.4 * np.exp(-3 * np.arange(size) / size)
  reward = 0.9 - 0.15 * np.exp(entropy) + noise * random.normal(size=size)
  return entropy, reward


def test_a_fit_finds_the_law():
  entropy, reward = law_with_noise()
  law = reward_law(entropy, reward)
  assert law.exponential.a.value == pytest.approx(0.15, abs=0.005)
  assert law.exponential.b.value == pytest.approx(0.9, abs=0.01)
  assert law.exponential.r_squared > law.linear.r_squared
  assert abs(law.exponential.error) < 0.01 < abs(law.linear.error)
  np.testing.assert_allclose(law.at(entropy), reward, atol=0.05)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
  intervals = [
    reward_law(*law_with_noise(seed=seed), resamples=300).exponential.a
    for seed in range(60)
  ]
  covered = np.mean([one.low < 0.15 < one.high for one in intervals])
  assert covered > 0.8


def test_intervals_tighten_with_the_number_of_points():
  few, many = (
    reward_law(*law_with_noise(size)).exponential.a for size in (60, 960)
  )
  assert many.high - many.low < (few.high - few.low) / 2


def test_what_cannot_be_fitted_is_refused():
  with pytest.raises(ValueError, match='nine points or more'):
    reward_law(np.ones(5), np.ones(5))
  with pytest.raises(ValueError, match='entropies that differ'):
    reward_law(np.ones(30), np.ones(30))
