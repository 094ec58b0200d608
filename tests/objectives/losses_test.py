# SPDX-License-Identifier: Apache-2.0
"""What every policy loss must do, and the formula of each on one token."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


def batch(seed=0, shape=(3, 5), drift=0.5):
  """A batch with one advantage a row, a weight of 0 here and there."""
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


def one(loss, log_ratio, advantage, old=-3.0):
  """Value, gradient and report on a batch of one token."""
  context = {
    'advantages': jnp.full((1, 1), float(advantage)),
    'old_logprobs': jnp.full((1, 1), old),
    'weights': jnp.ones((1, 1)),
  }
  stats = stats_of(context['old_logprobs'] + log_ratio)
  (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
    stats, **context
  )
  return (
    float(value),
    float(signal.logprobs[0, 0]),
    jax.tree.map(lambda x: x[0, 0].item(), aux),
  )


@pytest.mark.parametrize('name', LOSSES)
def test_what_has_no_weight_does_not_matter(name):
  logprobs, context = batch()
  off = context['weights'] == 0
  (value, aux), signal = run(LOSSES[name], stats_of(logprobs), context)
  for poison in (jnp.nan, jnp.inf, -jnp.inf):
    (poisoned, poisoned_aux), poisoned_signal = run(
      LOSSES[name],
      stats_of(jnp.where(off, poison, logprobs)),
      {
        'weights': context['weights'],
        'advantages': jnp.where(off, poison, context['advantages']),
        'old_logprobs': jnp.where(off, poison, context['old_logprobs']),
      },
    )
    assert value == poisoned
    jax.tree.map(np.testing.assert_array_equal, aux, poisoned_aux)
    np.testing.assert_array_equal(signal.logprobs, poisoned_signal.logprobs)
  assert not np.asarray(signal.logprobs)[off].any()
  assert (np.asarray(aux.ratio)[off] == 1).all()
  assert not np.asarray(aux.log_ratio)[off].any()
  assert not np.asarray(aux.score_weight)[off].any()
  assert not np.asarray(aux.clipped)[off].any()


@pytest.mark.parametrize('name', LOSSES)
def test_score_weight_is_minus_the_gradient(name, x64):
  logprobs, context = batch(drift=0.6)
  # Sequence losses share a gradient over a sequence; equal weights within it.
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
def test_old_logprobs_are_a_constant(name):
  logprobs, context = batch(drift=0.0)
  del context['old_logprobs']

  def on_policy(stats):
    value, _ = LOSSES[name](stats, old_logprobs=stats.logprobs, **context)
    return value

  gradient = jax.jit(jax.grad(on_policy))(stats_of(logprobs)).logprobs
  expected = -context['weights'] * context['advantages']
  np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('name', LOSSES)
def test_computes_in_float32_and_returns_the_dtype_it_was_given(name):
  logprobs, context = batch()
  narrow = stats_of(logprobs.astype(jnp.bfloat16))
  (value, aux), signal = run(LOSSES[name], narrow, context)
  assert value.dtype == aux.ratio.dtype == jnp.float32
  assert signal.logprobs.dtype == jnp.bfloat16
  wide = stats_of(narrow.logprobs.astype(jnp.float32))
  (expected, _), _ = run(LOSSES[name], wide, context)
  assert value == expected


@pytest.mark.parametrize('name', LOSSES)
def test_nothing_narrows(name, x64):
  logprobs, context = batch()
  assert logprobs.dtype == jnp.float64
  (value, aux), signal = run(LOSSES[name], stats_of(logprobs), context)
  assert value.dtype == signal.logprobs.dtype == jnp.float64
  assert {x.dtype for x in aux} == {jnp.dtype('float64'), jnp.dtype('bool')}


@given(
  st.floats(-25, 25),
  st.floats(-3, 3),
  st.floats(0, 0.9),
  st.floats(0, 2),
  st.sampled_from([None, 1.5, 3.0]),
)
@settings(max_examples=30, deadline=None)
def test_clipped_surrogate(log_ratio, advantage, low, high, dual_clip):
  advantage, log_ratio = np.float32(advantage), np.float32(log_ratio)
  # What float32 makes of the sum is what the loss gets to see.
  old = np.float32(-3.0)
  log_ratio = np.float32(np.float32(old + log_ratio) - old)
  value, gradient, aux = one(
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
def test_what_ppo_clips(log_ratio, advantage, clipped):
  loss = functools.partial(clipped_surrogate, dual_clip=3)
  _, gradient, aux = one(loss, log_ratio, advantage)
  assert aux.clipped == clipped
  assert (gradient == 0) == (clipped or advantage == 0)
  assert aux.log_ratio == pytest.approx(log_ratio, rel=1e-6)


def test_gradient_on_the_bounds_is_whole(x64):
  # A ratio of exactly 2 is on the bound of high=1.
  _, gradient, aux = one(
    functools.partial(clipped_surrogate, low=1, high=1), math.log(2.0), 1, 0.0
  )
  assert aux.ratio == 2
  assert gradient == -2
  assert not aux.clipped


def test_policy_gradient_clamp():
  value, gradient, aux = one(policy_gradient, 25.0, 1)
  assert gradient == value == pytest.approx(-math.exp(25), rel=1e-5)
  assert not aux.clipped
  clamped = functools.partial(policy_gradient, max_log_ratio=20.0)
  value, gradient, aux = one(clamped, 25.0, 1)
  assert value == pytest.approx(-math.exp(20), rel=1e-5)
  assert gradient == 0
  assert aux.clipped
  assert aux.log_ratio == 25


def test_cispo_truncates_and_keeps_the_gradient():
  value, gradient, aux = one(cispo, 2.0, 0.5)
  assert gradient == pytest.approx(-0.5 * 5)
  assert value == pytest.approx(-0.5 * 5 * -1.0)
  assert not aux.clipped
  assert aux.ratio == pytest.approx(math.exp(2.0), rel=1e-5)


@pytest.mark.parametrize('advantage', [0.7, -0.7])
def test_sapo(advantage):
  sharpness = 1.0 if advantage > 0 else 1.05
  ratio = math.exp(0.4)
  gate = 1 / (1 + math.exp(-sharpness * (ratio - 1)))
  value, gradient, _ = one(sapo, 0.4, advantage)
  assert value == pytest.approx(-advantage * gate * 4 / sharpness, rel=1e-5)
  slope = 4 * gate * (1 - gate)
  assert gradient == pytest.approx(-advantage * ratio * slope, rel=1e-5)


@pytest.mark.parametrize(
  ('old', 'new', 'advantage', 'clipped'),
  [
    # A rare token may grow a hundredfold; PPO would have stopped it at 1.2.
    (0.001, 0.1, 1, False),
    # A common one may not lose a fifth; PPO would hardly have noticed.
    (0.99, 0.8, -1, True),
    (0.99, 0.8, 1, False),
    (0.5, 0.7, 1, True),
    (0.5, 0.7, -1, False),
    (0.5, 0.6, 1, False),
  ],
)
def test_dppo_total_variation(old, new, advantage, clipped):
  log_ratio = math.log(new) - math.log(old)
  value, gradient, aux = one(dppo, log_ratio, advantage, math.log(old))
  assert aux.clipped == clipped
  expected = 0 if clipped else -advantage * new / old
  assert value == pytest.approx(expected, rel=1e-5)
  assert gradient == pytest.approx(expected, rel=1e-5)


@given(st.floats(0.01, 0.99), st.floats(0.01, 0.99), st.sampled_from([1, -1]))
@settings(max_examples=25, deadline=None)
def test_dppo_divergence(old, new, advantage):
  distance = old * math.log(old / new) + (1 - old) * math.log(
    (1 - old) / (1 - new)
  )
  bound = 0.05
  if abs(distance - bound) < 1e-4:
    return
  loss = functools.partial(dppo, low=bound, high=bound, measure='kl')
  _, _, aux = one(loss, math.log(new / old), advantage, math.log(old))
  outward = (new > old) == (advantage > 0)
  assert aux.clipped == (distance > bound and outward)


@pytest.mark.parametrize(('old', 'new'), [(0.0, -2.0), (-2.0, 0.0), (0.0, 0.0)])
def test_dppo_divergence_of_certain_tokens(old, new):
  loss = functools.partial(dppo, measure='kl')
  for advantage in (1, -1):
    value, gradient, aux = one(loss, new - old, advantage, old)
    assert math.isfinite(value)
    assert math.isfinite(gradient)
    assert aux.clipped == ((new - old) * advantage > 0)


def test_dppo_truncation_bounds_the_gradient():
  loss = functools.partial(dppo, max_ratio=1.5)
  _, gradient, aux = one(loss, math.log(10), 1, math.log(0.001))
  assert gradient == pytest.approx(-1.5)
  assert aux.ratio == pytest.approx(10, rel=1e-5)


@pytest.mark.parametrize(
  ('loss', 'message'),
  [
    (functools.partial(clipped_surrogate, low=1.5), 'low must lie in'),
    (functools.partial(clipped_surrogate, high=-0.1), 'high must lie in'),
    (functools.partial(clipped_surrogate, dual_clip=0.5), 'dual_clip must'),
    (functools.partial(dppo, measure='tv '), 'measure must be'),
    (functools.partial(gspo, form='row'), 'form must be'),
    (functools.partial(geo_mean, low=-1), 'low must lie in'),
  ],
)
def test_refusals(loss, message):
  with pytest.raises(ValueError, match=message):
    one(loss, 0.0, 1)


def test_report_survives_rebuilding():
  aux = one(policy_gradient, 0.0, 1)[2]
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
