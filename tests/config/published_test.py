# SPDX-License-Identifier: Apache-2.0
"""Recipes with published settings: numbers, losses, chains and optimiser."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import reasoning
from covrl.config import Config, flatten, load
from covrl.entropy.base import update_signal
from covrl.types import TokenStats

# Settings that all published runs share.
SHARED = {
  'rollout.prompts_per_iteration': 256,
  'rollout.responses_per_prompt': 8,
  'rollout.max_prompt_length': 2048,
  'rollout.max_response_length': 8192,
  'rollout.temperature': 1.0,
  'rollout.top_p': 1.0,
  'train.sequences_per_update': 256,
  'train.max_gradient_norm': 1.0,
  'train.weights': 'token-mean',
  'entropy.selection_source': 'current',
}
SETTINGS = {
  'paper_7b_kl_cov': {
    'train.learning_rate': 5e-7,
    'entropy.fraction': 2e-3,
    'entropy.coefficient': 1.0,
  },
  'paper_7b_clip_cov': {
    'train.learning_rate': 5e-7,
    'entropy.fraction': 2e-4,
    'entropy.covariance_low': 1.0,
    'entropy.covariance_high': 5.0,
    'train.clip_low': 1.0,
    'train.clip_high': 1.0,
  },
  'paper_32b_kl_cov': {
    'train.learning_rate': 1e-6,
    'entropy.fraction': 2e-4,
    'entropy.coefficient': 1.0,
  },
  'paper_32b_clip_cov': {
    'train.learning_rate': 1e-6,
    'entropy.fraction': 2e-4,
    'entropy.covariance_low': 1.0,
    'entropy.covariance_high': 5.0,
    'train.clip_low': 1.0,
    'train.clip_high': 1.0,
  },
  'verl_kl_cov': {
    'train.learning_rate': 1e-6,
    'entropy.fraction': 2e-4,
    'entropy.coefficient': 0.1,
  },
  'verl_clip_cov': {
    'train.learning_rate': 1e-6,
    'entropy.fraction': 2e-4,
    'entropy.covariance_low': 1.0,
    'entropy.covariance_high': 5.0,
    'train.clip_low': 0.2,
    'train.clip_high': 0.2,
  },
}


@pytest.mark.parametrize('name', SETTINGS)
def test_settings_are_those_published(name):
  config = load(f'reasoning:{name}').config
  fields, defaults = flatten(config), flatten(Config())
  for field, value in (SHARED | SETTINGS[name]).items():
    assert fields[field] == value, field
    assert type(fields[field]) is type(defaults[field]), field
  assert config.sequences_per_iteration == 256 * 8
  assert config.updates_per_iteration == 8


@pytest.fixture
def batch():
  """Random statistics and context of 64 × 40 tokens."""
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
def cotangents_before_and_after(loss, token_tx, stats, context):
  """Returns the loss's cotangents of log π before and after a token chain."""
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
  context = context | aux.for_selection
  state = token_tx.init(TokenStats.template())
  edited, _ = update_signal(token_tx, signal, state, stats, **context)
  return signal.logprobs, edited.logprobs


def loss_and_chain(recipe):
  """Returns the loss and the token chain of a recipe."""
  return recipe.loss(recipe.config), recipe.token_tx(recipe.config)


def covariance(stats, context):
  """Returns the covariance of each token."""
  logp, advantages = np.asarray(stats.logprobs), context['advantages']
  return (logp - logp.mean()) * (advantages - np.mean(advantages))


def test_kl_cov_penalises_the_five_tokens_of_highest_covariance(batch):
  stats, context = batch
  recipe = reasoning.paper_7b_kl_cov()
  signal, edited = cotangents_before_and_after(*loss_and_chain(recipe), *batch)
  ratio = np.exp(np.asarray(stats.logprobs - context['old_logprobs']))
  # No clip: the gradient is −A · ratio however far the ratio has gone.
  expected = -context['weights'] * context['advantages'] * ratio
  np.testing.assert_allclose(signal, expected, rtol=1e-5)
  scores = covariance(stats, context)
  top = scores >= np.sort(scores.ravel())[-5]  # ⌊2e-3 · 2560⌋
  penalty = np.sign(ratio - 1) * context['weights']
  np.testing.assert_allclose(edited - signal, top * penalty, atol=1e-6)


def test_clip_cov_detaches_at_least_one_token_within_the_bounds(batch):
  stats, context = batch
  recipe = reasoning.paper_7b_clip_cov()
  signal, edited = cotangents_before_and_after(*loss_and_chain(recipe), *batch)
  changed = np.asarray(signal != edited)
  assert changed.sum() == 1  # max(1, ⌊2e-4 · 2560⌋)
  assert 1 < float(covariance(stats, context)[changed][0]) < 5
  assert not edited[changed].any()
  ratio = np.exp(np.asarray(stats.logprobs - context['old_logprobs']))
  is_clipped = (ratio > 2) & (np.asarray(context['advantages']) > 0)
  assert is_clipped.any()
  assert not np.asarray(signal)[is_clipped].any()
  is_within_range = (ratio > 1.3) & (ratio < 2)
  assert np.asarray(signal)[is_within_range].all()


def test_optimiser_clips_gradients_and_does_not_decay_parameters():
  recipe = reasoning.paper_32b_kl_cov()
  tx = recipe.tx(recipe.config)

  def first_update(gradient):
    params = jnp.full(4, 100.0)
    updates, state = tx.update(jnp.full(4, gradient), tx.init(params), params)
    return jax.tree.leaves((updates, optax.tree.get(state, 'mu')))

  assert not first_update(0.0)[0].any()
  updates, mean = first_update(50.0)
  np.testing.assert_allclose(updates, -1e-6, rtol=1e-3)
  # Clipped to norm 1, each of the four entries is 0.5; Adam's b1 is 0.9.
  np.testing.assert_allclose(mean, 0.05, rtol=1e-5)


def test_selection_scope_is_an_argument_of_the_recipe():
  reasoning.paper_7b_kl_cov('micro_batch')
  scope: Any = 'rank'
  recipe = reasoning.paper_32b_kl_cov(scope)
  with pytest.raises(ValueError, match='scope must be'):
    recipe.token_tx(recipe.config)
