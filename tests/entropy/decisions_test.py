# SPDX-License-Identifier: Apache-2.0
"""Selections and predictions are made once per batch and read by micro-batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl.entropy import DecisionCache, update_signal
from covrl.types import TokenStats


def test_replay_applies_the_recorded_masks():
  rng = np.random.default_rng(0)
  stats = TokenStats(
    logprobs=jnp.asarray(-rng.exponential(size=(8, 10)), jnp.float32),
    entropy=jnp.ones((8, 10)),
  )
  context = {
    'advantages': jnp.asarray(rng.normal(size=(8, 10)), jnp.float32),
    'old_logprobs': stats.logprobs,
    'mask': jnp.ones((8, 10), bool),
    'weights': jnp.full((8, 10), 1 / 80),
    'key': jax.random.key(0),
    'step': 0,
  }
  tx = optax.chain(
    covrl.clip_cov(fraction=0.05, low=0.1), covrl.kl_cov(fraction=0.05)
  )
  signal = jax.tree.map(jnp.ones_like, stats)
  state = tx.init(TokenStats.template())

  @jax.jit
  def record(signal, stats, context):
    cache = DecisionCache()
    edited, new_state = update_signal(
      tx, signal, state, stats, **context, decisions=cache
    )
    return edited, new_state, cache.decisions

  recorded, new_state, decisions = record(signal, stats, context)
  chosen = decisions['token_masked[0]/selection'].mask
  assert int(chosen.sum()) == 4
  np.testing.assert_array_equal(recorded.logprobs == 0, chosen)

  # Half of the rows with half of the decisions: the same rows of the whole.
  half_decisions = jax.tree.map(
    lambda leaf: leaf[:4] if leaf.ndim == 2 else leaf, decisions
  )
  half_context = {
    name: value[:4] if getattr(value, 'ndim', 0) == 2 else value
    for name, value in context.items()
  }
  signal, stats = jax.tree.map(lambda x: x[:4], (signal, stats))

  @jax.jit
  def replay(signal, stats, context, decisions):
    cache = DecisionCache(decisions)
    return update_signal(tx, signal, state, stats, **context, decisions=cache)

  replayed, replayed_state = replay(signal, stats, half_context, half_decisions)
  np.testing.assert_array_equal(replayed.logprobs, recorded.logprobs[:4])
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(replayed_state), jax.tree.leaves(new_state), strict=True
  ):
    np.testing.assert_array_equal(actual_leaf, expected_leaf)


def test_summaries_of_micro_batch_scope_sum_to_the_batch():
  rng = np.random.default_rng(1)
  shape = (8, 20)
  stats = TokenStats(
    logprobs=jnp.asarray(-rng.exponential(size=shape), jnp.float32),
    entropy=jnp.ones(shape),
  )
  context = {
    'advantages': jnp.asarray(rng.normal(size=shape), jnp.float32),
    'old_logprobs': stats.logprobs,
    'mask': jnp.ones(shape, bool),
    'weights': jnp.full(shape, 1 / 160),
  }
  tx = optax.chain(
    covrl.kl_cov(fraction=0.05, scope='micro_batch'),
    covrl.kl_cov(fraction=0.0125),
  )
  state = tx.init(TokenStats.template())

  def run(cache, stats, context):
    update_signal(
      tx,
      jax.tree.map(jnp.zeros_like, stats),
      state,
      stats,
      **context,
      decisions=cache,
    )
    return cache

  @jax.jit
  def whole_and_halves(stats, context):
    whole_cache = run(DecisionCache(), stats, context)

    def half(rows):
      decisions, stats, context = rows
      cache = run(DecisionCache(decisions), stats, context)
      return [
        decision
        for decision in cache.micro_batch_decisions.values()
        if isinstance(decision, covrl.SelectionSummary)
      ]

    halves = [
      half(
        jax.tree.map(
          lambda x, rows=rows: x[rows] if x.ndim == 2 else x,
          (whole_cache.decisions, stats, context),
        )
      )
      for rows in (slice(0, 4), slice(4, 8))
    ]
    summed = jax.tree.map(jnp.add, *halves)
    explained = covrl.explain(tx, stats, **context)
    return (
      whole_cache.decisions,
      halves,
      [s.as_batch_summary(2) for s in summed],
      explained,
    )

  decisions, halves, (total,), explained = whole_and_halves(stats, context)
  # Recorded for the batch: the second transform's alone.
  assert {key: type(decision) for key, decision in decisions.items()} == {
    'token_masked[1]/selection': covrl.Selection,
    'token_masked[1]/summary': covrl.SelectionSummary,
  }
  # ⌊0.05 · 80⌋ tokens of each half, not ⌊0.05 · 160⌋ of the batch.
  assert [int(summary.selected) for (summary,) in halves] == [4, 4]
  assert int(total.selected) == int(total.quota) == 8
  assert int(total.eligible) == 160
  thresholds = [float(summary.threshold) for (summary,) in halves]
  np.testing.assert_allclose(total.threshold, np.mean(thresholds), rtol=1e-6)
  # `explain` returns both, in the order of the chain.
  assert [int(decision.quota) for decision in explained] == [8, 2]


def test_refuses_decisions_of_another_chain():
  cache = DecisionCache({})
  with pytest.raises(ValueError, match='recorded by another token chain'):
    cache.decide('selection', lambda: 1)


def test_keys_are_paths_and_do_not_depend_on_the_order_of_calls():
  recorded = DecisionCache()
  with recorded.transform('token_masked'):
    recorded.decide('selection', lambda: 1)
    with recorded.transform('add_entropy_bonus'):
      recorded.decide('prediction', lambda: 2)
  with recorded.transform('token_masked'):
    recorded.decide('selection', lambda: 3)
  assert recorded.decisions == {
    'token_masked[0]/selection': 1,
    'token_masked[0]/add_entropy_bonus[0]/prediction': 2,
    'token_masked[1]/selection': 3,
  }
  # A decision that only one of two passes reads does not shift the others.
  replayed = DecisionCache(recorded.decisions)
  with replayed.transform('token_masked'):
    assert replayed.decide('selection', lambda: 0) == 1
  with replayed.transform('token_masked'):
    assert replayed.decide('selection', lambda: 0) == 3
    assert replayed.decide('selection', lambda: 0) == 3


def test_decisions_have_a_key_of_their_own_in_every_nesting_of_optax():
  """Paths within chain, named_chain and inject_hyperparams."""
  shape = (2, 10)
  rng = np.random.default_rng(2)
  old, advantages = (
    jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2)
  )
  stats = TokenStats(logprobs=-jnp.abs(old), entropy=jnp.ones(shape))
  context: dict[str, Any] = {
    'advantages': advantages,
    'old_logprobs': old,
    'mask': jnp.ones(shape, bool),
    'weights': jnp.full(shape, 1 / 20),
  }

  def make(coefficient):
    inner = covrl.token_masked(
      covrl.add_divergence_penalty(coefficient),
      covrl.selectors.top_entropy(0.9, selection_source='current'),
    )
    return covrl.token_masked(inner, covrl.selectors.top_score(0.05))

  tx = optax.chain(
    optax.inject_hyperparams(make)(coefficient=0.5),
    optax.named_chain(('kl_cov', covrl.kl_cov(0.05))),
  )
  cache = DecisionCache()
  state = tx.init(stats.template())
  update_signal(tx, stats, state, stats, **context, decisions=cache)
  assert set(cache.decisions) == {
    f'token_masked[{path}]/{name}'
    for path in ('0', '0]/token_masked[0', '1')
    for name in ('selection', 'summary')
  }
  sources = covrl.entropy.selection_sources(tx, stats, **context)
  assert sources == {'old', 'current'}
  assert not covrl.entropy.selection_sources(
    covrl.entropy_bonus(0.1), stats, **context
  )


def test_a_custom_selector_states_its_source():
  def select(stats, *, decisions, **_):
    decisions.sources.add('current')
    return stats.entropy > 0

  ones = jnp.ones((1, 2))
  sources = covrl.entropy.selection_sources(
    covrl.token_masked(optax.set_to_zero(), select),
    TokenStats(logprobs=-ones, entropy=ones),
  )
  assert sources == {'current'}


def test_refuses_misspelt_context_entries():
  ones = jnp.ones((1, 2))
  stats: Any = TokenStats(logprobs=-ones, entropy=ones)
  tx = covrl.entropy_bonus(0.1)
  state = tx.init(stats.template())
  misspelt: Any = {'weight': ones}
  message = "of TokenContext only, got 'weight'; did you mean 'weights'"
  with pytest.raises(
    TypeError, match=f'context of add_entropy_bonus must have .* {message}'
  ):
    tx.update(stats, state, stats, weight=ones)
  with pytest.raises(TypeError, match=message):
    covrl.explain(tx, stats, **misspelt)
  with pytest.raises(TypeError, match='known entries: advantages, clipped, '):
    tx.update(stats, state, stats, temperature=1.0)
