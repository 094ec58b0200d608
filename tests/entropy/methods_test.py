# SPDX-License-Identifier: Apache-2.0
"""KL-Cov, Clip-Cov and the bonus against their formulas, their schedules and summaries."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl.entropy.base import update_signal
from covrl.types import TokenStats


@pytest.fixture
def batch():
  """A small batch with some drift between old and current policy."""
  rng = np.random.default_rng(0)
  old = -rng.exponential(size=(8, 16)).astype(np.float32)
  stats = TokenStats(
    logprobs=jnp.asarray(old + rng.normal(size=old.shape) * 0.1, jnp.float32),
    entropy=jnp.asarray(rng.uniform(0, 2, old.shape), jnp.float32),
  )
  mask = jnp.asarray(rng.random(old.shape) < 0.8)
  advantages = np.repeat(rng.normal(size=(8, 1)), 16, 1).astype(np.float32)
  context = {
    'advantages': jnp.asarray(advantages),
    'old_logprobs': jnp.asarray(old),
    'old_entropy': stats.entropy,
    'mask': mask,
    'weights': mask / mask.sum(),
    'key': jax.random.key(0),
    'step': jnp.asarray(0),
  }
  return stats, context


def run(token_tx, batch, **more):
  """The chain's result for a signal of 0, and its state."""
  stats, context = batch
  zero_signal = jax.tree.map(jnp.zeros_like, stats)
  state = token_tx.init(TokenStats.template())
  update = jax.jit(functools.partial(update_signal, token_tx))
  return update(zero_signal, state, stats, **context, **more)


def first_selection(token_tx, stats, **context):
  """The chain's first selection."""
  return jax.jit(functools.partial(covrl.explain, token_tx))(stats, **context)[
    0
  ]


def test_bonus_equals_its_formula(batch):
  signal, _ = run(covrl.entropy_bonus(0.3), batch)
  np.testing.assert_allclose(
    signal.entropy, -0.3 * batch[1]['weights'], rtol=1e-6
  )
  assert not signal.logprobs.any()
  # It is the cotangent of the loss term −c Σ w H.

  def loss(entropy):
    return -0.3 * jnp.sum(batch[1]['weights'] * entropy)

  np.testing.assert_allclose(
    signal.entropy, jax.grad(loss)(batch[0].entropy), rtol=1e-6
  )


@pytest.mark.parametrize('divergence', ['abs', 'k1', 'k2', 'k3'])
def test_penalty_is_the_gradient_of_its_divergence(batch, divergence):
  stats, context = batch
  signal, _ = run(covrl.add_divergence_penalty(0.7, divergence), batch)

  def loss(logprobs):
    r = logprobs - context['old_logprobs']
    terms = {
      'abs': jnp.abs(r),
      'k1': r,
      'k2': r**2 / 2,
      'k3': jnp.exp(-r) - 1 + r,
    }
    return 0.7 * jnp.sum(context['weights'] * terms[divergence])

  expected = jax.grad(loss)(stats.logprobs)
  np.testing.assert_allclose(signal.logprobs, expected, rtol=2e-5, atol=1e-8)


def test_penalty_is_zero_where_the_policy_is_unchanged(batch):
  stats, context = batch
  unchanged = TokenStats(
    logprobs=context['old_logprobs'], entropy=stats.entropy
  )
  tx = covrl.kl_cov(fraction=0.05, minimum=1)
  signal, state = run(tx, (unchanged, context))
  assert int(state.summary.selected) >= 1
  assert not signal.logprobs.any()
  # …and within the noise between two programs.
  noise = 1e-4 * jnp.sign(stats.logprobs - context['old_logprobs'])
  current_stats = TokenStats(
    logprobs=context['old_logprobs'] + noise, entropy=stats.entropy
  )
  within_noise, _ = run(
    tx, (current_stats, context), log_ratio_noise=jnp.asarray(2e-4)
  )
  assert not within_noise.logprobs.any()
  beyond_noise, _ = run(
    tx, (current_stats, context), log_ratio_noise=jnp.asarray(5e-5)
  )
  assert beyond_noise.logprobs.any()


