# SPDX-License-Identifier: Apache-2.0
"""Intervals: published quantiles, and coverage in simulations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.evaluation.intervals import (
  Estimate,
  bootstrap_mean,
  normal_difference,
  student_mean,
  student_quantile,
)

VALUES = st.lists(st.floats(-1, 1), min_size=2, max_size=30).map(np.array)


@pytest.mark.parametrize(
  ('degrees', 'quantile'),
  [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (120, 1.9799)],
)
def test_student_quantiles_are_the_published_ones(degrees, quantile):
  assert student_quantile(degrees) == pytest.approx(quantile, abs=2e-4)


def test_student_interval_covers_the_mean_19_times_in_20():
  draws = np.random.default_rng(0).normal(1.0, 2.0, (2_000, 3))
  half = student_quantile(2) * draws.std(1, ddof=1) / np.sqrt(3)
  assert np.mean(np.abs(draws.mean(1) - 1.0) < half) == pytest.approx(
    0.95, abs=0.015
  )
  one = student_mean(draws[0])
  assert one.high == pytest.approx(draws[0].mean() + half[0])


def test_bootstrap_interval_covers_about_19_times_in_20():
  rng = np.random.default_rng(1)
  hits = 0
  for seed in range(300):
    values = (rng.random(100) < 0.3).astype(float)
    estimate = bootstrap_mean(values, resamples=400, seed=seed)
    assert estimate.low is not None
    assert estimate.high is not None
    hits += estimate.low <= 0.3 <= estimate.high
  assert hits / 300 == pytest.approx(0.94, abs=0.04)


@settings(deadline=None, max_examples=30)
@given(VALUES)
def test_intervals_contain_the_mean_and_flip_with_the_sign(values):
  for make in (student_mean, lambda v: bootstrap_mean(v, resamples=200)):
    one, other = make(values), make(-values)
    assert one.low is not None
    assert one.high is not None
    assert other.high is not None
    assert other.value == pytest.approx(-one.value)
    assert one.low - 1e-9 <= one.high
    assert other.high == pytest.approx(-one.low)


def test_a_single_value_has_no_interval_and_no_values_are_an_error():
  assert student_mean(np.array([0.3])).low is None
  assert 'one seed' in student_mean(np.array([0.3])).kind
  with pytest.raises(ValueError, match='at least one value'):
    student_mean(np.array([]))
  with pytest.raises(ValueError, match='at least one value'):
    bootstrap_mean(np.array([]))
  with pytest.raises(ValueError, match='degrees must be at least 1, got 0'):
    student_quantile(0)


@pytest.mark.usefixtures('no_annotation_checks')
def test_rows_of_values_are_refused():
  for mean in (student_mean, bootstrap_mean):
    with pytest.raises(ValueError, match=r'must be \[n\], got \(2, 3\)'):
      mean(np.zeros((2, 3)))


def test_normal_difference_adds_variances():
  estimate = normal_difference(0.3, 0.5, 0.03, 0.04)
  assert estimate.value == pytest.approx(0.2)
  assert estimate.high == pytest.approx(0.2 + 1.959964 * 0.05)
  assert normal_difference(0.3, 0.5, None, 0.04).low is None
  with pytest.raises(ValueError, match='standard errors must be at least 0'):
    normal_difference(0.3, 0.5, -0.03, 0.04)


@pytest.mark.parametrize(
  ('low', 'high', 'sign'), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0)]
)
def test_sign_needs_an_interval_off_zero(low, high, sign):
  assert Estimate((low + high) / 2, low, high).sign == sign
  assert Estimate(0.5).sign == 0
