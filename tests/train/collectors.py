# SPDX-License-Identifier: Apache-2.0
"""Rollout collectors of the toy task for tests; the reward is the length."""

import math
import types
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from train import toy

from covrl.config import Config
from covrl.models import Policy, tiny
from covrl.rewards import (
  Outcome,
  PendingScores,
  Reward,
  Scoring,
  ScoringCall,
  Status,
)
from covrl.rollout import SamplingEngine
from covrl.train.collect.collector import RolloutCollector

PROMPTS, GROUP = 4, 2
REWARD = Reward(name='length', score='a:b')


class LengthScoring(Scoring):
  """Scores responses by their length, without workers.

  Attributes:
    texts: the responses so far.
    failing: indices of responses that get no score.
  """

  def __init__(self, failing: tuple[int, ...] = ()):
    self.texts: list[str] = []
    self.failing = failing

  def open(self, references, *, sources, shaping=True):
    del sources, shaping
    outcomes: dict[int, Outcome] = {}
    future: Future[list[Outcome]] = Future()

    def add(index, response, reference, length):
      del reference
      self.texts.append(response)
      outcomes[index] = Outcome(float(length), Status.SCORED)
      if index in self.failing:
        outcomes[index] = Outcome(math.nan, Status.TIMEOUT)
      if len(outcomes) == len(references):
        future.set_result([outcomes[i] for i in sorted(outcomes)])

    indices = range(len(references))
    scores = PendingScores(
      (REWARD,), len(indices), {'length': (indices, future)}
    )
    return ScoringCall(scores, references, [({i: i for i in indices}, add)])


class Programs:
  """Replaces the compiled programs: the advantage of a token is the reward."""

  networks = types.SimpleNamespace(estimates_advantages=False)

  def params(self, state):
    return state.params

  def advantages(self, rewards, groups, mask):
    del groups
    return rewards[:, None] * mask


def make_config(**rollout: Any) -> Config:
  """The toy configuration with few prompts and these fields of `rollout`."""
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
  """A sampling engine of the toy task."""
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


def state_after(step) -> Any:
  """A state whose policy depends on the number of updates."""
  params = POLICY.init(jax.random.key(step))
  return types.SimpleNamespace(params=params, step=jnp.asarray(step))


# States before iterations 0 to 3.
STATES = [state_after(step) for step in range(4)]


def make_collector(scoring=None, engine=ENGINE, **rollout):
  """A rollout collector; options are fields of `rollout`."""
  programs: Any = Programs()
  return RolloutCollector(
    TASK,
    engine,
    scoring or LengthScoring(),
    programs,
    make_config(**rollout),
    jax.random.key(1),
  )


def assert_same(actual, expected):
  """Asserts equal arrays of two rollout batches, metrics aside."""
  actual.metrics.clear()
  expected.metrics.clear()
  jax.tree.map(
    np.testing.assert_array_equal, actual.arrays(), expected.arrays()
  )


# Fields of `rollout` with which unfinished responses are carried over.
PARTIAL = {
  'pipeline': 1,
  'carried_groups': 2,
  'max_staleness': 2,
  'max_response_length': 8,
}
