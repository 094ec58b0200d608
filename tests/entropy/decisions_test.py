# SPDX-License-Identifier: Apache-2.0
"""A plan's decisions are taken once, and handed back in order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl.entropy.base import init_token_state, update_signal
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
  state = init_token_state(tx)

  @jax.jit
  def record(signal, stats, context):
    plan = covrl.Plan()
    edited, new_state = update_signal(
      tx, signal, state, stats, **context, plan=plan
    )
    return edited, new_state, plan.decisions

  whole, new_state, decisions = record(signal, stats, context)
  chosen = decisions[0].mask
  assert int(chosen.sum()) == 4
  np.testing.assert_array_equal(whole.logprobs == 0, chosen)

  # Half of the rows with half of the plan: the same rows of the whole.
  half = jax.tree.map(
    lambda leaf: leaf[:4] if leaf.ndim == 2 else leaf, decisions
  )
  rows = {
    name: value[:4] if getattr(value, 'ndim', 0) == 2 else value
    for name, value in context.items()
  }
  signal, stats = jax.tree.map(lambda x: x[:4], (signal, stats))

  @jax.jit
  def replay(signal, stats, context, decisions):
    plan = covrl.Plan(decisions)
    return update_signal(tx, signal, state, stats, **context, plan=plan)

  part, part_state = replay(signal, stats, rows, half)
  np.testing.assert_array_equal(part.logprobs, whole.logprobs[:4])
  for ours, theirs in zip(
    jax.tree.leaves(part_state), jax.tree.leaves(new_state), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


def test_micro_batches_that_decide_anew_are_added_up():
  """What each part selected is in its own plan, and sums to the batch's."""
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
  state = init_token_state(tx)

  def run(plan, stats, context):
    update_signal(
      tx,
      jax.tree.map(jnp.zeros_like, stats),
      state,
      stats,
      **context,
      plan=plan,
    )
    return plan

  @jax.jit
  def whole_and_parts(stats, context):
    whole = run(covrl.Plan(), stats, context)

    def part(rows):
      decisions, stats, context = rows
      plan = run(covrl.Plan(decisions), stats, context)
      return [d for d in plan.local if isinstance(d, covrl.SelectionSummary)]

    halves = [
      part(
        jax.tree.map(
          lambda x, rows=rows: x[rows] if x.ndim == 2 else x,
          (whole.decisions, stats, context),
        )
      )
      for rows in (slice(0, 4), slice(4, 8))
    ]
    added = jax.tree.map(jnp.add, *halves)
    shown = covrl.explain(tx, stats, **context)
    return whole.decisions, halves, [s.of_parts(2) for s in added], shown

  decisions, halves, (total,), shown = whole_and_parts(stats, context)
  # Recorded for the batch: the second transform's alone.
  assert [type(each) for each in decisions] == [
    covrl.Selection,
    covrl.SelectionSummary,
  ]
  # ⌊0.05 · 80⌋ tokens of each half, not ⌊0.05 · 160⌋ of the batch.
  assert [int(part.selected) for (part,) in halves] == [4, 4]
  assert int(total.selected) == int(total.quota) == 8
  assert int(total.eligible) == 160
  thresholds = [float(part.threshold) for (part,) in halves]
  np.testing.assert_allclose(total.threshold, np.mean(thresholds), rtol=1e-6)
  # A look at the chain shows both, in its order.
  assert [int(each.quota) for each in shown] == [8, 2]


def test_a_plan_of_another_chain_is_refused():
  plan = covrl.Plan([])
  with pytest.raises(ValueError, match='recorded by another token chain'):
    plan.decide(lambda: 1)
