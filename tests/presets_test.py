# SPDX-License-Identifier: Apache-2.0
"""Presets say and do what was published."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl import presets
from covrl.config import Config, flatten
from covrl.entropy.base import init_token_state, update_signal
from covrl.types import TokenStats


def fraction_and_more(preset):
  settings = preset.settings
  return tuple(
    settings.get(name)
    for name in (
      'entropy.fraction',
      'entropy.coefficient',
      'train.high',
      'train.learning_rate',
    )
  )


def test_published_numbers():
  assert fraction_and_more(presets.paper_7b()) == (2e-3, 1.0, None, 5e-7)
  assert fraction_and_more(presets.paper_32b()) == (2e-4, 1.0, None, 1e-6)
  assert fraction_and_more(presets.verl_default()) == (2e-4, 0.1, None, 1e-6)
  clip = 'clip_cov'
  assert fraction_and_more(presets.paper_7b(clip)) == (2e-4, None, 1.0, 5e-7)
  assert fraction_and_more(presets.paper_32b(clip)) == (2e-4, None, 1.0, 1e-6)
  assert fraction_and_more(presets.verl_default(clip)) == (
    (2e-4, None, 0.2, 1e-6)
  )


@pytest.mark.parametrize('method', presets.METHODS)
def test_settings_are_fields_of_a_config(method):
  settings = presets.paper_7b(method).settings
  fields = flatten(Config())
  for name, value in settings.items():
    assert type(fields[name]) is type(value), name
  prompts, responses, sequences = (
    int(settings[name])
    for name in (
      'rollout.prompts_per_iteration',
      'rollout.responses_per_prompt',
      'train.sequences_per_update',
    )
  )
  assert prompts * responses == 256 * 8 == 8 * sequences


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  shape = 64, 40
  old = -rng.exponential(size=shape)
  stats = TokenStats(
    logprobs=jnp.asarray(old + rng.normal(size=shape), jnp.float32),
    entropy=jnp.zeros(shape),
  )
  context = {
    'advantages': jnp.asarray(rng.normal(size=shape), jnp.float32),
    'old_logprobs': jnp.asarray(old, jnp.float32),
    'mask': jnp.ones(shape, bool),
    'weights': jnp.full(shape, 1 / old.size, jnp.float32),
    'key': jax.random.key(0),
    'step': jnp.asarray(0),
  }
  return stats, context


@functools.partial(jax.jit, static_argnames=('loss', 'token_tx'))
def signals(loss, token_tx, stats, context):
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
  context = context | aux.for_selection
  state = init_token_state(token_tx)
  edited, _ = update_signal(token_tx, signal, state, stats, **context)
  return signal.logprobs, edited.logprobs


def covariance(stats, context):
  logp, advantages = np.asarray(stats.logprobs), context['advantages']
  return (logp - logp.mean()) * (advantages - np.mean(advantages))


def test_paper_7b_penalises_the_top_five_tokens(batch):
  stats, context = batch
  preset = presets.paper_7b()
  signal, edited = signals(preset.loss, preset.token_tx, *batch)
  ratio = np.exp(np.asarray(stats.logprobs - context['old_logprobs']))
  # No clip: the gradient is −A · ratio however far the ratio has gone.
  expected = -context['weights'] * context['advantages'] * ratio
  np.testing.assert_allclose(signal, expected, rtol=1e-5)
  scores = covariance(stats, context)
  top = scores >= np.sort(scores.ravel())[-5]  # ⌊2e-3 · 2560⌋
  penalty = np.sign(ratio - 1) * context['weights']
  np.testing.assert_allclose(edited - signal, top * penalty, atol=1e-6)


def test_clip_cov_detaches_at_least_one_token_of_the_band(batch):
  stats, context = batch
  preset = presets.paper_7b('clip_cov')
  signal, edited = signals(preset.loss, preset.token_tx, *batch)
  changed = np.asarray(signal != edited)
  assert changed.sum() == 1  # max(1, ⌊2e-4 · 2560⌋)
  assert 1 < float(covariance(stats, context)[changed][0]) < 5
  assert not edited[changed].any()
  ratio = np.exp(np.asarray(stats.logprobs - context['old_logprobs']))
  past = (ratio > 2) & (np.asarray(context['advantages']) > 0)
  assert past.any()
  assert not np.asarray(signal)[past].any()
  inside = (ratio > 1.3) & (ratio < 2)
  assert np.asarray(signal)[inside].all()


def test_optimiser_clips_and_does_not_decay():
  preset = presets.paper_32b()

  def first(gradient):
    params = jnp.full(4, 100.0)
    updates, state = preset.tx.update(
      jnp.full(4, gradient), preset.tx.init(params), params
    )
    return jax.tree.leaves((updates, optax.tree.get(state, 'mu')))

  assert not first(0.0)[0].any()
  updates, mean = first(50.0)
  np.testing.assert_allclose(updates, -1e-6, rtol=1e-3)
  # Of global norm 1 when Adam sees it: 0.1 · 0.5 in its first moment.
  np.testing.assert_allclose(mean, 0.05, rtol=1e-5)


def test_unknown_choices_are_refused():
  with pytest.raises(ValueError, match=r"method must be one of .* got 'kl'"):
    presets.paper_7b('kl')
  with pytest.raises(ValueError, match='scope must be'):
    covrl.presets.paper_32b(scope='rank')
