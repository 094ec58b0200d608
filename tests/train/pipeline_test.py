# SPDX-License-Identifier: Apache-2.0
"""Rollouts that are sampled while the policy is trained."""

import dataclasses
import functools
import signal
import subprocess
import time
import types
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import process, runs, toy

import covrl
from covrl.config import Config, ConfigError
from covrl.config.validation import check
from covrl.models import Experts, Policy, tiny
from covrl.rewards import (
  Outcome,
  PendingScores,
  Reward,
  Scoring,
  ScoringCall,
  Status,
)
from covrl.rollout import SamplingEngine
from covrl.train.algorithm import Algorithm
from covrl.train.build import config_warnings
from covrl.train.rollout_batch import shift_left
from covrl.train.rollout_collector import RolloutCollector

PROMPTS, GROUP = 4, 2
PART = Reward(name='length', score='a:b')


class LengthScoring(Scoring):
  """Scores responses by their length, without workers.

  Attributes:
    texts: the responses so far.
  """

  def __init__(self):
    self.texts: list[str] = []

  def open(self, references, *, sources, shaping=True):
    del sources, shaping
    found: dict[int, Outcome] = {}
    future: Future[list[Outcome]] = Future()

    def add(index, response, reference, length):
      del reference
      self.texts.append(response)
      found[index] = Outcome(float(length), Status.SCORED)
      if len(found) == len(references):
        future.set_result([found[i] for i in sorted(found)])

    every = range(len(references))
    scores = PendingScores((PART,), len(every), {'length': (every, future)})
    return ScoringCall(scores, references, [({i: i for i in every}, add)])


class Programs:
  """The programs that a run with one update per iteration needs."""

  networks = types.SimpleNamespace(estimates_advantages=False)

  def params(self, state):
    return state.params

  def advantages(self, rewards, groups, mask):
    del groups
    return rewards[:, None] * mask


def make_config(**rollout: Any) -> Config:
  config = toy.get_config()
  config.rollout.prompts_per_iteration = PROMPTS
  config.rollout.responses_per_prompt = GROUP
  config.train.sequences_per_update = PROMPTS * GROUP
  for name, value in rollout.items():
    setattr(config.rollout, name, value)
  return config


TASK = toy.make_task(make_config())
POLICY = Policy(tiny(TASK.tokenizer.vocab_size))


def make_engine(length, slots=0, policy=POLICY, **options):
  return SamplingEngine(
    policy,
    end_ids=TASK.tokenizer.end_ids,
    pad_id=TASK.tokenizer.pad_id,
    max_response_length=length,
    slots=slots,
    segment=1,
    **options,
  )


ENGINE = make_engine(4)


def state(step) -> Any:
  """The policy after some updates."""
  params = POLICY.init(jax.random.key(step))
  return types.SimpleNamespace(params=params, step=jnp.asarray(step))


STATES = [state(step) for step in range(4)]


def make_collector(scoring=None, engine=ENGINE, **rollout):
  programs: Any = Programs()
  return RolloutCollector(
    TASK,
    engine,
    scoring or LengthScoring(),
    programs,
    make_config(**rollout),
    jax.random.key(1),
  )


def assert_same(got, want):
  got.metrics.clear()
  want.metrics.clear()
  jax.tree.map(np.testing.assert_array_equal, got.arrays(), want.arrays())


def test_the_next_rollout_is_sampled_by_the_policy_before_the_updates():
  ahead, now = make_collector(pipeline=1), make_collector()
  batches = [ahead.collect(k, STATES[k]) for k in range(4)]
  assert [b.metrics['staleness_max'] for b in batches] == [0, 1, 1, 1]
  for k, batch in enumerate(batches):
    mask = batch.batch.loss_mask
    assert (batch.policy_step[mask] == max(k - 1, 0)).all()
    assert_same(batch, now.collect(k, STATES[max(k - 1, 0)]))
  # Nothing is sampled beyond the last iteration.
  assert ahead.state.ahead is None
  assert ahead.state.prompts['draw'] == 4
  # One policy further, other responses.
  other = make_collector().collect(0, STATES[1]).batch
  assert not np.array_equal(other.tokens, batches[0].batch.tokens)


def test_scores_are_waited_for_when_the_next_rollout_is_sampled(monkeypatch):
  scoring = LengthScoring()
  collector, counts = make_collector(scoring, pipeline=1), []
  result = PendingScores.result

  def observed(scores):
    counts.append(len(scoring.texts))
    return result(scores)

  monkeypatch.setattr(PendingScores, 'result', observed)
  for k in range(4):
    collector.collect(k, STATES[k])
  size = PROMPTS * GROUP
  assert counts == [2 * size, 3 * size, 4 * size, 4 * size]


