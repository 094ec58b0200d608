# SPDX-License-Identifier: Apache-2.0
"""Recipes of published algorithms: their numbers, and two iterations of each."""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from train import process

from configs import algorithms
from covrl.config import flatten, load, recipes
from covrl.rewards import Overlong
from covrl.train.forward import apply_token_weights
from covrl.train.rollout_batch import padding_batch, token_advantages

SPECS = [spec for spec, _ in recipes() if spec.startswith('algorithms:')]
# Fields that differ from those of `countdown:grpo`.
CHANGED_FIELDS = {
  'dapo': {
    'train.clip_high': 0.28,
    'rollout.max_draws': 4,
    'rewards.overlong_buffer': 2,
  },
  'dr_grpo': {'train.weights': 'constant-length'},
  'reinforce_plus_plus': {},
  'rloo': {},
  'gspo': {
    'train.clip_low': 3e-4,
    'train.clip_high': 4e-4,
    'train.weights': 'sequence-mean-token-mean',
  },
  'luspo': {
    'train.clip_low': 3e-4,
    'train.clip_high': 4e-4,
    'train.weights': 'sequence-mean-token-sum',
  },
  'cispo': {'train.clip_low': 1.0, 'train.clip_high': 4.0},
}
REWARDS = jnp.array([1.0, 0.0, 0.0, 1.0, 0.0, 0.0])
GROUPS = jnp.array([7, 7, 7, 2, 2, 2])
LENGTHS = np.array([1, 2, 3, 3, 2, 1])
MASK = jnp.arange(4) < LENGTHS[:, None]

SMALL = {
  'warm_start__steps': 8,
  'train__iterations': 2,
  'train__sequences_per_update': 32,
  'rollout__prompts_per_iteration': 16,
  'rollout__responses_per_prompt': 4,
  'evaluate__problems': 8,
  'evaluate__every': 100,
  'logging__samples_every': 100,
}


@pytest.mark.parametrize('name', CHANGED_FIELDS)
def test_recipes_differ_in_the_published_settings(name):
  assert f'algorithms:{name}' in SPECS
  assert len(SPECS) == len(CHANGED_FIELDS)
  fields = flatten(load(f'algorithms:{name}').config)
  grpo = flatten(load('countdown:grpo').config)
  assert {k: v for k, v in fields.items() if v != grpo[k]} == CHANGED_FIELDS[
    name
  ]
  documentation = inspect.getdoc(getattr(algorithms, name)) or ''
  assert f'--config=algorithms:{name} --workdir=runs/{name}' in documentation


def advantages_of(name):
  """Returns the advantages of a recipe on `REWARDS`."""
  recipe = load(f'algorithms:{name}')
  function = token_advantages(recipe.advantages(recipe.config))
  return np.asarray(function(REWARDS, GROUPS, MASK))


def test_advantages_are_those_of_the_algorithm():
  rewards, means = np.asarray(REWARDS), np.full(6, 1 / 3)
  means_of_others = np.array([0, 0.5, 0.5, 0, 0.5, 0.5])
  token_rewards = np.repeat(rewards, LENGTHS)
  per_response = {
    'dapo': (rewards - means) / (np.sqrt(1 / 3) + 1e-6),
    'dr_grpo': rewards - means,
    'rloo': rewards - means_of_others,
    'reinforce_plus_plus': (rewards - token_rewards.mean())
    / token_rewards.std(ddof=1),
  }
  for name, expected in per_response.items():
    np.testing.assert_allclose(
      advantages_of(name), np.where(MASK, expected[:, None], 0), rtol=1e-5
    )


def test_dapo_penalises_the_last_fifth_of_the_length():
  recipe = load('algorithms:dapo')
  penalty = recipe.task(recipe.config).rewards[-1]
  assert isinstance(penalty, Overlong)
  assert [penalty(n) for n in (10, 11, 12)] == [0, -0.5, -1]


def test_constant_length_divides_by_the_longest_response():
  rows = padding_batch(*MASK.shape, reference=False).batch
  batch = dataclasses.replace(
    rows, loss_mask=MASK, weights=jnp.ones(MASK.shape), segment_ids=MASK + 0
  )
  weights = apply_token_weights(batch, 'constant-length', 4).weights
  np.testing.assert_allclose(weights, MASK / (6 * 4), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize('name', CHANGED_FIELDS)
def test_two_iterations_have_finite_entropies_and_skip_no_update(
  name, tmp_path
):
  recipe = f'../../../configs/algorithms:{name}'
  lines = process.train(recipe, tmp_path / 'run', **SMALL)
  trained = [line for line in lines if line['phase'] == 'train']
  assert len(trained) == 4
  assert all(np.isfinite(line['entropy']) for line in trained)
  assert not any(line['skipped'] for line in trained)
