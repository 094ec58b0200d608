# SPDX-License-Identifier: Apache-2.0
"""Filters of groups by accuracy and truncation, and the groups that replace them."""

import dataclasses

import numpy as np
import pytest
from train.collect.collector_test import rollouts

from covrl.config import Config, ConfigError, check
from covrl.train.collect.group_filter import GroupFilter

SIZE = 4
# Groups of 4: all wrong, one right, three right, all right, half right.
RIGHT = [0, 1, 3, 4, 2]


def five_groups(truncated=(), unscored=()):
  """Rollouts of five groups; some responses are truncated or unscored."""
  rewards = np.concatenate([np.arange(SIZE) < right for right in RIGHT])
  scored = ~np.isin(np.arange(rewards.size), unscored)
  batch = rollouts(rewards, scored)
  return dataclasses.replace(
    batch, truncated=np.isin(np.arange(rewards.size), truncated)
  )


def make_config(**fields):
  config = Config()
  config.rollout.responses_per_prompt = SIZE
  config.rollout.prompts_per_iteration = 32
  for name, value in fields.items():
    setattr(config.rollout, name, value)
  return config


def make_filter(groups, **fields):
  group_filter = GroupFilter.from_config(make_config(**fields))
  return dataclasses.replace(group_filter, num_groups=groups)


def test_bounds_are_inclusive_and_faults_counted():
  group_filter = make_filter(5, min_accuracy=0.25, max_accuracy=0.6)
  faults = group_filter.faults(five_groups())
  assert {name: np.flatnonzero(x).tolist() for name, x in faults.items()} == {
    'unscored': [],
    'equal_reward': [0, 3],
    'below_accuracy': [0],
    'above_accuracy': [2, 3],
    'truncated': [],
  }
  assert group_filter.passes(five_groups()).tolist() == [
    False,
    True,
    False,
    False,
    True,
  ]


def test_an_accuracy_equal_to_a_bound_passes_despite_rounding():
  group_filter = make_filter(
    1, responses_per_prompt=5, min_accuracy=0.2, max_accuracy=0.8
  )
  for right, expected in ((0, False), (1, True), (4, True), (5, False)):
    groups = rollouts(np.arange(5) < right, np.ones(5, bool))
    assert group_filter.passes(groups).tolist() == [expected]


def test_groups_with_a_truncated_response_are_dropped_where_set():
  groups = five_groups(truncated=[5])
  assert make_filter(5, drop_truncated_groups=True).passes(groups)[
    1:3
  ].tolist() == [
    False,
    True,
  ]
  assert make_filter(5, max_draws=2).passes(groups)[1]


def test_responses_without_a_score_do_not_count():
  # The only right response of the second group, and all of the last.
  groups = five_groups(unscored=[4, 16, 17, 18, 19])
  group_filter = make_filter(5, min_accuracy=0.1)
  faults = group_filter.faults(groups)
  assert np.flatnonzero(faults['unscored']).tolist() == [4]
  assert np.flatnonzero(faults['below_accuracy']).tolist() == [0, 1]
  assert group_filter.passes(groups).tolist() == [
    False,
    False,
    True,
    False,
    False,
  ]


@pytest.mark.parametrize('fill', [False, True])
def test_the_first_groups_that_pass_come_first_and_others_fill_up(fill):
  bounds = {'min_accuracy': 0.2, 'max_accuracy': 0.8, 'fill_groups': fill}
  chosen = make_filter(2, **bounds).choose(five_groups(), 0)
  assert chosen.rows.tolist() == [*range(4, 12)]
  assert chosen.unmasked.all()
  assert chosen.metrics['groups/passed'] == 3
  assert chosen.metrics['groups/masked'] == chosen.metrics['groups/filled'] == 0
  chosen = make_filter(4, **bounds).choose(five_groups(), 0)
  # In the order in which they were drawn.
  assert chosen.rows.tolist() == [*range(12), *range(16, 20)]
  assert chosen.unmasked[:SIZE].all() == fill
  assert chosen.unmasked[SIZE:].all()
  assert chosen.metrics['groups/masked'] == (not fill)
  assert chosen.metrics['groups/filled'] == fill
  assert chosen.metrics['groups/drawn'] == 5


def test_filters_that_no_group_passes_raise_with_a_count_per_reason():
  group_filter = make_filter(2, min_accuracy=0.9, max_accuracy=1.0, max_draws=3)
  with pytest.raises(
    RuntimeError,
    match=r'at least one group .* \(rollout\.min_accuracy = 0\.9, .*got 0 of 5 in'
    r' up to 3 draws of iteration 7: 2 equal reward, 4 below accuracy$',
  ):
    group_filter.choose(five_groups(), 7)
  # No error: others fill up, or only unequal rewards are required.
  filled = dataclasses.replace(group_filter, fill=True).choose(five_groups(), 7)
  assert filled.unmasked.all()
  assert filled.metrics['groups/filled'] == 2
  equal = rollouts(np.ones(8), np.ones(8, bool))
  assert not make_filter(2, max_draws=2).choose(equal, 7).unmasked.any()


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    (
      {'min_accuracy': 0.8, 'max_accuracy': 0.2},
      r'rollout\.min_accuracy must be at most rollout\.max_accuracy, got 0\.8',
    ),
    (
      {'max_accuracy': 0.0},
      r'must contain a multiple of 1/4 .* between 0 and 1, got 0 to 0',
    ),
    (
      {'min_accuracy': 0.9},
      r'must contain a multiple of 1/4 .* between 0 and 1, got 0\.9 to 1',
    ),
    (
      {'min_accuracy': 0.3, 'max_accuracy': 0.4},
      r'must contain a multiple of 1/4 .* got 0\.3 to 0\.4',
    ),
    ({'max_accuracy': 1.5}, r'rollout\.max_accuracy must lie in \[0, 1\]'),
    (
      {'responses_per_prompt': 1, 'max_draws': 2},
      r'rollout\.responses_per_prompt must be at least 2 to choose groups',
    ),
    (
      {'responses_per_prompt': 1, 'drop_truncated_groups': True},
      r'rollout\.responses_per_prompt must be at least 2 to choose groups',
    ),
    ({'fill_groups': True}, r'rollout\.max_draws must be above 1, or a filter'),
  ],
)
def test_refuses_filters_that_no_group_can_pass(fields, sentence):
  config = make_config(**fields)
  config.train.sequences_per_update = 32
  with pytest.raises(ConfigError, match=sentence):
    check(config)
