# SPDX-License-Identifier: Apache-2.0
"""Invalid input of the token statistics is refused if concrete, NaN if traced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import covrl

pytestmark = pytest.mark.usefixtures('no_annotation_checks')

HIDDEN = jnp.ones((2, 3, 4))
UNEMBEDDING = jnp.linspace(-1, 1, 32).reshape(4, 8)
TARGETS = jnp.zeros((2, 3), jnp.int32)
IMPLEMENTATIONS = (
  {},
  {'chunk_size': 3},
  {'implementation': 'chunked'},
)


@pytest.mark.parametrize(
  ('changes', 'error', 'sentence'),
  [
    (
      {'targets': TARGETS.at[1, 2].set(8)},
      ValueError,
      r'targets must lie in \[0, 8\), the vocabulary, got 8',
    ),
    ({'targets': TARGETS - 1}, ValueError, r'targets must lie in .*, got -1'),
    (
      {'targets': TARGETS.astype(float)},
      TypeError,
      'targets must be an array of integers, got float32',
    ),
    (
      {'targets': TARGETS[0]},
      ValueError,
      r'targets must be \(2, 3\), got \(3,\)',
    ),
    (
      {'unembedding': UNEMBEDDING[:3]},
      ValueError,
      r'hidden must be \[\.\.\., D\] with D = 3, .* got \(2, 3, 4\)',
    ),
    (
      {'temperature': jnp.ones(3)},
      ValueError,
      r'temperature must be \(2, 3\), got \(3,\)',
    ),
    (
      {'temperature': jnp.ones((2, 3)).at[0, 1].set(0)},
      ValueError,
      'temperature must be finite and positive for every token, got 0 to 1',
    ),
    ({'temperature': np.nan}, ValueError, 'temperature must be .* got nan'),
    (
      {'temperature': np.inf},
      ValueError,
      'temperature must be finite, got inf',
    ),
    ({'temperature': '1'}, TypeError, "temperature must be a number, got '1'"),
    ({'soft_cap': np.inf}, ValueError, 'soft_cap must be finite, got inf'),
    ({'chunk_size': 0}, ValueError, 'chunk_size must be .* got 0'),
    (
      {'mask': TARGETS},
      TypeError,
      'mask must be an array of bools, got int32',
    ),
    (
      {'mask': TARGETS[0] == 0},
      ValueError,
      r'mask must be \(2, 3\), got \(3,\)',
    ),
  ],
)
def test_refuses_invalid_arguments(changes, error, sentence):
  arguments = {
    'hidden': HIDDEN,
    'unembedding': UNEMBEDDING,
    'targets': TARGETS,
  } | changes
  with pytest.raises(error, match=sentence):
    covrl.token_stats(**arguments)


@pytest.mark.parametrize(
  'targets', [TARGETS - 1, TARGETS.at[0, 0].set(8), TARGETS * 1.0, TARGETS[0]]
)
def test_statistics_of_logits_refuse_invalid_targets(targets):
  with pytest.raises((TypeError, ValueError), match='targets must'):
    covrl.token_stats_from_logits(HIDDEN @ UNEMBEDDING, targets)


@pytest.mark.parametrize('options', IMPLEMENTATIONS)
def test_traced_targets_outside_the_vocabulary_are_nan(options):
  targets = TARGETS.at[0].set(jnp.array([-1, 8, 2**30]))

  @jax.jit
  def run(hidden, targets):
    def total(hidden):
      stats = covrl.token_stats(hidden, UNEMBEDDING, targets, **options)
      known = jnp.where(targets == 0, stats.logprobs, 0)
      return jnp.sum(known) + jnp.sum(stats.entropy), stats

    return jax.grad(total, has_aux=True)(hidden)

  gradient, stats = run(HIDDEN, targets)
  assert np.isnan(stats.logprobs[0]).all()
  assert np.isfinite(stats.logprobs[1]).all()
  assert np.isfinite(stats.entropy).all()
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize('options', IMPLEMENTATIONS)
def test_traced_temperatures_that_are_not_positive_give_nan(options):
  temperature = jnp.ones((2, 3)).at[0].set(jnp.array([-1.0, 0.0, np.nan]))
  stats = jax.jit(
    lambda temperature: covrl.token_stats(
      HIDDEN, UNEMBEDDING, TARGETS, temperature=temperature, **options
    )
  )(temperature)
  for leaf in (stats.logprobs, stats.entropy):
    assert np.isnan(leaf[0]).all()
    assert np.isfinite(leaf[1]).all()


@pytest.mark.parametrize('options', [*IMPLEMENTATIONS, {'soft_cap': 5.0}])
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('location', ['hidden', 'unembedding'])
def test_inputs_that_are_not_finite_give_nan(options, bad, location):
  hidden, unembedding = HIDDEN, UNEMBEDDING
  if location == 'hidden':
    hidden = hidden.at[0, 1, 2].set(bad)
  elif bad == -np.inf:
    return  # A column of −∞ marks an impossible token.
  else:
    unembedding = unembedding.at[2, 5].set(bad)
  run = jax.jit(functools.partial(covrl.token_stats, moments=True, **options))
  stats, moments = run(hidden, unembedding, TARGETS)
  spoilt = np.zeros((2, 3), bool)
  spoilt[0, 1] = True
  spoilt |= location == 'unembedding'
  for leaf in jax.tree.leaves((stats, moments)):
    np.testing.assert_array_equal(np.isnan(leaf), spoilt)


def test_an_overflowing_logit_is_not_an_impossible_token():
  hidden = jnp.full((1, 2), 1e38)
  unembedding = jnp.array([[9.0, 0.0, -9.0], [9.0, 0.0, -9.0]])
  for cap in (None, 30.0):
    stats = covrl.token_stats(hidden, unembedding, jnp.array([1]), soft_cap=cap)
    assert jnp.isnan(stats.logprobs[0]), cap
    assert jnp.isnan(stats.entropy[0]), cap


@pytest.mark.parametrize('options', IMPLEMENTATIONS)
def test_narrow_targets_are_those_of_int32(options):
  """In 8 bits column 259 is column 3, and 300 columns are 44."""
  rng = np.random.default_rng(0)
  hidden = jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32)
  unembedding = jnp.asarray(rng.normal(size=(4, 300)), jnp.float32)
  targets = jnp.full((2, 3), 3)
  narrow, wide = (
    covrl.token_stats(hidden, unembedding, ids, **options).logprobs
    for ids in (targets.astype(jnp.uint8), targets)
  )
  np.testing.assert_array_equal(narrow, wide)
