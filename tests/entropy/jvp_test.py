# SPDX-License-Identifier: Apache-2.0
"""`jvp_score`, for parameters shared by tokens, against realised entropy changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import covrl
from covrl.statistics import token_stats

ROWS, LENGTH, WIDTH, VOCABULARY = 4, 6, 5, 7


@pytest.fixture(name='problem')
def make_problem(x64):
  """A one-layer network whose tokens share all parameters, in float64."""
  del x64
  keys = jax.random.split(jax.random.key(0), 6)
  inputs = jax.random.normal(keys[0], (ROWS, LENGTH, WIDTH))
  params = {
    'inner': jax.random.normal(keys[1], (WIDTH, WIDTH)),
    'outer': jax.random.normal(keys[2], (WIDTH, VOCABULARY)),
  }
  targets = jax.random.randint(keys[3], (ROWS, LENGTH), 0, VOCABULARY)
  weight = jax.random.normal(keys[4], (ROWS, LENGTH))
  mask = jax.random.bernoulli(keys[5], 0.7, (ROWS, LENGTH))

  def statistics(params):
    return token_stats(
      jnp.tanh(inputs @ params['inner']), params['outer'], targets
    )

  return statistics, params, weight, mask


def entropy(statistics, params, mask):
  """Mean entropy of the tokens in the mask."""
  return float(np.asarray(statistics(params).entropy)[np.asarray(mask)].mean())


@pytest.mark.parametrize('adaptive', [False, True])
def test_predicts_the_change_of_the_mean_entropy(problem, adaptive):
  statistics, params, weight, mask = problem
  scale = jax.tree.map(lambda p: 1 / (1 + jnp.abs(p)), params)

  def precondition(gradient):
    if not adaptive:
      return gradient
    return jax.tree.map(jnp.multiply, scale, gradient)

  def objective(params):
    logprobs = statistics(params).logprobs
    return jnp.sum(jnp.where(mask, weight * logprobs, 0)) / jnp.sum(mask)

  step = 1e-5
  update = precondition(jax.grad(objective)(params))
  updated = jax.tree.map(lambda p, u: p + step * u, params, update)
  realised = entropy(statistics, updated, mask) - entropy(
    statistics, params, mask
  )
  score = covrl.jvp_score(
    statistics, params, weight, mask, precondition=precondition
  )
  count = int(np.sum(np.asarray(mask)))
  predicted = -step / count * float(jnp.sum(score))
  assert predicted == pytest.approx(realised, rel=1e-3)
  assert not np.any(np.asarray(score)[~np.asarray(mask)])


def test_score_of_a_token_does_not_depend_on_other_weights(problem):
  statistics, params, weight, mask = problem
  score = covrl.jvp_score(statistics, params, weight, mask)
  single_weight = jnp.zeros_like(weight).at[1, 2].set(weight[1, 2])
  score_of_one = covrl.jvp_score(statistics, params, single_weight, mask)
  np.testing.assert_allclose(score_of_one[1, 2], score[1, 2], rtol=1e-12)
  assert np.count_nonzero(score_of_one) <= 1


def test_equals_the_exact_score_for_free_logits(problem):
  _, _, weight, mask = problem
  logits = jax.random.normal(jax.random.key(7), (ROWS, LENGTH, VOCABULARY))
  targets = jnp.zeros((ROWS, LENGTH), jnp.int32)

  def statistics(logits):
    return covrl.token_stats_from_logits(logits, targets)

  score = covrl.jvp_score(statistics, logits, weight, mask)
  stats, moments = covrl.token_stats_from_logits(logits, targets, moments=True)
  exact = covrl.exact_score(stats, moments, weight)
  np.testing.assert_allclose(
    score, np.where(mask, exact, 0) / np.sum(mask), rtol=1e-10, atol=1e-14
  )
