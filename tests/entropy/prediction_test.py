# SPDX-License-Identifier: Apache-2.0
"""First-order entropy predictions against the realised changes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import covrl
from covrl.entropy.prediction import entropy_change, predict_effect
from covrl.types import TokenStats

SHAPE, VOCABULARY = (4, 6), 9


@pytest.fixture(scope='module')
def case():
  """Free logits in float64, their statistics, and a batch's context."""
  with jax.enable_x64(True):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(1.5 * rng.normal(size=(*SHAPE, VOCABULARY)))
    targets = jnp.asarray(rng.integers(0, VOCABULARY, SHAPE))
    stats, moments = covrl.token_stats_from_logits(
      logits, targets, moments=True
    )
    advantages = jnp.asarray(rng.normal(size=(SHAPE[0], 1))) * jnp.ones(SHAPE)
    mask = jnp.asarray(rng.random(SHAPE) < 0.9)
    # Log-probabilities have changed in the direction of their advantages.
    drift = 0.2 * advantages * jnp.asarray(rng.random(SHAPE))
    context = {
      'advantages': advantages,
      'old_logprobs': stats.logprobs - drift,
      'mask': mask,
      'weights': covrl.token_weights(mask).astype(jnp.float64),
      'moments': moments,
      'step': jnp.asarray(0),
      'key': jax.random.key(0),
    }
    signal = jax.grad(lambda s: covrl.policy_gradient(s, **context)[0])(stats)
    yield logits, targets, stats, signal, context


def realised_change(case, signal, eta=1e-6):
  """Derivative of the summed entropy by the size of a descent step, numerically."""
  logits, targets, *_ = case

  def statistics(z):
    return covrl.token_stats_from_logits(z, targets)

  _, pull_back = jax.vjp(statistics, logits)
  (gradient,) = pull_back(signal)
  up, down = (statistics(logits + s * gradient).entropy for s in (-eta, eta))
  return jnp.sum(up - down) / (2 * eta)


def test_the_predicted_change_of_any_signal_is_the_realised_one(case, x64):
  *_, stats, signal, context = case
  rng = np.random.default_rng(1)
  mixed = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), signal)
  for tested in (signal, mixed):
    predicted = jnp.sum(entropy_change(tested, stats, context['moments']))
    np.testing.assert_allclose(
      predicted, realised_change(case, tested), rtol=1e-6
    )


def test_policy_gradient_changes_entropy_by_the_exact_score(case, x64):
  *_, stats, signal, context = case
  weight = context['advantages'] * jnp.exp(
    stats.logprobs - context['old_logprobs']
  )
  score = covrl.exact_score(stats, context['moments'], weight)
  np.testing.assert_allclose(
    entropy_change(signal, stats, context['moments']),
    -context['weights'] * score,
    rtol=1e-9,
    atol=1e-12,
  )


def test_entropy_change_is_zero_where_it_is_not_finite(case, x64):
  *_, stats, signal, context = case
  broken = TokenStats(
    logprobs=stats.logprobs.at[0, 0].set(-jnp.inf),
    entropy=stats.entropy.at[1, 1].set(jnp.nan),
  )
  change = entropy_change(signal, broken, context['moments'])
  assert np.isfinite(change).all()
  assert change[0, 0] == change[1, 1] == 0


# Transforms by name: functions of the controller of their coefficient.
CONTROLLED = {
  'entropy_bonus': covrl.entropy_bonus,
  'detach_drain': covrl.detach_drain,
  'kl_cov': functools.partial(
    covrl.kl_cov, 0.05, minimum=12, selection_source='current'
  ),
  'kl_cov, k2': functools.partial(
    covrl.kl_cov, 0.05, divergence='k2', minimum=12, selection_source='current'
  ),
}


@pytest.mark.parametrize('name', CONTROLLED)
def test_controller_at_its_target_keeps_the_entropy_constant(case, x64, name):
  *_, stats, signal, context = case
  entropy = jnp.mean(stats.entropy)
  increase = 0.05 * float(abs(realised_change(case, signal)))
  for target_change in (0.0, increase):
    controller = covrl.target_entropy(
      float(entropy) + target_change * 20, horizon=20.0, maximum=1e3
    )
    token_tx = CONTROLLED[name](controller)
    edited, state = jax.jit(
      lambda signal, token_tx=token_tx: covrl.update_signal(
        token_tx,
        signal,
        token_tx.init(TokenStats.template()),
        stats,
        **context,
        entropy=entropy,
      )
    )(signal)
    del state
    change = realised_change(case, edited)
    # The signal alone would have lowered it.
    assert realised_change(case, signal) < -0.05
    np.testing.assert_allclose(change, target_change, atol=1e-5)


def test_predicts_the_effect_on_selected_tokens_only(case, x64):
  """A penalty inside `token_masked` acts on what is selected."""
  *_, stats, signal, context = case
  selected = jnp.zeros(SHAPE, bool).at[1:3].set(True)
  predictions = []

  class Controller:
    def init(self):
      return ()

    def update(self, state, **_):
      return state

    def __call__(self, state, *, entropy_prediction, **_):
      predictions.append(entropy_prediction())
      return jnp.asarray(0.5)

  token_tx = covrl.token_masked(
    covrl.add_entropy_bonus(Controller()), lambda stats, **_: selected
  )
  covrl.update_signal(
    token_tx, signal, token_tx.init(TokenStats.template()), stats, **context
  )

  def bonus(coefficient):
    h = -coefficient * context['weights'] * selected
    return TokenStats(logprobs=signal.logprobs, entropy=signal.entropy + h)

  expected = predict_effect(bonus, stats, context)
  np.testing.assert_allclose(predictions[0].effect, expected.effect, rtol=1e-12)
  np.testing.assert_allclose(predictions[0].drift, expected.drift, rtol=1e-12)
  np.testing.assert_allclose(
    predictions[0].effect,
    realised_change(case, bonus(1.0)) - realised_change(case, signal),
    rtol=1e-5,
  )


def test_predicts_nothing_without_moments(case, x64):
  *_, stats, signal, context = case
  without_moments = {k: v for k, v in context.items() if k != 'moments'}
  prediction = predict_effect(lambda _: signal, stats, without_moments)
  assert (prediction.drift, prediction.effect, prediction.limit) == (
    0,
    1,
    np.inf,
  )