def test_selects_by_old_statistics_by_default(batch):
  stats, context = batch
  reversed_stats = TokenStats(
    logprobs=stats.logprobs[:, ::-1], entropy=stats.entropy
  )
  old_method = covrl.kl_cov(fraction=0.05)
  np.testing.assert_array_equal(
    first_selection(old_method, stats, **context).mask,
    first_selection(old_method, reversed_stats, **context).mask,
  )
  current_method = covrl.kl_cov(fraction=0.05, selection_source='current')
  assert (
    first_selection(current_method, stats, **context).mask
    != first_selection(current_method, reversed_stats, **context).mask
  ).any()


@pytest.mark.parametrize('score', ['batch', 'state', 'definition', 'exact'])
def test_every_score_ranks_by_its_formula(batch, score):
  stats, context = batch
  rng = np.random.default_rng(3)
  moments = covrl.TokenMoments(
    **{
      name: jnp.asarray(rng.uniform(-1, 1, (8, 16)), jnp.float32)
      for name in ('square', 'square_log', 'square_log_square')
    }
  )
  tx = covrl.kl_cov(fraction=0.05, score=score)
  chosen = first_selection(tx, stats, **context, old_moments=moments)
  logp = np.asarray(context['old_logprobs'], float)
  entropy = np.asarray(context['old_entropy'], float)
  advantage = np.asarray(context['advantages'], float)
  mask = np.asarray(context['mask'])
  p = np.exp(logp)
  kappa = np.asarray(moments.square_log) + entropy * np.asarray(moments.square)
  expected = {
    'batch': (logp - logp[mask].mean()) * (advantage - advantage[mask].mean()),
    'state': (logp + entropy) * advantage,
    'definition': (logp + entropy)
    * (p * advantage - (p * advantage)[mask].mean()),
    'exact': advantage * (p * (logp + entropy) - kappa),
  }[score]
  np.testing.assert_allclose(
    np.asarray(chosen.scores)[mask], expected[mask], rtol=2e-5, atol=1e-6
  )
  count = int(0.05 * mask.sum())
  threshold = np.sort(expected[mask])[-count]
  np.testing.assert_array_equal(chosen.mask, mask & (expected >= threshold))


def test_coefficients_and_fractions_follow_schedules_in_chains(batch):
  """Coefficients and fractions follow schedules, inside optax's own chains."""
  stats, context = batch
  tx = optax.named_chain(
    (
      'kl_cov',
      optax.inject_hyperparams(covrl.kl_cov)(
        fraction=optax.linear_schedule(0.01, 0.05, 4),
        coefficient=optax.linear_schedule(1.0, 0.0, 4),
      ),
    ),
    ('bonus', covrl.entropy_bonus(optax.linear_schedule(0.2, 0.0, 2))),
    ('norm', optax.snapshot('signal_norm', optax.tree.norm)),
  )
  state = tx.init(TokenStats.template())
  update = jax.jit(
    lambda signal, state, context: tx.update(signal, state, stats, **context)
  )
  zero_signal = jax.tree.map(jnp.zeros_like, stats)
  selected, bonus, norms = [], [], []
  for step in range(3):
    signal, state = update(zero_signal, state, context | {'step': step})
    selected.append(int(optax.tree.get(state, 'summary').selected))
    bonus.append(float(-jnp.sum(signal.entropy)))
    norms.append(float(optax.tree.get(state, 'signal_norm')))
  tokens = int(context['mask'].sum())
  assert selected == [int(f * tokens) for f in (0.01, 0.02, 0.03)]
  np.testing.assert_allclose(bonus, [0.2, 0.1, 0.0], atol=1e-6)
  assert norms[0] > norms[1] > norms[2]


