# SPDX-License-Identifier: Apache-2.0
"""Functions of a recipe: the statistics and config fields that they read."""

import copy
import dataclasses
import pickle

import optax
import pytest
from train.process import RECIPES

import covrl
from covrl.config import Config, TrainConfig, flatten, load, recorded_reads
from covrl.train.algorithm import Algorithm, reads_moments, recorded_algorithm


@pytest.mark.parametrize(
  ('token_tx', 'is_read'),
  [
    (optax.identity(), False),
    (covrl.kl_cov(), False),
    (covrl.entropy_bonus(covrl.adaptive_bonus()), False),
    (covrl.kl_cov(score='exact'), True),
    (covrl.detach_drain(0.1), True),
    # A decision on the old statistics predicts from the old moments.
    (covrl.entropy_bonus(covrl.target_entropy(0.3)), True),
    (optax.chain(covrl.kl_cov(), covrl.lp_reg()), True),
  ],
)
def test_reads_moments_is_true_for_chains_that_use_them(token_tx, is_read):
  recipe = load(str(RECIPES / 'toy_kl_cov.py'), [])
  algorithm = dataclasses.replace(
    Algorithm.from_recipe(recipe), token_tx=token_tx
  )
  assert reads_moments(algorithm) is is_read


def test_copies_of_a_configuration_record_no_reads():
  config = Config()
  with recorded_reads(config):
    copies = (
      dataclasses.replace(config.train),
      copy.deepcopy(config).train,
      pickle.loads(pickle.dumps(config)).train,
    )
    assert config.train == TrainConfig()
  for section in copies:
    assert type(section) is TrainConfig
    assert section == config.train


def test_recorded_reads_leave_the_configuration_as_it_was():
  config = load(str(RECIPES / 'toy_kl_cov.py')).config
  before, section_type = flatten(config), type(config.train)
  with recorded_reads(config) as read:
    assert config.train.clip_low == before['train.clip_low']
    config.train.clip_low = 0.3
    flatten(config)
  assert read == {'train.clip_low'}
  assert type(config.train) is section_type
  assert flatten(config) == before | {'train.clip_low': 0.3}


@pytest.mark.parametrize(
  ('updates', 'fields'),
  [('schedule_updates', []), ('total_updates', ['train.iterations'])],
)
def test_schedules_that_an_extension_would_change_are_found(updates, fields):
  def falling(config):
    assert type(copy.deepcopy(config)) is Config
    return optax.adam(optax.linear_schedule(1e-2, 0, getattr(config, updates)))

  recipe = load(str(RECIPES / 'toy_kl_cov.py'))
  assert recorded_algorithm(recipe)[1] == []
  recipe = dataclasses.replace(recipe, tx=falling)
  with recorded_reads(recipe.config) as read:
    assert recorded_algorithm(recipe)[1] == fields
    # Fields that are read within are read for the outer context, too.
    assert {'entropy.fraction', 'train.clip_low'} <= read
    assert copy.deepcopy(recipe.config) == recipe.config
