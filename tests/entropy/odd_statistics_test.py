# SPDX-License-Identifier: Apache-2.0
"""Statistics, masks and traced options out of range: handled as documented."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.schedules import WrappedSchedule

import covrl
from covrl import TokenMoments, TokenStats
from covrl.entropy import top_entropy, top_score

SHAPE = (4, 10)
ONES = jnp.ones(SHAPE, bool)


@pytest.fixture
def batch():
  """Statistics and context of forty valid tokens."""
  rng = np.random.default_rng(0)
  old = jnp.asarray(-rng.exponential(size=SHAPE), jnp.float32)
  stats = TokenStats(
    logprobs=old + 0.1,
    entropy=jnp.asarray(rng.uniform(0, 2, SHAPE), jnp.float32),
  )
  context = {
    'advantages': jnp.asarray(rng.normal(size=SHAPE), jnp.float32),
    'old_logprobs': old,
    'old_entropy': stats.entropy,
    'mask': ONES,
    'weights': jnp.full(SHAPE, 1 / 40),
    'key': jax.random.key(0),
    'step': jnp.asarray(0),
  }
  return stats, context


def first_selection(token_tx, stats, context):
  """The chain's first selection."""
  explain = jax.jit(functools.partial(covrl.explain, token_tx))
  return explain(stats, **context)[0]


@pytest.mark.parametrize(
  ('fraction', 'expected'), [(np.nan, 0), (-1.0, 0), (0.0, 0), (7.0, 40)]
)
def test_traced_fractions_outside_their_range_are_clamped(fraction, expected):
  assert int(top_of_ones(fraction).sum()) == expected


@jax.jit
def top_of_ones(fraction):
  """Selects a fraction of forty tokens of equal score."""
  return covrl.select_top(jnp.ones(SHAPE), ONES, fraction=fraction)


# Without `allow_large` a fraction is clamped to [0, 0.05]: two of forty tokens.
@pytest.mark.parametrize(
  ('fraction', 'quota'), [(0.5, 2), (-0.5, 0), (np.nan, 0), (0.04, 1)]
)
def test_scheduled_fractions_are_clamped_and_counted(batch, fraction, quota):
  selection = select_fraction(jnp.asarray(fraction), *batch)
  assert int(selection.mask.sum()) == int(selection.quota) == quota
  assert int(selection.clamped) == (fraction != 0.04)


@jax.jit
def select_fraction(fraction, stats, context):
  """Selects a traced fraction of the tokens by their score."""
  return top_score(lambda step: fraction)(stats, **context)


def test_traced_bounds_that_are_inverted_select_nothing(batch):
  @jax.jit
  def choose(low, high):
    tx = covrl.clip_cov(0.05, low=low, high=high, minimum=1)
    return covrl.explain(tx, batch[0], **batch[1])[0]

  assert int(choose(5.0, -5.0).mask.sum()) == 0
  assert int(choose(-5.0, 5.0).mask.sum()) == 2


@pytest.mark.parametrize('entry', ['old_logprobs', 'advantages', 'old_entropy'])
@pytest.mark.parametrize('value', [np.nan, -np.inf, np.inf])
def test_statistics_that_are_not_finite_are_left_out_and_counted(
  batch, entry, value
):
  stats, context = batch
  clean = select_by_state_score(stats, context)
  assert int(clean.nonfinite) == 0
  best = tuple(np.argwhere(np.asarray(clean.mask))[0])
  spoilt = context | {entry: context[entry].at[best].set(value)}
  selection = select_by_state_score(stats, spoilt)
  assert int(selection.nonfinite) == 1
  assert int(selection.eligible) == 39
  assert not bool(selection.mask[best])
  assert int(selection.mask.sum()) == int(selection.quota)
  assert bool(jnp.isfinite(selection.scores).all())


@jax.jit
def select_by_state_score(stats, context):
  """Selects by (log π(a) + H) · A, which reads entries of the context."""
  return top_score(0.05, score='state')(stats, **context)


@pytest.mark.parametrize('value', [np.nan, -np.inf])
def test_current_statistics_that_are_not_finite_are_not_selected(batch, value):
  stats, context = batch
  spoilt = TokenStats(
    logprobs=stats.logprobs.at[1, 2].set(value), entropy=stats.entropy
  )
  tx = covrl.kl_cov(0.05, selection_source='current', minimum=40)
  selection = first_selection(tx, spoilt, context)
  assert int(selection.nonfinite) == 1
  # With a quota of forty, all 39 finite ones are selected.
  assert int(selection.mask.sum()) == 39
  assert not bool(selection.mask[1, 2])


def long_chain():
  """A chain of three selecting transforms and a bonus."""
  return optax.chain(
    covrl.kl_cov(0.05, minimum=1),
    covrl.clip_cov(0.05, low=-9.0, high=9.0, minimum=1),
    covrl.forking_tokens(0.2),
    covrl.entropy_bonus(0.1),
  )


@jax.jit
def step_with_long_chain(stats, context):
  """Value, state and gradient of the loss with `long_chain`."""
  loss = covrl.as_loss(covrl.policy_gradient, long_chain())
  state = long_chain().init(TokenStats.template())
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  return value_and_grad(stats, state, **context)


def test_a_batch_without_tokens_has_a_loss_and_gradient_of_zero(batch):
  stats, context = batch
  empty = context | {
    'mask': ~ONES,
    'weights': covrl.token_weights(~ONES),
    'old_logprobs': jnp.full(SHAPE, jnp.nan),
    'advantages': jnp.full(SHAPE, jnp.nan),
  }
  (value, state), gradient = step_with_long_chain(stats, empty)
  assert float(value) == 0
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf, np.zeros(SHAPE))
  for masked in state[:3]:
    summary = masked.summary._replace(quota=jnp.asarray(0))
    assert {float(number) for number in summary} == {0.0}


