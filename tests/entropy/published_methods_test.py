# SPDX-License-Identifier: Apache-2.0
"""KL-Cov and Clip-Cov as chains and losses, against vectors of published code."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import covrl
from covrl.entropy.base import update_signal
from covrl.objectives import WeightMode
from covrl.types import TokenStats

# Names of covrl by those of the published implementation.
MODES: dict[str, WeightMode] = {
  'token-mean': 'token-mean',
  'token-sum': 'token-sum',
  'seq-mean-token-mean': 'sequence-mean-token-mean',
  'seq-mean-token-sum': 'sequence-mean-token-sum',
  'seq-mean-token-sum-norm': 'constant-length',
}


def context_of(case, dtype):
  """Statistics and context of a published case."""
  mask = case.input('response_mask')
  weights = covrl.token_weights(
    mask, MODES[case.options['loss_agg_mode']], length=case.shape[1]
  ).astype(dtype)
  if 'rollout_is_weights' in case:
    weights = weights * case.input('rollout_is_weights', dtype)
  logprobs = case.input('log_prob', dtype)
  stats = TokenStats(logprobs=logprobs, entropy=jnp.zeros_like(logprobs))
  context = {
    'advantages': case.input('advantages', dtype),
    'old_logprobs': case.input('old_log_prob', dtype),
    'mask': mask,
    'weights': weights,
    'key': jax.random.key(0),
    'step': jnp.asarray(0),
  }
  return stats, context


@functools.partial(jax.jit, static_argnames=('loss', 'make_tx'))
def signal_gradient_and_selection(
  loss, make_tx, options, stats, context, loss_options
):
  """The chain form's signal, the loss form's gradient, and the selection.

  Compiled once per method: options are traced.
  """
  token_tx = make_tx(**options)
  loss = functools.partial(loss, **loss_options)
  state = token_tx.init(TokenStats.template())
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
  context = context | aux.for_selection
  selection = covrl.explain(token_tx, stats, **context)[0]
  signal, _ = update_signal(token_tx, signal, state, stats, **context)
  gradient, _ = jax.grad(covrl.as_loss(loss, token_tx), has_aux=True)(
    stats, state, **context
  )
  return signal, gradient, selection


def check_forms(loss, make_tx, options, stats, context, **loss_options):
  """Asserts equal bits of loss form and chain form; returns signal and selection."""
  signal, gradient, selection = signal_gradient_and_selection(
    loss, make_tx, options, stats, context, loss_options
  )
  np.testing.assert_array_equal(signal.logprobs, gradient.logprobs)
  np.testing.assert_array_equal(signal.entropy, gradient.entropy)
  return signal, selection


def kl_cov_as_published(fraction, coefficient):
  """KL-Cov with the published code's options."""
  return covrl.kl_cov(
    fraction,
    coefficient,
    selection_source='current',
    minimum=1,
    dead_zone=0.0,
    allow_large=True,
  )


def penalty_on(chosen, coefficient):
  """KL penalty on given tokens."""
  return covrl.token_masked(
    covrl.add_divergence_penalty(coefficient, dead_zone=0.0),
    lambda stats, **_: chosen,
  )


def check_kl_cov(golden, close, dtype, relative):
  """Compares KL-Cov with every published vector."""
  for case in golden('kl_cov'):
    stats, context = context_of(case, dtype)
    beta = jnp.asarray(case.options['ppo_kl_coef'], dtype)
    fraction = jnp.asarray(case.options['kl_cov_ratio'], dtype)
    signal, selection = check_forms(
      covrl.policy_gradient,
      kl_cov_as_published,
      {'fraction': fraction, 'coefficient': beta},
      stats,
      context,
    )
    expected = case.expected('chosen').astype(bool)
    assert int(selection.mask.sum()) == case.options['k']
    if case.options['tie']:
      # Any of the tied tokens may be selected: take the published choice.
      signal, _ = check_forms(
        covrl.policy_gradient,
        penalty_on,
        {'chosen': jnp.asarray(expected), 'coefficient': beta},
        stats,
        context,
      )
    else:
      np.testing.assert_array_equal(selection.mask, expected, case.name)
    assert signal.logprobs.dtype == dtype
    close(signal.logprobs, case.expected('grad_log_prob'), relative, case.name)


def test_kl_cov_equals_the_published_code_in_float32(golden, close):
  check_kl_cov(golden, close, jnp.float32, 1e-6)


def test_kl_cov_equals_the_published_code_in_float64(golden, close, x64):
  check_kl_cov(golden, close, jnp.float64, 1e-12)


def clip_cov_as_published(fraction, low, high):
  """Clip-Cov with the published code's options."""
  return covrl.token_masked(
    optax.set_to_zero(),
    covrl.selectors.random_in_band(
      fraction,
      low,
      high,
      selection_source='current',
      minimum=1,
      allow_large=True,
    ),
  )


def detach(chosen):
  """Detaches given tokens."""
  return covrl.token_masked(optax.set_to_zero(), lambda stats, **_: chosen)


def published_clip(stats, *, low, high, **context):
  """The published clipped loss, without a bound on the log ratio."""
  return covrl.clipped_surrogate(
    stats, low=low, high=high, max_log_ratio=None, **context
  )


def check_clip_cov(golden, close, dtype, relative):
  """Compares Clip-Cov with every published vector."""
  for case in golden('clip_cov'):
    stats, context = context_of(case, dtype)
    options = {
      name: jnp.asarray(case.options[f'clip_cov_{source}'], dtype)
      for name, source in (('fraction', 'ratio'), ('low', 'lb'), ('high', 'ub'))
    }
    clip_range = {
      name: jnp.asarray(case.options[f'clip_ratio_{name}'], dtype)
      for name in ('low', 'high')
    }
    own_signal, selection = check_forms(
      published_clip,
      clip_cov_as_published,
      options,
      stats,
      context,
      **clip_range,
    )
    eligible = case.expected('eligible').astype(bool)
    chosen = case.expected('chosen').astype(bool)
    assert int(selection.eligible) == eligible.sum(), case.name
    assert int(selection.quota) == case.options['clip_num'], case.name
    assert int(selection.mask.sum()) == chosen.sum(), case.name
    assert not (np.asarray(selection.mask) & ~eligible).any(), case.name
    close(
      np.asarray(selection.scores) * eligible,
      case.expected('cov') * eligible,
      # The published code divides by N + 1e-8.
      max(relative * 10, 1e-8),
      case.name,
    )
    # The choice is random: take the published one.
    signal, _ = check_forms(
      published_clip,
      detach,
      {'chosen': jnp.asarray(chosen)},
      stats,
      context,
      **clip_range,
    )
    expected = case.expected('grad_log_prob')
    close(signal.logprobs, expected, relative, case.name)
    if case.options['deterministic']:
      close(own_signal.logprobs, expected, relative, case.name)


def test_clip_cov_equals_the_published_code_in_float32(golden, close):
  check_clip_cov(golden, close, jnp.float32, 1e-6)


def test_clip_cov_equals_the_published_code_in_float64(golden, close, x64):
  check_clip_cov(golden, close, jnp.float64, 1e-12)
