# SPDX-License-Identifier: Apache-2.0
"""Methods that rescale the policy gradient, each against its NumPy formula."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from entropy.drifted_batch import ROWS, as_numpy, cotangents, make_batch

import covrl
from covrl.entropy import DecisionCache, update_signal
from covrl.types import SelectionSource, TokenStats


@pytest.fixture
def batch():
  return make_batch()


def clipped(stats, **context):
  return covrl.clipped_surrogate(stats, low=0.2, high=0.28, **context)


def check_rescaled(batch, token_tx, advantages):
  """Asserts that the chain has the effect of other advantages in the loss."""
  stats, context = batch
  _, after = cotangents(token_tx, clipped, stats, context)
  rescaled = context | {'advantages': jnp.asarray(advantages, jnp.float32)}
  expected = jax.grad(lambda s: clipped(s, **rescaled)[0])(stats)
  np.testing.assert_allclose(
    after.logprobs, expected.logprobs, rtol=2e-5, atol=1e-8
  )
  assert not after.entropy.any()
  assert after.logprobs.any()


@pytest.mark.parametrize('scale', [0.3, -0.3])
def test_repo_rescales_advantages_by_their_log_probability(batch, scale):
  a = as_numpy(batch)
  up = np.maximum(a['advantages'] * (1 - scale * a['logprobs']), 0)
  down = np.minimum(a['advantages'] * (1 + scale * a['logprobs']), 0)
  expected = np.where(a['advantages'] > 0, up, down)
  assert (expected == 0)[a['mask']].any()
  check_rescaled(batch, covrl.repo(scale), expected)


def test_entropy_shaped_adds_to_advantages(batch):
  a = as_numpy(batch)
  added = np.minimum(0.4 * a['H'], np.abs(a['advantages']) / 2)
  check_rescaled(batch, covrl.entropy_shaped(), a['advantages'] + added)


def test_sample_weights_multiply_advantages_by_their_sign(batch):
  a = as_numpy(batch)['advantages']
  expected = np.where(a > 0, 0.1 * a, 1.5 * a)
  check_rescaled(batch, covrl.sample_weights(0.1, 1.5), expected)
  check_rescaled(batch, covrl.sample_weights(positive=0.0), np.minimum(a, 0))


def test_entropic_weights_advantages_by_their_sign_and_its_controller(batch):
  a = as_numpy(batch)['advantages']
  alpha = 2.0 * (0.4 - 0.5) + 0.1 * (0.4 - 0.5)
  expected = np.where(a > 0, (1 + alpha) * a, (1 - alpha) * a)
  token_tx = covrl.entropic(0.5, proportional=2.0, integral=0.1)
  check_rescaled(batch, token_tx, expected)
  # Far from the target one sign has weight 0, and neither changes its sign.
  far_from_target = covrl.entropic(0.5, proportional=100.0)
  check_rescaled(batch, far_from_target, np.where(a > 0, 0, 2 * a))


def test_entrocraft_keeps_samples_that_move_entropy_into_the_band(batch):
  a = as_numpy(batch)['advantages']
  check_rescaled(batch, covrl.entrocraft(0.6, 0.7), np.minimum(a, 0))
  check_rescaled(batch, covrl.entrocraft(0.3, 0.5), a)
  falling = (optax.linear_schedule(edge, 0.0, 10) for edge in (0.1, 0.3))
  check_rescaled(batch, covrl.entrocraft(*falling), np.maximum(a, 0))


def entropy_change(a):
  """STEER's estimate of each token's change of the entropy."""
  p = np.exp(a['logprobs'])
  return np.abs(
    a['advantages']
    / np.exp(a['old_logprobs'])
    * p
    * (1 - p)
    * (a['logprobs'] + a['H'])
  )


def test_steer_reduces_the_weight_of_the_largest_changes(batch):
  a = as_numpy(batch)
  change = entropy_change(a)
  k = -np.log(0.7) / max(change[a['mask']].max(), 0.02)
  weight = np.exp(-k * change)
  assert np.isclose(weight.min(), 0.7)
  check_rescaled(batch, covrl.steer(0.7), a['advantages'] * weight)


def test_steer_of_linear_shape_weights_changes_linearly(batch):
  a = as_numpy(batch)
  change = entropy_change(a)
  least, most = change[a['mask']].min(), change[a['mask']].max()
  weight = 1.2 - 0.4 * (change - least) / (most - least)
  token_tx = covrl.steer(curve='linear')
  check_rescaled(batch, token_tx, a['advantages'] * weight)


def test_forking_tokens_keeps_the_highest_entropies(batch):
  stats, context = batch
  mask = np.asarray(context['mask'])
  sources: list[tuple[SelectionSource, str]] = [
    ('old', 'old_entropy'),
    ('current', 'H'),
  ]
  for source, name in sources:
    entropy = np.where(mask, as_numpy(batch)[name], -np.inf)
    is_kept = entropy >= np.sort(entropy.ravel())[-int(0.2 * mask.sum())]
    token_tx = covrl.forking_tokens(0.2, selection_source=source)
    before, after = cotangents(token_tx, covrl.policy_gradient, stats, context)
    expected = np.where(is_kept, before.logprobs, 0)
    np.testing.assert_array_equal(after.logprobs, expected)
    assert is_kept.sum() == int(0.2 * mask.sum())


def whole_and_halves(token_tx, batch):
  """The chain on each half of the rows, with the decisions of the whole."""
  stats, context = batch

  @jax.jit
  def edit(stats, context, decisions):
    cache = DecisionCache(decisions)
    signal = jax.tree.map(jnp.ones_like, stats)
    state = token_tx.init(TokenStats.template())
    after, _ = update_signal(
      token_tx, signal, state, stats, **context, decisions=cache
    )
    return after.logprobs, cache.decisions

  def rows(tree, selected):
    return jax.tree.map(lambda x: x[selected] if jnp.ndim(x) == 2 else x, tree)

  whole, decisions = edit(stats, context, None)
  halves = [
    edit(*rows((stats, context, decisions), selected))[0]
    for selected in (slice(0, ROWS // 2), slice(ROWS // 2, None))
  ]
  return whole, jnp.concatenate(halves)


@pytest.mark.parametrize('make', [covrl.steer, covrl.forking_tokens])
def test_batch_quantities_are_the_same_in_every_micro_batch(batch, make):
  np.testing.assert_array_equal(*whole_and_halves(make(), batch))
  whole, halves = whole_and_halves(make(scope='micro_batch'), batch)
  assert (whole != halves).any()


def dtype(leaf):
  return leaf.dtype


METHODS = {
  'ce_gppo': covrl.ce_gppo(),
  'entropy_shaped': covrl.entropy_shaped(),
  'forking_tokens': covrl.forking_tokens(),
  'kl_to_reference': covrl.kl_to_reference(),
  'repo': covrl.repo(covrl.controllers.doubling_scale(0.5)),
  'sample_weights': covrl.sample_weights(0.1),
  'steer': covrl.steer(),
  'truncated_importance_weights': covrl.truncated_importance_weights(),
}


def test_composition_keeps_dtype_and_ignores_tokens_off_the_mask(batch):
  """All of them in one chain, on half-precision cotangents."""
  stats, context = batch
  token_tx = optax.named_chain(*METHODS.items())

  @jax.jit
  def edit(stats, context):
    signal = TokenStats(
      logprobs=jnp.where(context['mask'], 1, 0).astype(jnp.bfloat16),
      entropy=jnp.zeros(stats.entropy.shape, jnp.bfloat16),
    )
    state = token_tx.init(TokenStats.template())
    after, new_state = update_signal(token_tx, signal, state, stats, **context)
    return after, state, new_state

  after, state, new_state = edit(stats, context)
  assert after.logprobs.dtype == after.entropy.dtype == jnp.bfloat16
  assert bool(jnp.isfinite(after.logprobs.astype(jnp.float32)).all())
  off_mask = np.asarray(after.logprobs)[~np.asarray(context['mask'])]
  assert not off_mask.any()
  assert {leaf.ndim for leaf in jax.tree.leaves(new_state)} == {0}
  assert jax.tree.map(dtype, state) == jax.tree.map(dtype, new_state)


@pytest.mark.parametrize(
  ('name', 'entry'),
  [
    ('ce_gppo', 'old_logprobs'),
    ('entropy_shaped', 'advantages'),
    ('forking_tokens', 'old_entropy'),
    ('kl_to_reference', 'ref_logprobs'),
    ('repo', 'entropy'),
    ('sample_weights', 'mask'),
    ('steer', 'advantages'),
    ('truncated_importance_weights', 'sampler_logprobs'),
  ],
)
def test_a_missing_entry_is_an_error_with_its_name(batch, name, entry):
  stats, context = batch
  context = {k: v for k, v in context.items() if k != entry}
  token_tx = METHODS[name]
  state = token_tx.init(TokenStats.template())
  with pytest.raises(TypeError, match=f'{entry} must be in the context of'):
    jax.eval_shape(
      lambda: update_signal(token_tx, stats, state, stats, **context)
    )


def untyped(option: str) -> Any:
  """A value as `Any`, which the type checker accepts for every argument."""
  return option


def test_refuses_options_outside_their_range():
  for make, sentence in (
    (lambda: covrl.repo(float('inf')), 'scale must be finite, got inf'),
    (lambda: covrl.entropy_shaped(bound=1.0), 'above 1, got 1'),
    (
      lambda: covrl.sample_weights(-0.1),
      'positive must be finite and at least',
    ),
    (lambda: covrl.steer(1.2), 'low must lie between 0 and 1'),
    (
      lambda: covrl.steer(high=1.2),
      "high must be None with curve='exponential'",
    ),
    (
      lambda: covrl.steer(curve=untyped('cubic')),
      "curve must be one of .* got 'cubic'",
    ),
    (
      lambda: covrl.steer(scope=untyped('rank')),
      "scope must be one of .* got 'rank'",
    ),
    (lambda: covrl.forking_tokens(20.0), r'fraction must lie in \(0, 1\]'),
    (lambda: covrl.ce_gppo(low=2.0), r'low must lie in \[0, 1\], got 2'),
    (lambda: covrl.ce_gppo(-1.0), 'negative must be finite and at least 0'),
    (
      lambda: covrl.truncated_importance_weights(0.5, 0.5),
      'got floor=0.5 and cap=0.5',
    ),
    (
      lambda: covrl.truncated_importance_weights(level=untyped('word')),
      "level must be one of .* got 'word'",
    ),
    (
      lambda: covrl.truncated_importance_weights(out_of_range=untyped('drop')),
      "out_of_range must be one of .* got 'drop'",
    ),
    (lambda: covrl.kl_to_reference(divergence='full'), 'to the old policy'),
  ):
    with pytest.raises(ValueError, match=sentence):
      make()
