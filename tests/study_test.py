# SPDX-License-Identifier: Apache-2.0
"""The study of entropy control: tasks, variants, statistics and tables."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from benchmarks.study import tasks, tokens
from benchmarks.study.driver import (
  Run,
  Study,
  read_lines,
  updates_to_half,
  variant_of,
)
from benchmarks.study.grid import Grid, paths
from benchmarks.study.rates_and_sizes import (
  best_cell,
  end_iterations_at_equal_time,
  gain_is_positive,
  linear_verdict,
  slope_by_size,
)
from benchmarks.study.results import differences, verdict
from benchmarks.study.runner import parameters_of
from benchmarks.study.variants import UNCLIPPED, VARIANTS, VariantOptions
from benchmarks.study.writing import _comparison_clause, merge_results

import covrl
from covrl.report.advice import Advice
from covrl.report.pages.sections import PageSection
from covrl.types import TokenMoments, TokenStats

TASKS = {name: make_task() for name, make_task in tasks.TASKS.items()}


@pytest.mark.parametrize('name', [*TASKS])
def test_all_probed_responses_are_right(name):
  task = TASKS[name]
  prompts, rows = task.probes
  phases = range(len(task.phases))
  rewards = np.max(
    [task.score(prompts, rows, phase) for phase in phases], axis=0
  )
  assert (rewards == 1).all()
  assert prompts.shape[1] == tokens.PROMPT
  assert rows.shape[1] == tokens.RESPONSE
  assert rows.max() < tokens.VOCABULARY


def test_each_phase_of_the_changed_rule_rewards_its_own_rule():
  task = TASKS['changed_rule']
  prompts, rows = task.probes
  forwards, backwards = np.split(np.arange(len(rows)), 2)
  for phase, right_rows, wrong_rows in (
    (0, forwards, backwards),
    (1, backwards, forwards),
  ):
    rewards = task.score(prompts, rows, phase)
    assert (rewards[right_rows] == 1).all()
    assert (rewards[wrong_rows] == 0).all()


def test_quitting_the_lock_earns_half_the_reward():
  task = TASKS['lock']
  prompts, _ = task.probes
  quits = np.tile(tokens.response(tokens.QUIT), (len(prompts), 1))
  assert (task.score(prompts, quits, 0) == 0.5).all()


def test_paths_are_all_solutions():
  actual = paths((0, 0), (1, 1), (0, 1), 3)
  assert actual == [[(1, 0), (1, 1)]]
  assert len(paths((0, 0), (2, 2), (3, 3), 4)) == 6


def test_coverage_is_exact():
  grid = Grid()
  prompts = grid.held_out[:1]
  solutions = len(grid.solutions[tuple(prompts[0].tolist())])
  coverage = grid.coverage(prompts, np.full(solutions, 0.5 / solutions))
  assert coverage['accuracy'] == pytest.approx(0.5)
  each = 1 - (1 - 0.5 / solutions) ** 64
  assert coverage['distinct'] == pytest.approx(solutions * each)


def test_held_out_prompts_are_not_trained_on():
  grid = Grid()
  held_out = set(map(tuple, grid.held_out.tolist()))
  assert not held_out & set(map(tuple, grid.train.tolist()))


# Clip range below and above 1 (`None` without a clip), and the token chain.
RECIPE_FORMS = {
  'grpo': (0.2, 0.2, optax.identity()),
  'no_clip': (None, None, optax.identity()),
  'clip_higher': (0.2, 0.28, optax.identity()),
  'bonus_0.01': (0.2, 0.2, covrl.entropy_bonus(0.01)),
  'target_entropy': (
    0.2,
    0.2,
    covrl.entropy_bonus(covrl.target_entropy(0.1)),
  ),
  'clip_cov': (1.0, 1.0, covrl.clip_cov(0.05, low=0.1, high=5.0)),
  'kl_cov': (None, None, covrl.kl_cov(0.02, 3.0)),
  'exact_score': (None, None, covrl.kl_cov(0.02, 3.0, score='exact')),
  'random_k': (
    None,
    None,
    covrl.token_masked(
      covrl.add_divergence_penalty(3.0),
      covrl.selectors.random_tokens(0.02),
    ),
  ),
  'kl_cov_beta0': (None, None, optax.identity()),
}
TUNED_VALUES = {'target_entropy': 0.1, 'clip_cov': 0.05}


QUICK_VARIANTS = ('clip_cov', 'kl_cov')


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=() if name in QUICK_VARIANTS else pytest.mark.slow)
    for name in RECIPE_FORMS
  ],
)
def test_a_variant_equals_the_loss_and_chain_of_a_recipe(name):
  low, high, chain = RECIPE_FORMS[name]
  loss = functools.partial(covrl.policy_gradient, max_log_ratio=20.0)
  if low is not None:
    loss = functools.partial(covrl.clipped_surrogate, low=low, high=high)
  variant = VARIANTS[name]
  options = (
    variant.with_value(TUNED_VALUES.get(name, 3.0))
    if variant.tuned
    else variant
  ).options
  arrays = VariantOptions(*map(np.float32, options))
  actual = cotangents_of_options(arrays)
  expected = cotangents_after(loss, chain)
  for cotangent, expected_cotangent in zip(actual, expected, strict=True):
    np.testing.assert_allclose(
      cotangent, expected_cotangent, rtol=1e-5, atol=1e-7
    )
  is_changed = not np.allclose(
    expected[0], cotangents_after(loss, optax.identity())[0]
  )
  assert is_changed == (
    name in ('clip_cov', 'kl_cov', 'exact_score', 'random_k')
  )


@jax.jit
def cotangents_of_options(options):
  """Cotangents after the loss and the chain of options, compiled once for all."""
  return cotangents_after(options.loss(), options.token_tx())


def cotangents_after(loss, chain):
  """Cotangents of log π and H after a loss and a token chain."""
  keys = jax.random.split(jax.random.key(0), 4)
  shape = (16, 16)
  logprobs = -jnp.abs(jax.random.normal(keys[0], shape))
  stats = TokenStats(
    logprobs=logprobs, entropy=jax.random.uniform(keys[1], shape)
  )
  moments = TokenMoments(
    square=jnp.full(shape, 0.3),
    square_log=jnp.full(shape, -0.2),
    square_log_square=jnp.full(shape, 0.2),
  )
  mask = jnp.ones(shape, bool)
  context = {
    'advantages': jax.random.normal(keys[2], shape),
    'old_logprobs': logprobs + 0.3 * jax.random.normal(keys[3], shape),
    'old_entropy': stats.entropy,
    'old_moments': moments,
    'moments': moments,
    'mask': mask,
    'weights': mask / mask.size,
    'entropy': jnp.mean(stats.entropy),
    'entropy_change': jnp.asarray(jnp.nan),
    'log_ratio_noise': jnp.zeros(()),
    'step': jnp.asarray(1),
    'key': jax.random.key(1),
  }
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
  state = chain.init(TokenStats.template())
  update: Any = optax.with_extra_args_support(chain).update
  signal, _ = update(signal, state, stats, **context, **aux.for_selection)
  return signal.logprobs, signal.entropy


def test_annealed_coefficients_fall_to_0():
  options = VariantOptions(annealed=1.0, updates=10.0)
  assert [
    float(options.annealed_value(2.0, step)) for step in (0, 5, 10, 20)
  ] == [
    2,
    1,
    0,
    0,
  ]
  assert float(VariantOptions(updates=10.0).annealed_value(2.0, 5)) == 2


def metric_lines(new_rule):
  """Returns metrics with the accuracy by the new rule at six evaluations."""
  evaluations = [
    {'phase': 'eval', 'iteration': i, 'rule': int(i >= 4), 'new_rule': value}
    for i, value in zip(range(0, 12, 2), new_rule, strict=True)
  ]
  return evaluations + [
    {'phase': 'train', 'iteration': i // 4} for i in range(40)
  ]


def test_updates_to_half_counts_from_the_change():
  assert updates_to_half(metric_lines([0.9, 0.5, 0.1, 0.4, 0.6, 0.9])) == 16
  assert updates_to_half(metric_lines([0, 0, 0, 0, 0, 0.1])) == 24


def test_a_win_is_an_interval_on_the_better_side():
  task = TASKS['changed_rule']
  slow, fast = metric_lines([0] * 6), metric_lines([0, 0, 0, 1, 1, 1])
  runs_by_variant = {
    'grpo': dict.fromkeys(range(3), slow),
    'kl_cov': dict.fromkeys(range(3), fast),
  }
  assert verdict(task, differences(task, runs_by_variant, 'kl_cov')) == 'wins'
  assert (
    verdict(task, differences(task, runs_by_variant, 'grpo', 'kl_cov'))
    == 'loses'
  )
  assert verdict(task, differences(task, runs_by_variant, 'grpo')) == ''


def accuracies(*values):
  """Returns evaluations with the given accuracies."""
  return [
    {'phase': 'eval', 'iteration': 5 * i, 'rule': 0, 'accuracy': value}
    for i, value in enumerate(values)
  ]


def test_settings_are_compared_at_equal_time():
  lines = accuracies(0.1, 0.2, 0.3, 0.4)
  end_iterations = end_iterations_at_equal_time({2: 2.9, 1: 2.0}, lines)
  assert end_iterations == {1: 15, 2: 10}
  runs_by_cell = {
    ('kl_cov', (1.0, 1)): dict.fromkeys(range(2), lines),
    ('kl_cov', (1.0, 2)): dict.fromkeys(
      range(2), accuracies(0.1, 0.2, 0.35, 0.9)
    ),
    ('kl_cov', (2.0, 1)): {0: accuracies(1, 1, 1, 1)},  # one seed of two
  }
  assert best_cell('kl_cov', runs_by_cell, end_iterations) == (
    (1.0, 1),
    {0: 0.4, 1: 0.4},
  )
  assert best_cell('grpo', runs_by_cell, end_iterations) == (None, {})


def test_a_rise_is_an_interval_above_the_warm_start():
  up, down = accuracies(0.1, 0.3), accuracies(0.1, 0.05)
  assert gain_is_positive({0: up, 1: up, 2: up})
  assert not gain_is_positive({0: up, 1: down, 2: down})
  assert not gain_is_positive({0: up})


def test_the_slope_over_the_size_is_per_factor_of_ten():
  decades_to_64 = np.log10(parameters_of(64) / parameters_of(32))
  decades_to_128 = np.log10(parameters_of(128) / parameters_of(32))
  by_width = {
    32: {0: 1.0, 1: 1.0, 2: 1.0},
    64: {0: 1.0 + decades_to_64, 1: 1.0 + 3 * decades_to_64, 2: 9.0},
    128: {0: 1.0 + decades_to_128, 1: 1.0 + 3 * decades_to_128},
  }
  slope = slope_by_size(by_width)  # seed 2 has two sizes
  assert slope is not None
  assert slope.value == pytest.approx(2.0)
  assert slope_by_size({32: {0: 1.0}, 64: {0: 2.0}}) is None


def test_coefficients_are_linear_if_both_correlate_with_the_size():
  assert linear_verdict([]) == 'open'
  assert linear_verdict([-0.95, 0.92]) == 'holds'
  assert linear_verdict([-0.95, 0.7]) == 'fails'


def test_finished_runs_are_not_repeated(tmp_path, monkeypatch):
  runs = []
  study = Study(tmp_path, lambda text: None)
  monkeypatch.setattr(
    study, '_train', lambda run: runs.append(run) or [{'phase': 'eval'}]
  )
  run = Run(task='lock', variant=VARIANTS['grpo'], seed=0)
  assert (
    study.train_if_missing(run)
    == study.train_if_missing(run)
    == read_lines(run.path(tmp_path))
  )
  assert runs == [run]


def test_runs_of_an_earlier_version_are_refused(tmp_path):
  (tmp_path / 'lock' / 'arms').mkdir(parents=True)
  with pytest.raises(ValueError, match='must have runs of this version, got'):
    Study(tmp_path, lambda text: None)


def test_advice_becomes_a_variant():
  advice = Advice(
    method='kl_cov', fraction=0.01, coefficient=3.0, annealed=True
  )
  options = variant_of(advice).options
  assert (options.fraction, options.penalty, options.annealed) == (
    0.01,
    3.0,
    1.0,
  )
  assert (options.low, options.high) == (1.0, UNCLIPPED)
  assert variant_of(Advice(method='none')).options == VariantOptions()
  assert (
    variant_of(Advice(method='controlled_bonus', target=0.2)).options.target
    == 0.2
  )
  with pytest.raises(ValueError, match=r'advice\.method must be'):
    variant_of(Advice(method='clip_cov'))


def test_results_of_other_runs_stay():
  previous = '- A, a (2 seeds): x.\n- B, b (1 seed): y.\n\n### A, a\n\nold\n\n### B, b\n\nkept\n\n'
  text = merge_results(
    previous,
    ['A, a (3 seeds): z.', 'B, b: not run yet.', 'C, c: not run yet.'],
    [
      PageSection(
        title='A, a', texts=('new',), columns=['variant'], rows=[['1']]
      ),
      PageSection(title='B, b', texts=('not run yet.',)),
      PageSection(title='C, c', texts=('not run yet.',)),
    ],
  )
  assert text == (
    '- A, a (3 seeds): z.\n- B, b (1 seed): y.\n- C, c: not run yet.\n\n'
    '### A, a\n\nnew\n\n| variant |\n| --- |\n| 1 |\n\n'
    '### B, b\n\nkept\n\n'
    '### C, c\n\nnot run yet.\n\n'
  )
  assert merge_results(text, [], []) == text


def test_variants_that_were_not_tuned_take_the_published_values(tmp_path):
  study = Study(tmp_path, lambda text: None)
  for name in TASKS:
    assert {variant.name for variant in study.variants(name)} == set(VARIANTS)
    assert not any(
      np.isnan(variant.options.penalty) for variant in study.variants(name)
    )
  assert study.chosen_values('rates_and_passes') == study.chosen_values(
    'many_solutions'
  )


def test_headlines_name_the_variants_that_are_better_and_worse():
  assert _comparison_clause([], 'better') == 'no variant is better'
  assert _comparison_clause(['a'], 'worse') == 'a is worse'
  assert _comparison_clause(['a', 'b', 'c'], 'worse') == 'a, b and c are worse'
