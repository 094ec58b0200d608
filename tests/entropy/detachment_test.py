# SPDX-License-Identifier: Apache-2.0
"""`detach_drain`: detaches the largest values up to a sum, the last one in part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import NamedSharding, PartitionSpec

import covrl
from covrl.entropy import DecisionCache
from covrl.entropy.methods.detachment import prefix_share
from covrl.types import TokenMoments, TokenStats

share = jax.jit(prefix_share)


def by_sorting(values, amount):
  """Reference implementation: one level of equal values at a time."""
  shares, remaining = np.zeros(values.shape), float(amount)
  for level in np.unique(values[values > 0])[::-1]:
    level_sum = float(level) * (values == level).sum()
    shares[values == level] = np.clip(remaining / level_sum, 0, 1)
    remaining -= level_sum
  return shares


@given(
  arrays(
    np.float32,
    (3, 7),
    # Few levels, so that some are equal; of either sign.
    elements=st.sampled_from([-2.0, -0.0, 0.0, 0.25, 0.5, 3.0, 1e-30, 1e30]),
  ),
  st.sampled_from([0.0, 1e-31, 0.1, 0.75, 3.0, 7.5, 2e30, 1e32]),
)
@settings(max_examples=200, deadline=None)
def test_prefix_share_equals_a_sort(values, amount):
  expected = by_sorting(values, amount)
  if values.max() >= 1e30 and amount < 1e20:
    expected = expected * 0 + np.where(values == 1e30, expected, 0)
  actual = share(values, amount)
  np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=1e-30)


def test_prefix_sums_to_the_amount_with_one_partial_token():
  values = jnp.asarray(
    np.random.default_rng(0).normal(size=(16, 32)), jnp.float32
  )
  positive_sum = float(jnp.sum(jnp.maximum(values, 0)))
  for fraction in (0.01, 0.3, 0.999):
    shares = share(values, fraction * positive_sum)
    np.testing.assert_allclose(
      jnp.sum(shares * values), fraction * positive_sum, rtol=1e-5
    )
    lowest = jnp.min(jnp.where(shares > 0, values, jnp.inf))
    highest = jnp.max(jnp.where(shares == 0, values, -jnp.inf))
    assert lowest > highest
    assert int(jnp.sum((shares > 0) & (shares < 1))) <= 1


def test_prefix_share_is_bitwise_equal_on_every_mesh_and_order():
  values = np.random.default_rng(1).normal(size=(16, 32)).astype(np.float32)
  expected = np.asarray(share(values, 20.0))
  order = np.random.default_rng(2).permutation(16)
  np.testing.assert_array_equal(share(values[order], 20.0), expected[order])
  for shape in ((8, 1), (2, 4)):
    mesh = jax.make_mesh(shape, ('x', 'y'))
    placed = jax.device_put(
      values, NamedSharding(mesh, PartitionSpec('x', 'y'))
    )
    np.testing.assert_array_equal(share(placed, 20.0), expected)


@pytest.fixture
def batch():
  rng = np.random.default_rng(0)
  logits = jnp.asarray(rng.normal(size=(8, 6, 5)), jnp.float32)
  targets = jnp.asarray(rng.integers(0, 5, (8, 6)))
  stats, moments = covrl.token_stats_from_logits(logits, targets, moments=True)
  signal = TokenStats(
    logprobs=jnp.asarray(rng.normal(size=(8, 6)), jnp.float32),
    entropy=jnp.zeros((8, 6)),
  )
  return stats, signal, {'moments': moments}


def test_detaches_the_amount_and_summarizes_the_selection(batch):
  stats, signal, context = batch
  drain = -covrl.entropy_change(signal, stats, context['moments'])
  amount = 0.4 * float(jnp.sum(jnp.maximum(drain, 0)))
  token_tx = covrl.detach_drain(amount)
  edited, state = covrl.update_signal(
    token_tx, signal, token_tx.init(TokenStats.template()), stats, **context
  )
  remaining_drain = -covrl.entropy_change(edited, stats, context['moments'])
  np.testing.assert_allclose(
    jnp.sum(remaining_drain), jnp.sum(drain) - amount, rtol=1e-4
  )
  detached = edited.logprobs != signal.logprobs
  assert int(state.summary.selected) == int(jnp.sum(detached)) > 1
  assert int(state.summary.eligible) == int(jnp.sum(drain > 0))
  assert float(state.coefficient) == pytest.approx(amount)
  (selection,) = covrl.explain(token_tx, stats, signal=signal, **context)
  np.testing.assert_array_equal(selection.mask, detached)


def test_micro_batches_use_the_decisions_of_the_batch(batch):
  stats, signal, context = batch
  token_tx = covrl.detach_drain(covrl.target_entropy(2.0))
  state = token_tx.init(TokenStats.template())
  context = context | {'entropy': jnp.mean(stats.entropy)}
  cache = DecisionCache()
  batch_edited, _ = covrl.update_signal(
    token_tx, signal, state, stats, **context, decisions=cache
  )

  def rows(tree):
    return jax.tree.map(lambda x: x[:4] if x.ndim == 2 else x, tree)

  micro_batch_edited, _ = covrl.update_signal(
    token_tx,
    rows(signal),
    state,
    rows(stats),
    **rows(context),
    decisions=DecisionCache(rows(cache.decisions)),
  )
  np.testing.assert_array_equal(
    micro_batch_edited.logprobs, batch_edited.logprobs[:4]
  )


def test_refuses_bad_input():
  with pytest.raises(ValueError, match='amount must be finite and at least 0'):
    covrl.detach_drain(-1.0)
  token_tx = covrl.detach_drain(0.1)
  stats = TokenStats(logprobs=jnp.zeros((1, 1)), entropy=jnp.zeros((1, 1)))
  state = token_tx.init(TokenStats.template())
  with pytest.raises(
    TypeError, match='moments must be in the context of detach_drain'
  ):
    covrl.update_signal(token_tx, stats, state, stats)
  moments = TokenMoments(
    square=jnp.ones((1, 1)),
    square_log=jnp.zeros((1, 1)),
    square_log_square=jnp.zeros((1, 1)),
  )
  edited, state = covrl.update_signal(
    token_tx, stats, state, stats, moments=moments
  )
  assert int(state.summary.selected) == 0
  assert not edited.logprobs.any()
