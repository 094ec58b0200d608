# SPDX-License-Identifier: Apache-2.0
"""Informative groups, counts of outcomes, and runs with a reference policy."""

import dataclasses
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from train import collectors, process

from covrl.rewards import Outcome, PendingScores, Reward, Status
from covrl.rollout.score import PendingRollouts, ScoredRollouts
from covrl.train.collect.group_filter import informative_groups
from covrl.train.collect.rollout_metrics import outcome_metrics, rollout_metrics
from covrl.train.rollout_batch import baseline_groups, zero_lone_advantages
from covrl.types import Rollouts


def rollouts(rewards, scored):
  """Returns sequences of two tokens, the second of which is sampled."""
  count = len(rewards)
  mask = np.zeros((count, 2), bool)
  mask[:, 1] = scored
  zeros = np.zeros((count, 2), np.float32)
  ids = np.arange(count, dtype=np.int32)
  arrays: dict[str, Any] = {
    'tokens': np.zeros((count, 2), np.int32),
    'positions': np.zeros((count, 2), np.int32),
    'attention_mask': np.ones((count, 2), bool),
    'loss_mask': mask,
    'sampler_logprobs': zeros,
    'behaviour_logprobs': zeros,
    'sequence_ids': ids,
    'group_ids': ids // 2,
    'source_ids': np.zeros(count, np.int32),
    'policy_step': 3 * mask.astype(np.int32),
    'truncated': np.zeros(count, bool),
    'rewards': {'score': np.asarray(rewards, np.float32)},
  }
  return Rollouts(**arrays)


