# SPDX-License-Identifier: Apache-2.0
"""Invalid arguments of the theory package are refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from covrl.theory import (
  categorical,
  gradient_ascent,
  runner,
  sampled_batch,
  score_study,
  tabular,
  tree_policy,
  trees,
)
from covrl.theory.claim import Section, Settings
from covrl.theory.evidence import Check, Evidence, at_least, at_most, close_to
from covrl.theory.sections import section_5_bonus, section_7_stability

pytestmark = pytest.mark.usefixtures('no_annotation_checks')

HALVES = np.full((3, 2), 0.5)
LOGITS = np.zeros((3, 2))
RNG = np.random.default_rng(0)
SETTINGS = Settings(quick=True)
TREE = trees.random_tree(RNG, prompts=2, depth=2, actions=2)
PI = jnp.full((2, 3, 2), 0.5)
TABLE = jnp.zeros((2, 3, 2))
NOISE = jnp.zeros((2, 4, 2))
TOKENS = tabular.sample_tokens(TREE, TABLE, NOISE)
POLICY = tree_policy.random_tree_policy(SETTINGS, depth=2, actions=2)


def unchecked(function: object) -> Any:
  """The function as `Any`, so that the type checker accepts wrong arguments."""
  return function


@pytest.mark.parametrize(
  'pi',
  [
    np.array([-0.5, 1.5]),
    np.array([0.5, 0.6]),
    np.array([math.nan, 1.0]),
    np.array([math.inf, 1.0]),
    np.zeros((0,)),
    np.array(1.0),
    [0.5, 0.5],
    np.array(['a']),
    np.array([0.5 + 0j, 0.5]),
    np.ma.array([0.5, 0.5], mask=[True, False]),
  ],
)
def test_refuses_arrays_that_are_not_probabilities(pi):
  ones = np.ones(np.shape(pi))
  for call in (
    lambda: categorical.entropy(pi),
    lambda: categorical.centred_logprobs(pi),
    lambda: categorical.expectation(pi, ones),
    lambda: categorical.centred(pi, ones),
    lambda: categorical.covariance(pi, ones, ones),
    lambda: categorical.weighted_covariance(pi, ones),
    lambda: categorical.kl(pi, pi),
    lambda: categorical.kl(HALVES[0], pi),
    lambda: section_7_stability.fisher(pi, ones, ones),
  ):
    with pytest.raises((TypeError, ValueError), match='must'):
      call()


@pytest.mark.parametrize(
  'logits',
  [
    np.array([math.nan, 0.0]),
    np.array([math.inf, 0.0]),
    np.array([-math.inf, -math.inf]),
    np.zeros((2, 0)),
    [0.0, 0.0],
  ],
)
def test_refuses_logits_without_a_softmax(logits):
  for call in (
    categorical.log_softmax,
    categorical.softmax,
    trees.state_entropy,
    lambda z: gradient_ascent.reward_gap(z, np.ones(2)),
  ):
    with pytest.raises((TypeError, ValueError), match='logits must'):
      call(logits)


def test_probabilities_of_0_remain_probabilities():
  assert categorical.softmax(np.array([0.0, -math.inf])).tolist() == [1, 0]
  assert categorical.entropy(np.array([1.0, 0.0])) == 0
  single = np.full((1, 3), 1 / 3, np.float32)
  assert abs(categorical.entropy(single) - math.log(3)) < 1e-6
  assert categorical.entropy(np.zeros((0, 2))).shape == (0,)


@pytest.mark.parametrize(
  'call',
  [
    lambda: categorical.kl(HALVES, HALVES[0]),
    lambda: categorical.expectation(HALVES, np.ones((3, 1))),
    lambda: categorical.entropy_derivative(LOGITS, np.ones((3, 1))),
    lambda: categorical.entropy_derivative(LOGITS, LOGITS * math.nan),
    lambda: categorical.random_logits(RNG, 3, 2, ()),
    lambda: categorical.random_logits(RNG, 3, 2, (1.0, math.nan)),
    lambda: categorical.random_logits(RNG, 3, 2, (-1.0,)),
    lambda: categorical.random_logits(RNG, 0, 2),
    lambda: unchecked(categorical.random_logits)(RNG, 3, 2.0),
    lambda: categorical.power_law_exponent(np.ones(1), np.ones(1)),
    lambda: categorical.power_law_exponent(np.ones(3), np.ones(3)),
    lambda: categorical.power_law_exponent(np.arange(3.0), np.ones(3)),
    lambda: categorical.power_law_exponent(np.arange(1.0, 4), np.ones(2)),
    lambda: gradient_ascent.gradient(LOGITS, LOGITS + math.nan),
    lambda: gradient_ascent.gradient(LOGITS, np.ones((3, 1))),
    lambda: gradient_ascent.value(LOGITS, LOGITS, math.nan),
    lambda: gradient_ascent.value(LOGITS, LOGITS, True),
    lambda: gradient_ascent.squared_norm(np.ma.array([1.0], mask=[True])),
    lambda: gradient_ascent.near_entropy_maximum(SETTINGS, 0.0),
    lambda: gradient_ascent.log_spaced_steps(0),
    lambda: unchecked(gradient_ascent.log_spaced_steps)(1.5),
    lambda: gradient_ascent.run_schedules(SETTINGS, (1.0, math.nan)),
    lambda: gradient_ascent.run_schedules(SETTINGS, (1.0,)),
    lambda: section_5_bonus.near_deterministic(np.array([2.0]), 3),
    lambda: section_5_bonus.near_deterministic(np.array([0.1]), 1),
    lambda: section_7_stability.margin(HALVES, LOGITS + 1, 0.1),
    lambda: section_7_stability.margin(HALVES, np.eye(2)[[0, 1, 0]], -0.1),
    lambda: section_7_stability.ray_divergence(
      HALVES, LOGITS, np.full(3, math.nan)
    ),
  ],
)
def test_refuses_invalid_numbers_and_shapes(call):
  with pytest.raises((TypeError, ValueError), match='must'):
    call()


@pytest.mark.parametrize('fraction', [2, -1, math.nan, '0.5', True])
def test_refuses_invalid_fractions(fraction):
  with pytest.raises((TypeError, ValueError), match='fraction must'):
    trees.random_tree(RNG, prompts=1, depth=2, actions=2, end_fraction=fraction)
  with pytest.raises((TypeError, ValueError), match='fraction must'):
    tree_policy.random_tree_policy(SETTINGS, end_fraction=fraction)
  with pytest.raises((TypeError, ValueError), match='fraction must'):
    sampled_batch.top_tokens(np.ones((2, 2)), fraction)


@pytest.mark.parametrize(
  'call',
  [
    lambda: trees.count_nodes(-1, 2),
    lambda: trees.count_nodes(2, 0),
    lambda: trees.full_tree(jnp.zeros((1, 0)), 1),
    lambda: trees.full_tree(jnp.zeros((0, 2)), 1),
    lambda: trees.full_tree(jnp.full((1, 2), jnp.nan), 1),
    lambda: trees.full_tree(jnp.zeros((1, 2)), 0),
    lambda: trees.random_tree(RNG, prompts=0, depth=1, actions=2),
    lambda: trees.random_tree(RNG, prompts=1, depth=0, actions=2),
    lambda: trees.visit_frequencies(TREE, PI[:1]),
    lambda: trees.visit_frequencies(TREE, PI + 0.1),
    lambda: trees.action_values(TREE, PI, TREE.rewards[:1]),
    lambda: trees.action_values(TREE, -PI, TREE.rewards),
    lambda: trees.advantages(TREE, PI * 2, TREE.rewards),
    lambda: trees.objective(TREE, TABLE[:1]),
    lambda: trees.mean_entropy(TREE, TABLE * jnp.nan),
    lambda: trees.response_probabilities(
      trees.random_tree(RNG, prompts=2, depth=2, actions=2, end_fraction=1), PI
    ),
    lambda: tree_policy.random_tree_policy(SETTINGS, scale=-1),
    lambda: next(tree_policy.enumerate_responses(TREE, np.asarray(PI)[:1])),
    lambda: next(tree_policy.enumerate_responses(TREE, np.asarray(PI) / 2)),
    lambda: tree_policy.transition_matrices(POLICY._replace(pi=POLICY.pi * 2)),
    lambda: tabular.gumbel_noise(jax.random.key(0), tree=TREE, responses=0),
    lambda: tabular.gumbel_noise(jax.random.key(0), 0, tree=TREE, responses=2),
    lambda: tabular.sample_tokens(TREE, TABLE, NOISE[:1]),
    lambda: tabular.sample_tokens(TREE, TABLE, NOISE[:, :3]),
    lambda: tabular.sample_tokens(TREE, TABLE, NOISE * jnp.nan),
    lambda: tabular.sample_tokens(TREE, TABLE * jnp.nan, NOISE),
    lambda: tabular.sequence_ids(TOKENS, -1),
    lambda: tabular.sequence_ids(TOKENS, 2**30),
    lambda: tabular.sequence_ids(TOKENS, 0.5),
    lambda: tabular.all_pairs(TREE, TABLE[:1]),
    lambda: tabular.token_statistics(TABLE[:1], TOKENS),
    lambda: tabular.token_statistics(
      TABLE, TOKENS._replace(actions=TOKENS.actions + 2)
    ),
    lambda: tabular.token_statistics(TABLE, TOKENS, TABLE[:1]),
    lambda: tabular.token_moments(
      TABLE, TOKENS._replace(actions=TOKENS.actions - 9)
    ),
    lambda: tabular.update(
      TABLE, TOKENS, optax.identity(), learning_rate=jnp.nan
    ),
    lambda: tabular.update(TABLE, TOKENS, optax.identity(), learning_rate=-1),
    lambda: tabular.update(
      TABLE, TOKENS, optax.identity(), learning_rate=1, old_logits=TABLE[:1]
    ),
    lambda: sampled_batch.top_tokens(np.full((2, 2), math.nan), 0.5),
    lambda: sampled_batch.draw_clip_cov(SETTINGS, 2.0, 1.0),
    lambda: sampled_batch.draw_clip_cov(SETTINGS, math.nan, 1.0),
    lambda: sampled_batch.updated_logits(
      sampled_batch.sample_bandit_batch(SETTINGS), math.nan
    ),
    lambda: sampled_batch.updated_logits(
      sampled_batch.sample_bandit_batch(SETTINGS), np.ones((1, 1))
    ),
    lambda: score_study.measure(SETTINGS, 'table', 'adam'),
    lambda: score_study.measure(SETTINGS, 'mlp', 'Adam'),
  ],
)
def test_refuses_invalid_trees_policies_and_tokens(call):
  with pytest.raises((TypeError, ValueError), match='must'):
    call()


def test_traced_arguments_are_not_refused():
  gradient = jax.jit(jax.grad(trees.objective, 1))(TREE, TABLE)
  assert gradient.shape == TABLE.shape


def test_checks_of_infinite_values_fail_and_infinite_bounds_are_refused():
  assert not at_most('x', -math.inf, 1.0).passes
  assert not at_least('x', math.inf, 1.0).passes
  assert not Check('x', math.inf).passes
  for bound in (math.inf, -math.inf, math.nan, True):
    with pytest.raises((TypeError, ValueError), match='must'):
      at_most('x', 0.0, bound)
    with pytest.raises((TypeError, ValueError), match='must'):
      at_least('x', 0.0, bound)
    with pytest.raises((TypeError, ValueError), match='tolerance must'):
      close_to('x', 0.0, 0.0, bound)
  with pytest.raises(ValueError, match='expected must'):
    close_to('x', 0.0, math.nan, 1.0)
  with pytest.raises(ValueError, match='tolerance must'):
    close_to('x', 0.0, 0.0, -1.0)


def test_evidence_without_checks_and_runs_without_claims_are_refused():
  with pytest.raises(ValueError, match='printed must have at least one check'):
    Evidence(printed=[])
  with pytest.raises(ValueError, match='at least one claim'):
    runner.run_claims(claims=())


@pytest.mark.parametrize('verdict', ['holds if ', 'holdsome', 'failsafe', ''])
def test_refuses_unknown_verdicts(verdict):
  claim = Section('a section').claim(
    'A', printed='', corrected='', verdict='holds', formula=lambda x: x
  )(lambda settings, formula: Evidence(printed=[at_most('x', 0, 1)]))
  with pytest.raises(ValueError, match='verdict must be'):
    dataclasses.replace(claim, verdict=verdict)


def test_refuses_invalid_settings():
  for wrong in ({'seed': -1}, {'seed': 2**31}, {'seed': 1.0}, {'quick': 1}):
    with pytest.raises((TypeError, ValueError), match='must'):
      unchecked(Settings)(**wrong)


def test_cached_results_are_of_64_bits_whoever_computes_them_first():
  settings = Settings(quick=True, seed=7)
  batch = sampled_batch.sample_bandit_batch(settings)
  with jax.enable_x64(True):
    assert sampled_batch.sample_bandit_batch(settings) is batch
  assert batch.logits.dtype == batch.exact_scores.dtype == np.float64
