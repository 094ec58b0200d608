# SPDX-License-Identifier: Apache-2.0
"""Properties that all policy losses share, independent of their formula."""

import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl.objectives import (
  LossAux,
  cispo,
  clipped_surrogate,
  dppo,
  geo_mean,
  gspo,
  policy_gradient,
  sapo,
)
from covrl.types import TokenStats

wide_gspo = functools.partial(gspo, low=0.2, high=0.2)
LOSSES = {
  'policy_gradient': policy_gradient,
  'clamped': functools.partial(policy_gradient, max_log_ratio=20.0),
  'clipped_surrogate': clipped_surrogate,
  'dual_clip': functools.partial(clipped_surrogate, dual_clip=3.0),
  'cispo': cispo,
  'sapo': sapo,
  'dppo': dppo,
  'dppo_kl': functools.partial(dppo, low=0.05, high=0.05, measure='kl'),
  'dppo_truncated': functools.partial(dppo, max_ratio=1.5),
  'gspo': wide_gspo,
  'gspo_sequence': functools.partial(wide_gspo, form='sequence'),
  'geo_mean': geo_mean,
}


def stats_of(logprobs):
  return TokenStats(logprobs=logprobs, entropy=jnp.zeros_like(logprobs))


@functools.partial(jax.jit, static_argnums=0)
def run(loss, stats, context):
  return jax.value_and_grad(loss, has_aux=True)(stats, **context)


def batch(seed=0, shape=(3, 5), drift=0.5) -> tuple[jax.Array, dict[str, Any]]:
  """A batch with one advantage per row and some weights of 0."""
  rng = np.random.default_rng(seed)
  old = -rng.exponential(size=shape)
  weights = (rng.random(shape) < 0.8) / 7
  return jnp.asarray(np.minimum(old + drift * rng.normal(size=shape), 0)), {
    'advantages': jnp.asarray(
      np.broadcast_to(rng.normal(size=(shape[0], 1)), shape)
    ),
    'old_logprobs': jnp.asarray(old),
    'weights': jnp.asarray(weights),
  }


@pytest.mark.parametrize('name', LOSSES)
def test_tokens_of_weight_zero_change_nothing(name):
  logprobs, context = batch()
  has_no_weight = context['weights'] == 0
  (value, aux), signal = run(LOSSES[name], stats_of(logprobs), context)
  for poison in (jnp.nan, jnp.inf, -jnp.inf):
    (poisoned_value, poisoned_aux), poisoned_signal = run(
      LOSSES[name],
      stats_of(jnp.where(has_no_weight, poison, logprobs)),
      {
        'weights': context['weights'],
        'advantages': jnp.where(has_no_weight, poison, context['advantages']),
        'old_logprobs': jnp.where(
          has_no_weight, poison, context['old_logprobs']
        ),
      },
    )
    assert value == poisoned_value
    jax.tree.map(np.testing.assert_array_equal, aux, poisoned_aux)
    np.testing.assert_array_equal(signal.logprobs, poisoned_signal.logprobs)
  assert not np.asarray(signal.logprobs)[has_no_weight].any()
  assert (np.asarray(aux.ratio)[has_no_weight] == 1).all()
  assert not np.asarray(aux.log_ratio)[has_no_weight].any()
  assert not np.asarray(aux.score_weight)[has_no_weight].any()
  assert not np.asarray(aux.clipped)[has_no_weight].any()


@pytest.mark.parametrize('name', LOSSES)
def test_score_weight_is_minus_the_gradient(name, x64):
  logprobs, context = batch(drift=0.6)
  # Sequence losses share gradients within a sequence: equal weights there.
  context['weights'] = jnp.asarray(
    np.array([[0.2], [0.3], [0.5]]) * (np.asarray(context['weights']) > 0)
  )
  (_, aux), signal = run(LOSSES[name], stats_of(logprobs), context)
  np.testing.assert_allclose(
    signal.logprobs,
    -context['weights'] * aux.score_weight,
    rtol=2e-8,
    atol=1e-12,
  )
  assert aux.for_selection.keys() == {'score_weight', 'clipped'}
  assert not np.asarray(aux.score_weight)[np.asarray(aux.clipped)].any()
  assert not np.asarray(signal.entropy).any()