def test_a_collector_is_restored_with_what_is_sampled_ahead():
  whole, cut = make_collector(pipeline=1), make_collector(pipeline=1)
  for each in (whole, cut):
    each.collect(0, STATES[0])
  saved = cut.state
  assert saved.ahead is not None
  arrays = saved.ahead.arrays()
  zeros = cut.padding_rollouts()
  assert arrays.keys() == zeros.keys()
  for name, leaf in arrays.items():
    assert (leaf.shape, leaf.dtype) == (zeros[name].shape, zeros[name].dtype)
  resumed = make_collector(pipeline=1)
  resumed.restore(saved.prompts, arrays, None)
  for k in (1, 2, 3):
    assert_same(resumed.collect(k, STATES[k]), whole.collect(k, STATES[k]))
  # An abandoned rollout is drawn again.
  cut.collect(1, STATES[1])
  cut.state = saved
  resumed.restore(saved.prompts, arrays, None)
  assert_same(cut.collect(1, STATES[1]), resumed.collect(1, STATES[1]))


PARTIAL = {
  'pipeline': 1,
  'carried_groups': 2,
  'max_staleness': 2,
  'max_response_length': 8,
}


@functools.cache
def partial_engine():
  return make_engine(8, slots=6)


def make_partial():
  return make_collector(engine=partial_engine(), **PARTIAL)


@jax.jit
def scored_by(params, rows):
  """Log-probabilities of the targets of rows."""
  hidden = POLICY.hidden(
    params,
    rows.tokens,
    positions=rows.positions,
    segment_ids=rows.segment_ids,
  )
  logits = (hidden @ POLICY.unembedding(params)).astype(jnp.float32)
  found = jax.nn.log_softmax(logits)
  return jnp.take_along_axis(found, rows.targets[..., None], axis=2)[..., 0]


def test_unfinished_groups_go_on_with_newer_weights():
  collector, groups, mixed = make_partial(), [], 0
  for k, current in enumerate(STATES):
    batch = collector.collect(k, current)
    rows, version = batch.batch, batch.policy_step
    mask = rows.loss_mask
    # Each token has the version of the weights that sampled it.
    for step in np.unique(version[mask]):
      own = mask & (version == step)
      found = np.asarray(scored_by(STATES[step].params, rows))
      np.testing.assert_allclose(
        rows.sampler_logprobs[own], found[own], atol=1e-5
      )
    oldest = np.where(mask, version, k).min(axis=1)
    newest = np.where(mask, version, 0).max(axis=1)
    mixed += int((oldest < newest).sum())
    assert (k - oldest).max() <= PARTIAL['max_staleness']
    # Groups are whole, and their responses are finished.
    ids, counts = np.unique(batch.groups, return_counts=True)
    assert counts.tolist() == [GROUP] * PROMPTS
    groups += ids.tolist()
    lengths = mask.sum(axis=1)
    ends = np.isin(rows.targets, TASK.tokenizer.end_ids) & mask
    assert (ends.any(axis=1) | (lengths == 8)).all()
  assert len(groups) == len(set(groups))
  assert mixed > 0


def test_carried_groups_are_restored():
  whole, cut = make_partial(), make_partial()
  for each in (whole, cut):
    for k in range(2):
      each.collect(k, STATES[k])
  saved = cut.state
  assert saved.ahead is not None
  assert saved.carried is not None
  ahead, carried = saved.ahead.arrays(), saved.carried.arrays()
  shapes = [
    jax.tree.map(lambda x: (x.shape, x.dtype), each)
    for each in (carried, cut.padding_groups())
  ]
  assert shapes[0] == shapes[1]
  resumed = make_partial()
  resumed.restore(saved.prompts, ahead, carried)
  for k in (2, 3):
    want = whole.collect(k, STATES[k])
    assert_same(resumed.collect(k, STATES[k]), want)


