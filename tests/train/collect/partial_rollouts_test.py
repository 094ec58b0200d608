# SPDX-License-Identifier: Apache-2.0
"""Groups of unfinished responses that are carried over to the next iteration."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from train.collectors import (
  GROUP,
  PARTIAL,
  POLICY,
  PROMPTS,
  STATES,
  TASK,
  assert_same,
  make_collector,
  make_engine,
)

from covrl.models import Experts, Policy, tiny
from covrl.train.collect.partial_rollouts import NO_GROUP
from covrl.train.rollout_batch import shift_left


@functools.cache
def partial_engine():
  """Small engine that the collectors of all tests share."""
  return make_engine(8, slots=6)


def make_partial_collector():
  """Collector that carries over unfinished groups."""
  return make_collector(engine=partial_engine(), **PARTIAL)


@jax.jit
def target_logprobs(params, rows):
  """Log-probabilities of the targets of rows."""
  hidden = POLICY.hidden(
    params,
    rows.tokens,
    positions=rows.positions,
    segment_ids=rows.segment_ids,
  )
  logits = (hidden @ POLICY.unembedding(params)).astype(jnp.float32)
  log_pi = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(log_pi, rows.targets[..., None], axis=2)[..., 0]


def test_unfinished_groups_go_on_with_newer_weights():
  collector, sequences, num_mixed = make_partial_collector(), [], 0
  for k, current in enumerate(STATES):
    batch = collector.collect(k, current)
    rows, version = batch.batch, batch.policy_step
    mask = rows.loss_mask
    # Each token has the version of the weights that sampled it.
    for step in np.unique(version[mask]):
      is_of_step = mask & (version == step)
      logprobs = np.asarray(target_logprobs(STATES[step].params, rows))
      np.testing.assert_allclose(
        rows.sampler_logprobs[is_of_step], logprobs[is_of_step], atol=1e-5
      )
    oldest = np.where(mask, version, k).min(axis=1)
    newest = np.where(mask, version, 0).max(axis=1)
    num_mixed += int((oldest < newest).sum())
    assert (k - oldest).max() <= PARTIAL['max_staleness']
    # Groups are whole, and their responses are finished.
    assert np.bincount(batch.groups).tolist() == [GROUP] * PROMPTS
    sequences += np.unique(rows.sequence_ids[mask]).tolist()
    lengths = mask.sum(axis=1)
    is_end = np.isin(rows.targets, TASK.tokenizer.end_ids) & mask
    assert (is_end.any(axis=1) | (lengths == 8)).all()
  assert len(sequences) == len(set(sequences)) == len(STATES) * PROMPTS * GROUP
  assert num_mixed > 0


def test_no_token_of_an_unfinished_response_is_drawn_again():
  # Else responses that end at once, which are kept, would be too frequent.
  collector, sampled, num_of_one_token = make_partial_collector(), {}, 0
  for k, current in enumerate(STATES):
    rows = collector.collect(k, current).batch
    for mask, ids, targets in zip(
      rows.loss_mask, rows.sequence_ids, rows.targets, strict=True
    ):
      first_tokens = sampled.pop(int(ids[mask][0]), [])
      assert targets[mask].tolist()[: len(first_tokens)] == first_tokens
    carried = collector.state.carried
    assert carried is not None
    for sequence, tokens, mask in zip(
      carried.sequence_ids,
      carried.samples.response_tokens,
      np.asarray(carried.samples.response_mask),
      strict=True,
    ):
      if mask.any():
        sampled[int(sequence)] = np.asarray(tokens)[mask].tolist()
        num_of_one_token += int(mask.sum() == 1)
  assert num_of_one_token > 0


@pytest.mark.parametrize('carried_groups', [1, 3])
def test_every_prompt_is_sampled_in_order(carried_groups):
  options = PARTIAL | {'carried_groups': carried_groups}
  collector = make_collector(engine=partial_engine(), **options)
  trained = set[int]()
  for k, current in enumerate(STATES[:-1]):
    rollouts = collector.collect(k, current)
    mask = rollouts.batch.loss_mask
    trained |= {int(i) // GROUP for i in rollouts.batch.sequence_ids[mask]}
    state = collector.state
    assert state.ahead is not None
    assert state.carried is not None
    ahead = {int(i) for i in state.ahead.arrays()['group_ids']}
    carried = {int(i) for i in state.carried.group_ids} - {NO_GROUP}
    # None twice, none left out.
    begun = [*trained, *ahead, *carried]
    assert sorted(begun) == [*range((k + 2) * PROMPTS + carried_groups)]


def test_carried_groups_are_restored():
  uninterrupted, interrupted = (
    make_partial_collector(),
    make_partial_collector(),
  )
  for collector in (uninterrupted, interrupted):
    for k in range(2):
      collector.collect(k, STATES[k])
  saved = interrupted.state
  assert saved.ahead is not None
  assert saved.carried is not None
  ahead, carried = saved.ahead.arrays(), saved.carried.arrays()
  shapes = [
    jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    for tree in (carried, interrupted.padding_groups())
  ]
  assert shapes[0] == shapes[1]
  resumed = make_partial_collector()
  resumed.restore(saved.prompts, ahead, carried)
  for k in (2, 3):
    expected = uninterrupted.collect(k, STATES[k])
    assert_same(resumed.collect(k, STATES[k]), expected)


@functools.cache
def recording_engine():
  """An engine that records experts, and parameters for it."""
  config = tiny(TASK.tokenizer.vocab_size)
  config = dataclasses.replace(config, experts=Experts(count=4, per_token=2))
  policy = Policy(config)
  make = jax.jit(policy.init)
  states: Any = [
    types.SimpleNamespace(
      params=make(jax.random.key(step)), step=jnp.asarray(step)
    )
    for step in range(4)
  ]
  engine = make_engine(8, slots=6, policy=policy, record_experts=True)
  return engine, states


def test_recorded_experts_are_carried_and_restored():
  engine, states = recording_engine()
  uninterrupted, interrupted, resumed = (
    make_collector(engine=engine, **PARTIAL) for _ in range(3)
  )
  for k in range(2):
    batch = uninterrupted.collect(k, states[k]).batch
    interrupted.collect(k, states[k])
    # All real tokens but the last of a response.
    is_routed = (batch.segment_ids > 0) & shift_left(batch.segment_ids > 0)
    assert batch.experts is not None
    recorded = np.asarray(batch.experts)
    np.testing.assert_array_equal((recorded > 0).all((2, 3)), is_routed)
    np.testing.assert_array_equal((recorded > 0).any((2, 3)), is_routed)
  saved = interrupted.state
  assert saved.ahead is not None
  assert saved.carried is not None
  ahead, carried = saved.ahead.arrays(), saved.carried.arrays()
  assert ahead['experts'].any()
  assert carried['samples']['experts'].any()
  for actual, zeros in (
    (ahead, interrupted.zero_rollouts()),
    (carried, interrupted.padding_groups()),
  ):
    shapes = [
      jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (actual, zeros)
    ]
    assert shapes[0] == shapes[1]
  resumed.restore(saved.prompts, ahead, carried)
  for k in (2, 3):
    expected = uninterrupted.collect(k, states[k])
    assert_same(resumed.collect(k, states[k]), expected)