def test_traced_fraction_is_clamped_and_counted(batch):
  _stats, context = batch
  tx = covrl.kl_cov(fraction=lambda step: 0.5 + 0 * step)
  _, state = run(tx, batch)
  assert int(state.summary.clamped) == 1
  assert int(state.summary.quota) == int(0.05 * context['mask'].sum())


def test_summary_counts_quadrants(batch):
  stats, context = batch
  _, state = run(covrl.kl_cov(fraction=0.05), batch)
  mask = np.asarray(context['mask'])
  chosen = np.asarray(
    first_selection(covrl.kl_cov(fraction=0.05), stats, **context).mask
  )
  logp, advantage = (
    np.asarray(context['old_logprobs']),
    np.asarray(context['advantages']),
  )
  median = np.sort(logp[mask])[int(np.ceil(mask.sum() / 2)) - 1]
  summary = state.summary
  assert (
    int(summary.positive_likely)
    == (chosen & (advantage > 0) & (logp > median)).sum()
  )
  assert (
    int(summary.negative_rare)
    == (chosen & (advantage < 0) & (logp <= median)).sum()
  )
  assert int(summary.selected) == chosen.sum() == int(summary.quota)


@pytest.mark.parametrize('value', [jnp.nan, -jnp.inf])
def test_statistics_that_are_not_finite_are_left_out_and_counted(batch, value):
  stats, context = batch
  token = np.argwhere(np.asarray(context['mask']))[0]
  old = context['old_logprobs'].at[tuple(token)].set(value)
  context = context | {'old_logprobs': old}
  selection = first_selection(covrl.kl_cov(fraction=0.05), stats, **context)
  assert int(selection.nonfinite) == 1
  assert not bool(selection.mask[tuple(token)])
  assert bool(jnp.all(jnp.isfinite(selection.scores)))


def test_selects_nothing_without_eligible_tokens(batch):
  stats, context = batch
  empty = context | {'mask': jnp.zeros_like(context['mask'])}
  for tx in (covrl.kl_cov(fraction=0.05, minimum=1), covrl.clip_cov(0.05)):
    selection = first_selection(tx, stats, **empty)
    assert int(selection.mask.sum()) == 0
    assert float(selection.threshold) == 0
  flat = context | {'advantages': jnp.zeros_like(context['advantages'])}
  signal, _ = run(covrl.clip_cov(0.05), (stats, flat))
  assert not signal.logprobs.any()


def untyped(option: str) -> Any:
  """A value as `Any`, which the type checker accepts for every argument."""
  return option


def test_errors_name_the_wrong_argument(batch):
  stats, _context = batch
  with pytest.raises(
    ValueError, match=r'fraction must lie in \(0, 0\.05\], got 0\.2'
  ):
    covrl.kl_cov(fraction=0.2)
  with pytest.raises(ValueError, match='low must be below high'):
    covrl.clip_cov(low=5.0, high=1.0)
  with pytest.raises(ValueError, match=r"score must be one of .* got 'cov'"):
    covrl.kl_cov(score=untyped('cov'))
  with pytest.raises(
    ValueError, match=r"divergence must be one of .* got 'kl'"
  ):
    covrl.kl_cov(divergence=untyped('kl'))
  with pytest.raises(ValueError, match='coefficient must be finite'):
    covrl.entropy_bonus(-1.0)
  with pytest.raises(ValueError, match='scope must be'):
    covrl.kl_cov(scope=untyped('rank'))
  bonus, chain = covrl.entropy_bonus(0.1), covrl.kl_cov()
  state = bonus.init(stats.template())
  with pytest.raises(TypeError, match='weights must be in the context of'):
    bonus.update(stats, state, stats)
  params, state = {'w': jnp.ones(2)}, chain.init({'w': jnp.ones(2)})
  with pytest.raises(
    TypeError, match='token transforms belong in the token chain'
  ):
    chain.update(params, state, params)
  with pytest.raises(
    TypeError, match=r'TokenStats.divergence must be the full KL'
  ):
    run(covrl.add_divergence_penalty(1.0, 'full'), batch)
