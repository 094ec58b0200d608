# SPDX-License-Identifier: Apache-2.0
"""Intervals: published quantiles, and coverage in simulations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.evaluation.intervals import (
  Estimate,
  bootstrap_mean,
  bootstrap_sets,
  normal_difference,
  student_mean,
  student_quantile,
)


def unchecked(function: object) -> Any:
  """The function as `Any`, so that the type checker accepts wrong arguments."""
  return function


VALUES = st.lists(st.floats(-1, 1), min_size=2, max_size=30).map(np.array)


@pytest.mark.parametrize(
  ('degrees', 'quantile'),
  [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (120, 1.9799)],
)
def test_student_quantiles_are_the_published_ones(degrees, quantile):
  assert student_quantile(degrees) == pytest.approx(quantile, abs=2e-4)


def test_student_interval_covers_the_mean_19_times_in_20():
  draws = np.random.default_rng(0).normal(1.0, 2.0, (2_000, 3))
  half_widths = student_quantile(2) * draws.std(1, ddof=1) / np.sqrt(3)
  assert np.mean(np.abs(draws.mean(1) - 1.0) < half_widths) == pytest.approx(
    0.95, abs=0.015
  )
  one = student_mean(draws[0])
  assert one.high == pytest.approx(draws[0].mean() + half_widths[0])


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
  with pytest.raises(
    ValueError, match='values of an estimate must not be empty'
  ):
    student_mean(np.array([]))
  with pytest.raises(
    ValueError, match='values of an estimate must not be empty'
  ):
    bootstrap_mean(np.array([]))
  with pytest.raises(ValueError, match='degrees must be at least 1, got 0'):
    student_quantile(0)


def test_a_single_problem_has_no_interval():
  one, many = np.array([0.3]), np.array([0.0, 1.0])
  kind = 'one problem, no interval'
  assert bootstrap_mean(one) == Estimate(0.3, kind=kind)
  assert bootstrap_sets([one]) == Estimate(0.3, kind=kind)
  # The variance of the set of one is not known.
  mean = bootstrap_sets([many, one])
  assert (mean.value, mean.low, mean.high) == (0.4, None, None)
  assert bootstrap_sets([many, many]).low == 0.0


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
  with pytest.raises(ValueError, match='standard errors must be finite and at'):
    normal_difference(0.3, 0.5, -0.03, 0.04)


@pytest.mark.parametrize(
  ('low', 'high', 'sign'), [(0.1, 0.2, 1), (-0.2, -0.1, -1), (-0.1, 0.1, 0)]
)
def test_sign_is_0_if_the_interval_contains_0(low, high, sign):
  assert Estimate((low + high) / 2, low, high).sign == sign
  assert Estimate(0.5).sign == 0


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'values',
  [
    np.ma.array([1.0, 9.0], mask=[False, True]),
    np.array([1.0, np.nan]),
    np.array([1.0, np.inf]),
    np.array([]),
    np.ones((2, 2)),
    np.array(['1', '2']),
    np.array([1, 2], object),
    np.array([1j, 2]),
    [1.0, 2.0],
  ],
)
@pytest.mark.parametrize(
  'estimate', [student_mean, bootstrap_mean, lambda v: bootstrap_sets([v])]
)
def test_refuses_values_without_a_mean(estimate, values):
  with pytest.raises((TypeError, ValueError), match='must'):
    estimate(values)


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'call',
  [
    lambda: bootstrap_sets([]),
    lambda: bootstrap_mean(np.ones(2), resamples=0),
    lambda: bootstrap_sets([np.ones(2)], seed=-1),
    lambda: student_quantile(0),
    lambda: unchecked(student_quantile)(2.5),
    lambda: unchecked(student_quantile)(True),
    lambda: normal_difference(0.0, np.nan, 0.1, 0.1),
    lambda: normal_difference(0.0, 1.0, np.nan, 0.1),
    lambda: normal_difference(0.0, 1.0, None, -0.1),
    lambda: unchecked(normal_difference)('0', 1.0, 0.1, 0.1),
  ],
)
def test_refuses_numbers_out_of_range_and_other_types(call):
  with pytest.raises((TypeError, ValueError), match='must'):
    call()


def test_student_quantile_of_many_degrees_is_that_of_the_normal():
  quantiles = [student_quantile(n) for n in (999, 1000, 1001, 10**6, 10**9)]
  assert quantiles == sorted(quantiles, reverse=True)
  assert quantiles[1] == pytest.approx(1.962339, abs=2e-6)
  assert quantiles[-1] == pytest.approx(1.959964, abs=1e-6)


def test_means_of_float16_values_are_computed_in_float64():
  values = np.full(70_000, 0.1, np.float16)
  assert student_mean(values).value == pytest.approx(0.1, abs=1e-4)
