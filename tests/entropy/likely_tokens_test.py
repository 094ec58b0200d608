# SPDX-License-Identifier: Apache-2.0
"""Lp-Reg and AEnt against their formulas, and the statistics they need."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_compilation import QUICK

import covrl
from covrl import TokenMoments, TokenStats, Truncation
from covrl.entropy import required_truncation, update_signal

ROWS, LENGTH, VOCABULARY = 6, 10, 12
MASK = np.arange(LENGTH) < np.array([10, 4, 7, 1, 9, 10])[:, None]


def log_softmax(logits):
  return logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))


@pytest.fixture(scope='module')
def case():
  """Log-probabilities of an old policy and of the current one, and a batch."""
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(ROWS, LENGTH, VOCABULARY))
  old = log_softmax(logits)
  new = log_softmax(logits + 0.5 * rng.normal(size=logits.shape))
  targets = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
  advantages = np.repeat(rng.normal(size=(ROWS, 1)), LENGTH, axis=1)
  return old, new, targets, np.where(MASK, advantages, 0)


def take_targets(log_pi, targets):
  """Log-probabilities of the targets."""
  return np.take_along_axis(log_pi, targets[..., None], -1)[..., 0]


def run(chain, old, new, targets, advantages):
  """The edited cotangents of a signal of zeros, in float32."""

  def statistics(log_pi):
    return covrl.token_stats(
      jnp.asarray(log_pi, jnp.float32),
      jnp.eye(VOCABULARY),
      jnp.asarray(targets),
      moments=True,
      truncation=required_truncation(chain),
    )

  @jax.jit(compiler_options=QUICK)
  def update():
    old_stats, old_moments = statistics(old)
    stats, moments = statistics(new)
    mask = jnp.asarray(MASK)
    context = {
      'advantages': jnp.asarray(advantages, jnp.float32),
      'mask': mask,
      'weights': covrl.token_weights(mask),
      'old_logprobs': old_stats.logprobs,
      'old_entropy': old_stats.entropy,
      'old_moments': old_moments,
      'moments': moments,
      'key': jax.random.key(0),
      'step': jnp.asarray(0),
      'entropy': jnp.asarray(0.5),
    }
    return update_signal(
      chain,
      jax.tree.map(jnp.zeros_like, stats),
      chain.init(stats.template()),
      stats,
      **context,
    )[0]

  return jax.device_get(update())


def lp_reg_in_numpy(
  ranking, proxy, new, targets, advantages, fraction, max_kl=10.0
):
  """The gradient of the published loss's penalty, from whole distributions.

  Args:
    ranking: log-probabilities by which the rarest tokens are selected.
    proxy: log-probabilities of which the likely tokens are the target.
    new: log-probabilities of the current policy.
    targets: the sampled tokens.
    advantages: their advantages.
    fraction: fraction of the tokens with negative advantages to select.
    max_kl: estimate of the KL above which a token has no penalty.

  Returns:
    The gradient, and whether each token is penalised.
  """
  is_kept = proxy >= proxy.max(-1, keepdims=True) + np.log(0.1)
  mass = np.sum(np.exp(proxy) * is_kept, -1)
  target = take_targets(proxy, targets) - np.log(mass)
  target = np.where(take_targets(is_kept, targets), target, -1e4)
  is_negative = MASK & (advantages < 0)
  count = int(fraction * is_negative.sum())
  order = np.argsort(
    np.where(is_negative, take_targets(ranking, targets), np.inf), None
  )
  is_rare = np.isin(np.arange(MASK.size), order[:count]).reshape(MASK.shape)
  log_pi = take_targets(new, targets)
  kl = np.exp(target - log_pi) - (target - log_pi) - 1
  is_penalised = is_rare & (log_pi < target) & (kl <= max_kl)
  gradient = np.where(is_penalised, 1 - np.exp(target - log_pi), 0)
  return gradient / MASK.sum(), is_penalised


@pytest.mark.parametrize(
  ('proxy', 'source'), [('old', 'old'), ('old', 'current'), ('current', 'old')]
)
def test_lp_reg_is_the_gradient_of_its_penalty(case, proxy, source):
  old, new, targets, advantages = case
  chain = covrl.lp_reg(
    0.6,
    2.0,
    min_p=0.1,
    proxy=proxy,
    selection_source=source,
    allow_large=True,
  )
  policies = {'old': old, 'current': new}
  expected, is_penalised = lp_reg_in_numpy(
    policies[source], policies[proxy], new, targets, advantages, 0.6
  )
  assert 2 < is_penalised.sum() < (MASK & (advantages < 0)).sum() * 0.6
  edited = run(chain, old, new, targets, advantages)
  np.testing.assert_allclose(
    edited.logprobs, 2 * expected, rtol=1e-4, atol=1e-7
  )
  assert not edited.entropy.any()


def test_lp_reg_has_no_gradient_where_its_penalty_is_above_ten(case):
  old, _, targets, advantages = case
  # The log-probabilities of sampled tokens have fallen by up to five nats.
  decrease = np.random.default_rng(1).uniform(0, 5, (ROWS, LENGTH, 1))
  new = log_softmax(old - decrease * np.eye(VOCABULARY)[targets])
  expected, is_penalised = lp_reg_in_numpy(
    old, old, new, targets, advantages, 0.9
  )
  is_penalised_without_bound = lp_reg_in_numpy(
    old, old, new, targets, advantages, 0.9, max_kl=np.inf
  )[1]
  assert 0 < is_penalised.sum() < is_penalised_without_bound.sum()
  chain = covrl.lp_reg(0.9, min_p=0.1, allow_large=True)
  edited = run(chain, old, new, targets, advantages)
  np.testing.assert_allclose(edited.logprobs, expected, rtol=1e-4, atol=1e-7)


def test_lp_reg_does_not_hide_nan(case):
  old, new, targets, advantages = case
  with_nan = np.where(MASK[..., None], np.nan, old)
  chain = covrl.lp_reg(
    0.6, min_p=0.1, selection_source='current', allow_large=True
  )
  edited = run(chain, with_nan, new, targets, advantages)
  assert np.isnan(edited.logprobs[MASK]).sum() > 2
  assert not np.isnan(edited.logprobs[~MASK]).any()


def test_aent_is_the_gradient_of_the_entropy_of_the_likely_tokens(case):
  _, new, targets, _ = case
  hidden = jnp.asarray(new, jnp.float32)
  weights = covrl.token_weights(jnp.asarray(MASK))
  loss = covrl.as_loss(covrl.policy_gradient, covrl.aent(0.5, removed=0.3))

  def value(hidden):
    stats = covrl.token_stats(
      hidden,
      jnp.eye(VOCABULARY),
      jnp.asarray(targets),
      truncation=Truncation(removed=0.3),
    )
    return loss(
      stats,
      covrl.aent(0.5).init(stats.template()),
      advantages=jnp.zeros(MASK.shape),
      old_logprobs=stats.logprobs,
      mask=jnp.asarray(MASK),
      weights=weights,
    )[0]

  def by_hand(hidden):
    """The bonus with the removed tokens' logits at −∞."""
    is_likely = hidden >= jnp.sort(hidden, -1)[..., 3:4]
    log_pi = jax.nn.log_softmax(jnp.where(is_likely, hidden, -1e9))
    terms = jnp.where(is_likely, jnp.exp(log_pi) * log_pi, 0)
    return 0.5 * jnp.sum(weights * jnp.sum(terms, -1))

  np.testing.assert_allclose(
    jax.jit(jax.grad(value))(hidden),
    jax.jit(jax.grad(by_hand))(hidden),
    rtol=1e-4,
    atol=1e-7,
  )