@pytest.mark.parametrize(
  ('rewards', 'scored', 'expected'),
  [
    ([0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [True, False, False]),
    # A response without a score has no reward.
    ([0, 1, 0, 1, 0, 0], [0, 1, 1, 1, 0, 0], [False, True, False]),
  ],
)
def test_informative_groups_differ_in_scored_rewards(rewards, scored, expected):
  is_informative = informative_groups(
    rollouts(rewards, np.array(scored, bool)), 2
  )
  assert is_informative.tolist() == expected


def test_a_response_whose_group_has_lost_all_others_has_no_advantage():
  scored = np.array([1, 0, 1, 1, 0, 0, 1], bool)
  sequences = rollouts([1.0] * 7, scored)
  # The last one is the only response to its prompt from the start.
  advantages = np.ones((7, 2), np.float32)
  kept = zero_lone_advantages(advantages, sequences)
  assert kept[:, 1].tolist() == [0, 0, 1, 1, 1, 1, 1]


def test_a_collector_does_not_train_on_lone_responses():
  collector = collectors.make_collector(collectors.LengthScoring(failing=(0,)))
  collector._config.rewards.max_failures = 1.0
  batch = collector.collect(0, collectors.STATES[0])
  collector.close()
  advantages = np.asarray(batch.batch.advantages).max(axis=1)
  assert advantages[:2].tolist() == [0, 0]
  assert advantages[2:].min() > 0


@pytest.fixture(scope='module', name='run')
def make_run(tmp_path_factory):
  """Trains with up to three draws and a reference that is reset."""
  lines = process.train(
    'toy_reference',
    tmp_path_factory.mktemp('runs') / 'run',
    rollout__max_draws=3,
    train__keep_reference=True,
    train__reset_reference_every=2,
    logging__entropy_change_every=3,
    logging__diagnostics_every=2,
    checkpoint__every_updates=0,
  )
  return [line for line in lines if line['phase'] == 'train']


def test_draws_until_there_are_enough_informative_groups(run):
  draws = [line['draws'] for line in run]
  assert set(draws) <= {1.0, 2.0, 3.0}
  assert max(draws) > 1
  for line in run:
    # Eight groups of four per draw; groups of equal rewards do not count.
    num_informative = round(
      8 * line['draws'] * (1 - line['equal_reward_groups'])
    )
    assert num_informative >= 8 or line['draws'] == 3


def test_the_reference_is_constant_between_resets(run):
  assert len(run) == 16
  # The penalty is 0 while the reference equals the policy.
  shares = [line['penalty_share'] for line in run]
  assert max(shares[0], shares[8]) < 1e-4
  assert min(shares[1:8]) > 1e-3


def test_entropy_change_is_measured_at_its_interval(run):
  measured = ['realised_entropy_change' in line for line in run]
  assert measured == [step % 3 == 0 for step in range(16)]
  for line in run[::3]:
    realised = line['realised_entropy_change']
    predicted = line['predicted_entropy_change/jvp']
    assert realised != 0
    assert predicted == pytest.approx(realised, rel=0.5, abs=2e-3)
  drift = [line['entropy_drift'] for line in run[1:]]
  np.testing.assert_allclose(
    drift, np.diff([line['entropy'] for line in run]), rtol=0, atol=0
  )
  assert 'entropy_drift' not in run[0]


def test_diagnostics_are_logged_at_their_interval(run):
  for name in ('covariance_quantile/0.5', 'predicted_entropy_change/signal'):
    assert [name in line for line in run] == [True, False] * 8
  assert all('covariance' in line for line in run)


def test_exact_scores_are_available_to_selection(run):
  for line in run:
    assert line['selected_fraction'] == pytest.approx(0.05, abs=0.05)
    assert line['quota'] == line['selected'] == int(0.05 * line['tokens'])
  assert any(line['selected'] > 0 for line in run)
  changes = [line['predicted_entropy_change/exact'] for line in run[::2]]
  assert all(np.isfinite(changes))
  assert np.ptp(changes) > 0


def scored_draw(masked: int, count: int, **fields: Any) -> ScoredRollouts:
  """Returns a draw with some responses without a reward."""
  scored = [index >= masked for index in range(count)]
  return ScoredRollouts(rollouts=rollouts([1.0] * count, scored), **fields)


def test_outcomes_are_counted_over_draws():
  results = [
    scored_draw(
      0, 4, counts={'maths/scored': 3, 'maths/timeout': 1}, failures=[]
    ),
    scored_draw(
      1, 4, counts={'maths/scored': 3, 'maths/timeout': 0}, failures=['x']
    ),
  ]
  assert outcome_metrics(results, 0, max_failures=0.2) == {
    'reward_failures': 1 / 8,
    'outcomes/maths/scored': 6.0,
    'outcomes/maths/timeout': 1.0,
  }


def test_too_many_failures_stop_the_run_with_a_reason():
  reason = 'code ended with infrastructure: no sandbox'
  results = [scored_draw(2, 4, counts={}, failures=[reason] * 2 + ['another'])]
  with pytest.raises(
    RuntimeError,
    match=r'at most 25% .* 50% in iteration 7; .* reason: code ended',
  ):
    outcome_metrics(results, 7, max_failures=0.25)
  assert outcome_metrics(results, 7, max_failures=0.5)


def test_masked_responses_do_not_count_in_means():
  pending = PendingScores(
    (Reward(name='maths', score='a:b'), Reward(name='other', score='a:b')),
    4,
    {
      'maths': ((0, 1, 2, 3), finished_outcomes(1.0, 0.0, np.nan, 1.0)),
      'other': ((1, 2), finished_outcomes(0.5, 0.5)),
    },
  )
  unscored = dataclasses.replace(
    rollouts([0.0] * 4, [True] * 4),
    rewards={},
    source_ids=np.array([0, 1, 1, 0], np.int32),
  )
  scored = PendingRollouts(
    rollouts=unscored, responses=('',) * 4, scores=pending
  ).result()
  assert scored.masked == 1
  assert scored.rollouts.loss_mask[:, 1].tolist() == [True, True, False, True]
  assert np.asarray(scored.rollouts.rewards['score']).tolist() == [1, 0.5, 0, 1]
  zeros = np.zeros((4, 2), np.float32)
  stats: Any = (SimpleNamespace(logprobs=zeros, entropy=zeros), None)
  metrics = rollout_metrics(
    scored.rollouts, stats, sources=('gsm8k', 'math'), step=5
  )
  assert metrics['staleness'] == metrics['staleness_max'] == 2
  assert metrics['reward'] == pytest.approx(2.5 / 3)
  assert metrics['reward/maths'] == pytest.approx(2 / 3)
  assert metrics['reward/other'] == 0.5
  assert metrics['reward_of_source/gsm8k'] == 1.0
  assert metrics['reward_of_source/math'] == 0.5
  assert metrics['reward/maths/math'] == 0.0
  assert 'reward/other/gsm8k' not in metrics
  # Groups 0 and 1; the masked response of group 1 does not count.
  assert metrics['equal_reward_groups'] == 0.5
  assert metrics['response_length'] == 1.0


def finished_outcomes(*scores: float) -> Future[list[Outcome]]:
  future: Future[list[Outcome]] = Future()
  future.set_result([*map(make_outcome, scores)])
  return future


def make_outcome(score: float) -> Outcome:
  status = Status.INFRASTRUCTURE if np.isnan(score) else Status.SCORED
  return Outcome(score, status, 'a sentence')


def test_groups_are_numbered_from_0_in_every_iteration():
  """A function of a recipe may take the ids for indices."""
  rollouts: Any = SimpleNamespace(
    group_ids=np.array([40, 40, 7, 7, 41, 41], np.int32),
    loss_mask=np.array([[1], [1], [1], [0], [1], [1]], bool),
  )
  assert baseline_groups(rollouts).tolist() == [0, 0, 1, 3 + 3, 2, 2]
