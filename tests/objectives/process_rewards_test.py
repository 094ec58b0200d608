# SPDX-License-Identifier: Apache-2.0
"""Advantages from process rewards, against values by hand and an independent script."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import (
  calibration_error,
  implicit_rewards,
  outcome_cross_entropy,
  pair_accuracy,
  process_advantages,
)

ROWS, WIDTH = 12, 9
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'prime.npz'


@pytest.fixture(scope='module', name='golden')
def load_golden():
  with np.load(GOLDEN) as file:
    return dict(file)


@jax.jit
def _all_forms(process, outcomes, ids, mask, **numbers):
  """Advantages by form, normalisation and whitening: compiled once."""
  return {
    (form, normalise, whiten): process_advantages(
      process,
      outcomes,
      ids,
      mask,
      form=form,
      normalise=normalise,
      whiten=whiten,
      **numbers,
    )
    for form in ('paper', 'code')
    for normalise in (False, True)
    for whiten in (False, True)
  }


def advantages(
  process,
  outcomes,
  ids,
  mask,
  form,
  *,
  normalise=True,
  whiten=True,
  **more,
):
  """Advantages and scale of a few responses, padded with empty ones."""
  process, mask = np.asarray(process, np.float32), np.asarray(mask)
  count, width = mask.shape
  row_padding = (0, ROWS - count)
  coefficients = {
    'process_coefficient': 1.0,
    'outcome_coefficient': 1.0,
    'discount': 1.0,
  }
  results = _all_forms(
    np.pad(process, (row_padding, (0, WIDTH - width))),
    np.pad(np.asarray(outcomes, np.float32), row_padding),
    np.r_[np.asarray(ids), -1 - np.arange(ROWS - count)].astype(np.int32),
    np.pad(mask, (row_padding, (0, WIDTH - width))),
    **coefficients | more,
  )
  result = jax.device_get(results[form, normalise, whiten])
  return result.advantages[:count, :width], result.scale


def golden_input(golden, name):
  x = golden[f'in/{name}']
  return jnp.asarray(np.float32(x) if x.dtype == np.float64 else x)


@pytest.mark.parametrize('form', ['paper', 'code'])
@pytest.mark.parametrize('normalise', [False, True])
def test_advantages_equal_those_of_the_independent_script(
  golden, form, normalise
):
  mask = golden_input(golden, 'mask')
  # Entries off the mask are never read.
  spoilt = np.where(mask, golden_input(golden, 'logprobs'), np.nan)
  process = implicit_rewards(
    jnp.asarray(spoilt), golden_input(golden, 'ref_logprobs'), mask
  )
  for name, whiten in (('advantages', False), ('standardised', True)):
    actual, _ = advantages(
      process,
      golden_input(golden, 'outcomes'),
      golden_input(golden, 'group_ids'),
      mask,
      form,
      normalise=normalise,
      whiten=whiten,
      process_coefficient=5.0,
      outcome_coefficient=5.0,
    )
    expected = golden[f'out/{form}/{normalise}/{name}']
    np.testing.assert_allclose(actual, expected, atol=3e-5)


def unscaled_advantages(process, outcomes, ids, mask, form, **more):
  """Advantages that are neither normalised nor whitened, as lists."""
  actual, _ = advantages(
    process,
    outcomes,
    ids,
    mask,
    form,
    normalise=False,
    whiten=False,
    **more,
  )
  return actual.tolist()


def test_both_forms_equal_values_worked_by_hand():
  # Two responses to a prompt, of two tokens and one; the second is right.
  responses = (
    [[1.0, 3.0], [4.0, 9.0]],
    [0, 1],
    [5, 5],
    [[True] * 2, [True, False]],
  )
  # Means 2 and 4; baselines 4 and 2; outcomes −1 and 1.
  assert unscaled_advantages(*responses, 'paper') == [
    [-3 - 1 - 1, -1 - 1],
    [2 + 1, 0],
  ]
  assert unscaled_advantages(*responses, 'paper', discount=0.5) == [
    [-4.5, -2],
    [3, 0],
  ]
  assert unscaled_advantages(*responses, 'paper', outcome_coefficient=0.0) == [
    [-4, -1],
    [2, 0],
  ]
  # Without the last tokens: rewards (1, 0) and (0), means ½ and 0, and
  # 2 r − ½ each: (1½, −½) and (−½); outcomes at the last token.
  assert unscaled_advantages(*responses, 'code') == [
    [1.5 - 0.5 - 1, -0.5 - 1],
    [-0.5 + 1, 0],
  ]
  assert unscaled_advantages(*responses, 'code', process_coefficient=2.0) == [
    [3 - 1 - 1, -1 - 1],
    [-1 + 1, 0],
  ]


def test_forms_differ_by_a_multiple_of_the_deviation_from_the_mean():
  process = np.random.default_rng(0).normal(size=(8, 6))
  process[:, -1] = 0  # the form of the code drops the last process reward
  responses = process, np.zeros(8), np.arange(8) // 4, np.ones((8, 6), bool)
  difference = np.subtract(
    unscaled_advantages(*responses, 'code'),
    unscaled_advantages(*responses, 'paper'),
  )
  deviation = process - process.mean(axis=1, keepdims=True)
  rest_of_process = np.cumsum(deviation[:, ::-1], axis=1)[:, ::-1]
  np.testing.assert_allclose(difference, rest_of_process / 3, atol=1e-5)


def test_the_scale_is_that_of_the_whole_batch():
  # Each response is alone in its group, with baselines of 0.
  actual, scale = advantages(
    [[0.5, -2.0], [0.25, 0.25], [1.0, 0.0]],
    np.zeros(3),
    np.arange(3),
    np.ones((3, 2), bool),
    'paper',
    whiten=False,
  )
  assert scale == 2
  rest_of_process = np.array([[-1.5, -2.0], [0.5, 0.25], [1.0, 0.0]])
  np.testing.assert_allclose(actual, rest_of_process / 2, rtol=1e-5)


@pytest.mark.parametrize('form', ['paper', 'code'])
def test_order_of_responses_does_not_matter(golden, form):
  mask = np.asarray(golden_input(golden, 'mask'))
  process = np.where(mask, golden['in/logprobs'] - golden['in/ref_logprobs'], 0)
  outcomes, ids = golden['in/outcomes'], golden['in/group_ids']
  order = np.random.default_rng(1).permutation(len(mask))
  original, scale = advantages(process, outcomes, ids, mask, form)
  reordered, reordered_scale = advantages(
    process[order], outcomes[order], ids[order], mask[order], form
  )
  assert scale == reordered_scale
  np.testing.assert_allclose(reordered, original[order], atol=2e-6)


@pytest.mark.parametrize('form', ['paper', 'code'])
def test_equal_outcomes_leave_the_process_rewards(form):
  process = [[1.0, 2.0, 0.0], [3.0, 4.0, 0.0]]
  mask, ids = np.ones((2, 3), bool), np.zeros(2)
  all_right, all_wrong = (
    advantages(process, np.full(2, outcome), ids, mask, form)[0]
    for outcome in (1.0, 0.0)
  )
  assert np.abs(all_right).min() > 0
  np.testing.assert_array_equal(all_right, all_wrong)
  # Equal outcomes and equal process rewards: advantages are exactly 0.
  equal, scale = advantages(np.zeros((2, 3)), np.ones(2), ids, mask, form)
  assert not equal.any()
  assert scale == 0


@pytest.mark.parametrize('form', ['paper', 'code'])
def test_a_response_alone_in_its_group_keeps_its_rewards(form):
  responses = [[1.0, 2.0, 5.0]], [1.0], [3], np.ones((1, 3), bool)
  rest_of_process = {'paper': [8, 7, 5], 'code': [3, 2, 0]}[form]
  assert unscaled_advantages(*responses, form) == [
    [x + 1 for x in rest_of_process]
  ]


def test_numbers_that_are_not_finite_make_advantages_nan():
  mask, ids = np.ones((3, 2), bool), [0, 0, 1]
  for bad in (np.nan, np.inf, -np.inf):
    process = [[1.0, bad], [3.0, 4.0], [1.0, 1.0]]
    actual, scale = advantages(process, np.ones(3), ids, mask, 'paper')
    assert np.isnan(actual).all()
    assert np.isnan(scale)
    # The form of the code drops the last token's reward, unless it is not finite.
    actual, scale = advantages(process, np.ones(3), ids, mask, 'code')
    assert np.isnan(actual).all()
    assert np.isnan(scale)
  outcomes, ones = [1.0, np.nan, 1.0], np.ones((3, 2))
  actual, _ = advantages(ones, outcomes, ids, mask, 'code', whiten=False)
  assert np.isnan(actual[:2]).all()
  assert np.isfinite(actual[2]).all()
  # A response without tokens has no outcome.
  empty = mask.copy()
  empty[1] = False
  actual, _ = advantages(ones, outcomes, ids, empty, 'code')
  assert np.isfinite(actual).all()
  assert not actual[1].any()
  actual, scale = advantages(ones, outcomes, ids, np.zeros_like(mask), 'code')
  assert not actual.any()
  assert scale == 0


@pytest.mark.parametrize('shape', [(0, 2), (2, 0)])
def test_batches_without_tokens_have_a_scale_of_zero(shape):
  empty, ids = jnp.zeros(shape), jnp.zeros(shape[0], int)
  outcomes = jnp.ones(shape[0])
  result = process_advantages(empty, outcomes, ids, jnp.zeros(shape, bool))
  assert result.advantages.shape == shape
  assert result.scale == 0


@pytest.mark.parametrize('label', [-1.0, 2.0, np.nan])
def test_labels_that_are_not_probabilities_make_the_loss_nan(label):
  ones, mask = jnp.ones((1, 2)), jnp.ones((1, 2), bool)
  value, _ = outcome_cross_entropy(
    ones, ref_logprobs=ones, labels=label * ones, mask=mask, weights=ones
  )
  assert np.isnan(value)


def test_outcome_loss_and_gradient_equal_those_of_the_independent_script(
  golden,
):
  mask = golden['in/mask']
  lengths = mask.sum(axis=1, keepdims=True)
  options = {
    'ref_logprobs': np.float32(golden['in/ref_logprobs']),
    'labels': np.repeat(
      golden['in/outcomes'].astype(np.float32)[:, None], WIDTH, 1
    ),
    'mask': mask,
    'weights': np.float32(mask / (lengths * len(mask))),
  }
  logprobs = np.float32(golden['in/logprobs'])
  run = jax.jit(jax.value_and_grad(outcome_cross_entropy, has_aux=True))
  (value, aux), gradient = run(np.where(mask, logprobs, np.nan), **options)
  np.testing.assert_allclose(value, golden['out/loss'], rtol=1e-5)
  log_ratios = np.where(mask, logprobs - options['ref_logprobs'], 0)
  scores = 0.05 * log_ratios.sum(axis=1, keepdims=True)
  np.testing.assert_allclose(
    aux.scores, np.broadcast_to(scores, log_ratios.shape), atol=1e-6
  )
  slope = 0.05 * (1 / (1 + np.exp(-scores)) - options['labels']) / len(mask)
  np.testing.assert_allclose(
    gradient, np.where(mask, slope, 0), rtol=1e-4, atol=1e-8
  )
  packed = {name: x.reshape(6, -1) for name, x in options.items()}
  ids = np.tile(np.repeat(np.array([1, 2], np.int32), WIDTH), (6, 1))
  (packed_value, _), _ = run(logprobs.reshape(6, -1), segment_ids=ids, **packed)
  np.testing.assert_allclose(packed_value, value, rtol=1e-6)


def test_pair_accuracy_equals_that_of_the_independent_script(golden):
  run = jax.jit(pair_accuracy)
  ids = golden['in/group_ids'].astype(np.int32)
  labels = golden['in/outcomes'] > 0.5
  log_ratios = golden['in/logprobs'] - golden['in/ref_logprobs']
  scores = np.float32(np.where(golden['in/mask'], log_ratios, 0).sum(axis=1))
  accuracy = run(scores, labels, ids)
  assert accuracy == pytest.approx(golden['out/pair_accuracy'], rel=1e-6)
  assert run(np.zeros_like(scores), labels, ids) == 0.5
  assert np.isnan(run(scores, np.ones_like(labels), ids))
  # Responses of a group of equal outcomes are in no pair.
  is_mixed = [len(set(labels[ids == group])) == 2 for group in ids]
  assert 0 < sum(is_mixed) < 12
  for row, in_a_pair in enumerate(is_mixed):
    spoilt = np.where(np.arange(12) == row, np.float32(np.nan), scores)
    assert np.isnan(run(spoilt, labels, ids)) == in_a_pair


def test_calibration_error_equals_a_sum_over_bins():
  run = jax.jit(calibration_error)
  probabilities = np.array([0.1, 0.15, 0.9, 1, 0.5, np.nan], np.float32)
  labels = np.array([False, True, True, True, True, True])
  mask = np.isfinite(probabilities)
  # Bins: {0.1, 0.15}, {0.5} and {0.9, 1.0}.
  expected = (abs(0.25 - 1) + 0.5 + 0.1) / 5
  actual = run(probabilities, labels, mask)
  assert actual == pytest.approx(expected, rel=1e-5)
  assert np.isnan(run(probabilities, labels, np.zeros_like(mask)))
  assert np.isnan(run(probabilities, labels, np.ones_like(mask)))
  for impossible in (-0.5, 1.5):
    spoilt = np.where(mask, probabilities, np.float32(impossible))
    assert np.isnan(run(spoilt, labels, np.ones_like(mask)))
  with pytest.raises(ValueError, match=r'bins must be a positive .* got 0'):
    calibration_error(
      jnp.asarray(probabilities), jnp.asarray(labels), jnp.asarray(mask), bins=0
    )


def test_refuses_invalid_options():
  ones, ids = jnp.ones((2, 3)), jnp.zeros(2, int)
  mask, outcomes = jnp.ones((2, 3), bool), jnp.ones(2)
  for coefficient in (0.0, -0.05):
    with pytest.raises(ValueError, match='coefficient must be positive, got'):
      implicit_rewards(ones, ones, mask, coefficient=coefficient)
    with pytest.raises(ValueError, match='coefficient must be positive, got'):
      outcome_cross_entropy(
        ones,
        ref_logprobs=ones,
        labels=ones,
        mask=mask,
        weights=ones,
        coefficient=coefficient,
      )
  form: Any = 'verl'
  with pytest.raises(ValueError, match=r"form must be one of .*, got 'verl'"):
    process_advantages(ones, outcomes, ids, mask, form=form)