def test_lp_reg_and_aent_compose_with_covariance_methods_and_controllers(case):
  chain = optax.chain(
    covrl.clip_cov(0.05, low=-9.0, high=9.0),
    covrl.kl_cov(0.05),
    covrl.lp_reg(0.05, min_p=0.1, minimum=5),
    covrl.aent(covrl.controllers.proportional_integral(0.6)),
    covrl.entropy_bonus(covrl.adaptive_bonus(0.6)),
  )
  edited = run(chain, *case)
  for leaf in (edited.top_entropy, edited.logprobs):
    assert np.isfinite(leaf[MASK]).all()
    assert (leaf[MASK] != 0).any()


def test_chains_state_the_truncation_that_they_need():
  assert required_truncation(covrl.kl_cov()) == Truncation()
  both = optax.chain(covrl.lp_reg(min_p=0.05), covrl.aent(removed=0.2))
  assert required_truncation(both) == Truncation(min_p=0.05, removed=0.2)
  message = 'must have the same removed, got 0.1 and 0.2'
  with pytest.raises(ValueError, match=re.escape(message)):
    required_truncation(
      optax.chain(covrl.aent(removed=0.2), covrl.aent(removed=0.1))
    )


@pytest.mark.parametrize(
  ('chain', 'message'),
  [
    (
      covrl.aent(),
      'top_entropy of the statistics must be given to aent, got None',
    ),
    (
      covrl.lp_reg(),
      'filtered_logprobs of old_moments must be given to lp_reg',
    ),
  ],
)
def test_a_missing_statistic_is_an_error_with_its_name(chain, message):

  def update():
    ones = jnp.ones((1, 2))
    stats = TokenStats(logprobs=-ones, entropy=ones)
    return chain.update(
      stats,
      chain.init(stats.template()),
      stats,
      advantages=-ones,
      weights=ones,
      mask=ones > 0,
      old_logprobs=-ones,
      old_moments=TokenMoments(
        square=ones, square_log=ones, square_log_square=ones
      ),
    )

  with pytest.raises(TypeError, match=re.escape(message)):
    jax.eval_shape(update)


def test_refuses_options_out_of_range():
  unknown: Any = 'new'
  with pytest.raises(ValueError, match=r'min_p must lie in \(0, 1\], got 2'):
    covrl.lp_reg(min_p=2.0)
  with pytest.raises(ValueError, match='removed must be below 1, got 1'):
    covrl.aent(removed=1.0)
  with pytest.raises(ValueError, match="proxy must be 'old' or 'current'"):
    covrl.lp_reg(proxy=unknown)
  with pytest.raises(ValueError, match='fraction must lie in'):
    covrl.lp_reg(0.1)