@functools.cache
def replaying():
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
  engine, states = replaying()
  whole, cut, resumed = (
    make_collector(engine=engine, **PARTIAL) for _ in range(3)
  )
  for k in range(2):
    batch = whole.collect(k, states[k]).batch
    cut.collect(k, states[k])
    # All real tokens but the last of a response.
    routed = (batch.segment_ids > 0) & shift_left(batch.segment_ids > 0)
    assert batch.experts is not None
    recorded = np.asarray(batch.experts)
    np.testing.assert_array_equal((recorded > 0).all((2, 3)), routed)
    np.testing.assert_array_equal((recorded > 0).any((2, 3)), routed)
  saved = cut.state
  assert saved.ahead is not None
  assert saved.carried is not None
  ahead, carried = saved.ahead.arrays(), saved.carried.arrays()
  assert ahead['experts'].any()
  assert carried['samples']['experts'].any()
  for found, zeros in (
    (ahead, cut.padding_rollouts()),
    (carried, cut.padding_groups()),
  ):
    shapes = [
      jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (found, zeros)
    ]
    assert shapes[0] == shapes[1]
  resumed.restore(saved.prompts, ahead, carried)
  for k in (2, 3):
    want = whole.collect(k, states[k])
    assert_same(resumed.collect(k, states[k]), want)


def kill_at(recipe, workdir, step):
  """Starts a run and kills it once this step is logged."""
  started = process.start(recipe, workdir)
  try:
    while not any(x['step'] >= step for x in process.lines(workdir, 'train')):
      assert started.poll() is None, 'the run ended by itself'
      time.sleep(0.005)
  finally:
    started.kill()
    started.communicate()


@pytest.mark.slow
@pytest.mark.parametrize('recipe', ['pipelined', 'partial', 'partial_replay'])
def test_killed_and_resumed_run_equals_the_uninterrupted_one(recipe, tmp_path):
  recipe = f'toy_off_policy:{recipe}'
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  lines = process.train(recipe, whole)
  # In the middle of an iteration of two updates, and between two.
  kill_at(recipe, killed, 3)
  kill_at(recipe, killed, 6)
  process.train(recipe, killed)
  runs.assert_same_metrics(killed, whole)
  trained = [line for line in lines if line['phase'] == 'train']
  assert [line['staleness_max'] for line in trained[:4]] == [0, 0, 2, 2]
  stale = [line['staleness'] for line in trained[4:]]
  if 'partial' in recipe:
    assert any(each != 2 for each in stale)
  else:
    assert stale == [2] * 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize('recipe', ['pipelined', 'partial'])
def test_a_run_killed_at_random_moments_equals_the_uninterrupted_one(
  recipe, tmp_path
):
  recipe = f'toy_off_policy:{recipe}'
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  began = time.monotonic()
  process.train(recipe, whole)
  seconds = time.monotonic() - began
  moments = np.random.default_rng()
  for _ in range(4):
    running = process.start(recipe, killed)
    try:
      running.communicate(timeout=seconds * moments.uniform(0.3, 1.0))
    except subprocess.TimeoutExpired:
      running.kill()
      running.communicate()
    assert running.returncode in (0, -signal.SIGKILL)
  process.train(recipe, killed)
  runs.assert_same_metrics(killed, whole)


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    (
      {'carried_groups': 1},
      r'carried_groups needs rollout\.pipeline = 1, got 1',
    ),
    (PARTIAL | {'carried_groups': 5}, 'must be at most .*, got 5 of 4'),
    (PARTIAL | {'max_draws': 2}, r'needs rollout\.max_draws = 1, got 2'),
    (PARTIAL | {'max_staleness': 1}, 'max_staleness must be at least 2, got 1'),
    ({'pipeline': 2}, r'pipeline must lie in \[0, 1\], got 2'),
  ],
)
def test_refuses_fields_that_conflict(fields, sentence):
  with pytest.raises(ConfigError, match=sentence):
    check(make_config(**fields))


@pytest.mark.parametrize(
  ('chain', 'warned'),
  [
    (covrl.icepop(), 0),
    (covrl.decoupled_ppo(), 0),
    (covrl.truncated_importance_weights(), 0),
    (covrl.reject_sequences(), 1),
  ],
)
def test_a_chain_without_importance_weights_is_named(chain, warned):
  algorithm = Algorithm(
    loss=covrl.clipped_surrogate,
    token_tx=optax.chain(covrl.entropy_bonus(0.1), chain),
    tx=optax.identity(),
    advantages=covrl.group_relative,
  )
  for rollout in ({'pipeline': 1}, {'cache_dtype': 'int8'}):
    texts = [*config_warnings(make_config(**rollout), algorithm)]
    assert sum('no importance weights: add' in text for text in texts) == warned
  assert not any(
    'pipeline' in t for t in config_warnings(make_config(), algorithm)
  )