@pytest.mark.parametrize('name', LOSSES)
def test_unchanged_policy_has_the_policy_gradient(name):
  logprobs, context = batch(drift=0.0)
  context['old_logprobs'] = logprobs
  (_, aux), signal = run(LOSSES[name], stats_of(logprobs), context)
  assert (np.asarray(aux.ratio) == 1).all()
  assert not np.asarray(aux.log_ratio).any()
  assert not np.asarray(aux.clipped).any()
  np.testing.assert_allclose(
    signal.logprobs,
    -context['weights'] * context['advantages'],
    # The sequence form spreads the row's sum of weights over its tokens.
    rtol=1e-6,
    atol=1e-9,
  )


@pytest.mark.parametrize('name', ['clipped_surrogate', 'cispo', 'gspo'])
def test_old_logprobs_are_constants(name):
  logprobs, context = batch(drift=0.0)
  del context['old_logprobs']

  def on_policy(stats):
    value, _ = LOSSES[name](stats, old_logprobs=stats.logprobs, **context)
    return value

  gradient = jax.jit(jax.grad(on_policy))(stats_of(logprobs)).logprobs
  expected = -context['weights'] * context['advantages']
  np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', LOSSES)
def test_bfloat16_is_computed_in_float32_and_gradients_keep_their_dtype(name):
  logprobs, context = batch()
  narrow = stats_of(logprobs.astype(jnp.bfloat16))
  (value, aux), signal = run(LOSSES[name], narrow, context)
  assert value.dtype == aux.ratio.dtype == jnp.float32
  assert signal.logprobs.dtype == jnp.bfloat16
  wide = stats_of(narrow.logprobs.astype(jnp.float32))
  (expected, _), _ = run(LOSSES[name], wide, context)
  assert value == expected


@pytest.mark.parametrize('name', LOSSES)
def test_float64_stays_float64(name, x64):
  logprobs, context = batch()
  assert logprobs.dtype == jnp.float64
  (value, aux), signal = run(LOSSES[name], stats_of(logprobs), context)
  assert value.dtype == signal.logprobs.dtype == jnp.float64
  assert {x.dtype for x in aux} == {jnp.dtype('float64'), jnp.dtype('bool')}


@pytest.mark.parametrize(
  ('loss', 'message'),
  [
    (functools.partial(clipped_surrogate, low=1.5), 'low must lie in'),
    (functools.partial(clipped_surrogate, high=-0.1), 'high must lie in'),
    (functools.partial(clipped_surrogate, dual_clip=0.5), 'dual_clip must'),
    (functools.partial(geo_mean, low=-1), 'low must lie in'),
  ],
)
def test_refuses_options_outside_their_range(loss, message):
  logprobs, context = batch()
  with pytest.raises(ValueError, match=message):
    loss(stats_of(logprobs), **context)


@pytest.mark.parametrize(
  ('loss', 'option', 'message'),
  [
    (dppo, {'measure': 'tv '}, "measure must be .* got 'tv '"),
    (gspo, {'form': 'row'}, "form must be .* got 'row'"),
  ],
)
def test_refuses_unknown_options(loss, option, message):
  logprobs, context = batch()
  # Without the run-time type checks of the tests, which would fail first.
  unchecked: Any = inspect.unwrap(loss)
  with pytest.raises(ValueError, match=message):
    unchecked(stats_of(logprobs), **option, **context)


@pytest.mark.parametrize('name', LOSSES)
def test_refuses_unknown_and_missing_context_entries(name):
  logprobs, context = batch()
  misspelt: dict[str, Any] = {'segment_id': None}
  with pytest.raises(
    TypeError, match="'segment_id'; did you mean 'segment_ids'"
  ):
    LOSSES[name](stats_of(logprobs), **misspelt, **context)
  del context['weights']
  with pytest.raises(TypeError, match='weights must be in the context of'):
    LOSSES[name](stats_of(logprobs), **context)


def test_aux_survives_tree_rebuilding():
  logprobs, context = batch()
  _, aux = policy_gradient(stats_of(logprobs), **context)
  shapes = jax.tree.map(lambda _: (2, 3), aux)
  assert isinstance(aux, LossAux)
  assert shapes.clipped == (2, 3)


def test_options_may_be_traced():
  logprobs, context = batch()

  @jax.jit
  def value(high):
    loss = functools.partial(clipped_surrogate, high=high)
    return loss(stats_of(logprobs), **context)[0]

  expected, _ = clipped_surrogate(stats_of(logprobs), high=0.28, **context)
  np.testing.assert_allclose(value(0.28), expected, rtol=1e-6)