def test_equal_scores_select_the_first_tokens(batch):
  """Every score is 0: the first tokens are the top, and no token is in the band."""
  stats, context = batch
  flat = context | {
    'advantages': jnp.full(SHAPE, 0.3),
    'old_logprobs': jnp.full(SHAPE, -1.7),
  }
  (value, state), gradient = step_with_long_chain(stats, flat)
  assert np.isfinite(float(value))
  assert all(
    bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradient)
  )
  kl_cov, clip_cov, _, _ = state
  assert int(kl_cov.summary.selected) == 2
  assert float(kl_cov.summary.threshold) == 0
  selection = first_selection(covrl.kl_cov(0.05), stats, flat)
  np.testing.assert_array_equal(np.argwhere(selection.mask), [[0, 0], [0, 1]])
  assert int(clip_cov.summary.eligible) == 40
  band = first_selection(covrl.clip_cov(0.05, minimum=1), stats, flat)
  assert int(band.eligible) == int(band.mask.sum()) == 0


def test_a_quota_beyond_the_eligible_takes_all_of_them(batch):
  stats, context = batch
  scores = jnp.arange(40.0).reshape(SHAPE).at[0].set(jnp.nan)
  chosen = jax.jit(lambda scores: covrl.select_top(scores, ONES, fraction=1.0))(
    scores
  )
  np.testing.assert_array_equal(chosen, ~jnp.isnan(scores))
  band = first_selection(
    covrl.clip_cov(0.05, low=1.0, minimum=40), stats, context
  )
  assert int(band.quota) == 40
  assert 0 < int(band.eligible) == int(band.mask.sum()) < 40
  kept = jax.jit(top_entropy(1.0))(stats, **context)
  assert bool(kept.mask.all())


def test_missing_entries_are_errors_with_their_names(batch):
  stats, context = batch
  for entry in ('advantages', 'mask', 'old_logprobs', 'key', 'step'):
    other_entries = {name: context[name] for name in context if name != entry}
    with pytest.raises(TypeError, match=f'{entry} must be in the context of'):
      covrl.selectors.random_in_band(0.05, 0.0, 1.0)(stats, **other_entries)


NAN = float('nan')
BAND = functools.partial(covrl.controllers.entropy_band, below=0.1)


@pytest.mark.parametrize(
  ('token_tx', 'entry', 'value'),
  [
    (covrl.steer(curve='linear'), 'entropy', NAN),
    (covrl.entropy_ratio_clip(), 'old_entropy', float('inf')),
    (covrl.detach_drain(WrappedSchedule(lambda step: NAN)), '', NAN),
    (covrl.entropy_bonus(BAND(lambda step: NAN, 1.0)), '', NAN),
    (covrl.entropy_bonus(BAND(0.8, lambda step: 0.2)), '', NAN),
  ],
)
def test_statistics_and_settings_of_nan_make_the_signal_nan(
  batch, token_tx, entry, value
):
  stats, context = batch
  ones = jnp.ones(SHAPE)
  moments = TokenMoments(square=ones, square_log=-ones, square_log_square=ones)
  context |= {'entropy': jnp.asarray(0.5), 'moments': moments}
  if entry == 'entropy':
    leaf = stats.entropy.at[0, 0].set(value)
    stats = dataclasses.replace(stats, entropy=leaf)
  elif entry:
    context[entry] = context[entry].at[0, 0].set(value)
  signal = TokenStats(logprobs=ones, entropy=ones)
  edited, _ = token_tx.update(
    signal, token_tx.init(TokenStats.template()), stats, **context
  )
  assert bool(jnp.isnan(edited.entropy[0, 0]))


def test_targets_of_nan_make_the_coefficient_nan():
  controller = covrl.controllers.doubling_scale(lambda step: NAN)
  context = {'step': jnp.asarray(0), 'entropy': jnp.asarray(0.5)}
  state = controller.update(controller.init(), **context)
  assert bool(jnp.isnan(controller(state, **context)))


def test_tokens_whose_drain_is_nan_are_counted(batch):
  stats, context = batch
  ones = jnp.ones(SHAPE)
  moments = TokenMoments(
    square=ones.at[0, 0].set(NAN), square_log=-ones, square_log_square=ones
  )
  selection = first_selection(
    covrl.detach_drain(0.1), stats, context | {'moments': moments}
  )
  assert int(selection.nonfinite) == 1


@pytest.mark.usefixtures('no_annotation_checks')
def test_selections_take_arrays_of_numpy_and_unsigned_ids():
  scores = np.random.default_rng(0).normal(size=(4, 8)).round(1)
  sequences, positions = np.mgrid[:4, :8].astype(np.uint32)
  arrays: dict[str, Any] = {'scores': scores, 'mask': np.ones((4, 8), bool)}
  ids: dict[str, Any] = {'sequence_ids': sequences, 'positions': positions}
  expected = covrl.select_top(
    jnp.asarray(scores, jnp.float32), jnp.ones((4, 8), bool), fraction=0.3
  )
  chosen = covrl.select_top(**arrays, **ids, fraction=0.3)
  np.testing.assert_array_equal(chosen, expected)


def test_a_traced_minimum_is_a_whole_number():
  scores, mask = jnp.ones((2, 4)), jnp.ones((2, 4), bool)
  counts = jax.vmap(
    lambda least: covrl.select_top(scores, mask, fraction=0.0, minimum=least)
  )(jnp.array([2.5, -1.0, jnp.nan, jnp.inf])).sum((1, 2))
  assert counts.tolist() == [2, 0, 0, 8]
