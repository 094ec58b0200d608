# SPDX-License-Identifier: Apache-2.0
"""A plan's decisions are taken once, and handed back in order."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl.entropy.chain import init_token_state, update_signal
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
  part, part_state = update_signal(
    tx,
    jax.tree.map(lambda x: x[:4], signal),
    state,
    jax.tree.map(lambda x: x[:4], stats),
    **rows,
    plan=covrl.Plan(half),
  )
  np.testing.assert_array_equal(part.logprobs, whole.logprobs[:4])
  for ours, theirs in zip(
    jax.tree.leaves(part_state), jax.tree.leaves(new_state), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)

  # Selecting anew within the micro-batch is another choice: the parity scope.
  local = covrl.kl_cov(fraction=0.05, scope='micro_batch')
  anew = covrl.Plan([])
  update_signal(
    local,
    jax.tree.map(lambda x: x[:4], signal),
    init_token_state(local),
    jax.tree.map(lambda x: x[:4], stats),
    **rows,
    plan=anew,
  )
  assert anew.decisions == []


def test_a_plan_of_another_chain_is_refused():
  plan = covrl.Plan([])
  with pytest.raises(ValueError, match='recorded by another token chain'):
    plan.decide(lambda: 1)
