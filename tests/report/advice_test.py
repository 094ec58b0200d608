# SPDX-License-Identifier: Apache-2.0
"""Advice on entropy control from a run's metrics."""

import dataclasses
import json
import math

import numpy as np
import pytest

import covrl
from covrl.cli import main
from covrl.report import write_report
from covrl.report.advice import (
  MAX_FRACTION,
  REQUIRED_METRICS,
  AdviceInputs,
  advise,
  read_inputs,
)
from covrl.report.inputs.run_data import load_run

COLLAPSE = AdviceInputs(
  iterations=100,
  updates_per_iteration=4.0,
  tokens=20_000.0,
  entropy_start=0.4,
  entropy_end=0.1,
  halving_iterations=30.0,
  covariance=0.003,
  tails={0.0002: 5.654, 0.002: 0.35, 0.02: 0.08},
  high_quantile=0.2,
  equal_group_share=0.5,
  reward=0.6,
)


def test_without_a_collapse_no_control_is_recommended():
  advice = advise(dataclasses.replace(COLLAPSE, entropy_end=0.36))
  assert advice.method == 'none'
  assert '0.400 to 0.360' in advice.reasons[0]


def test_covariance_of_a_few_tokens_leads_to_kl_cov():
  advice = advise(COLLAPSE)
  assert advice.method == 'kl_cov'
  # 0.0002 · 5.654 is more than half of 0.02 · 0.08, the tail's share.
  assert advice.fraction == 0.0002
  assert advice.coefficient == 1.0
  assert not advice.annealed


def test_the_fraction_grows_with_the_tail():
  tails = {0.0002: 1.0, 0.002: 0.5, 0.02: 0.08}
  advice = advise(dataclasses.replace(COLLAPSE, tails=tails))
  assert advice.fraction == 0.002


@pytest.mark.parametrize(
  ('tokens', 'fraction'), [(1000.0, 0.004), (10.0, MAX_FRACTION)]
)
def test_a_fraction_selects_several_tokens_of_an_update(tokens, fraction):
  advice = advise(dataclasses.replace(COLLAPSE, tokens=tokens))
  assert advice.fraction == fraction
  assert 'k is' in ' '.join(advice.reasons)


def test_a_fast_collapse_has_a_larger_coefficient():
  assert (
    advise(dataclasses.replace(COLLAPSE, halving_iterations=20.0)).coefficient
    == 3.0
  )
  assert (
    advise(dataclasses.replace(COLLAPSE, halving_iterations=None)).coefficient
    == 1.0
  )


def test_beta_is_annealed_if_most_groups_have_equal_high_rewards():
  saturated = dataclasses.replace(COLLAPSE, equal_group_share=0.95)
  assert advise(saturated).annealed
  # Groups that are equal because nothing is solved need exploration most.
  assert not advise(dataclasses.replace(saturated, reward=0.01)).annealed


def test_one_update_per_rollout_leads_to_clip_cov_with_bounds_in_the_tail():
  advice = advise(dataclasses.replace(COLLAPSE, updates_per_iteration=1.0))
  assert advice.method == 'clip_cov'
  assert (advice.low, advice.high) == (0.2, 5.654)
  assert advice.low > 5 * COLLAPSE.covariance


@pytest.mark.parametrize(
  'case',
  [
    {
      'tails': {0.02: 0.08}
    },  # no smaller share has a mean to bound the tail with
    {'high_quantile': 6.0},
    {'high_quantile': 5.654},
  ],
)
def test_an_upper_bound_without_a_measured_tail_is_left_out(case):
  advice = advise(
    dataclasses.replace(COLLAPSE, updates_per_iteration=1.0, **case)
  )
  assert advice.high == np.inf
  assert 'below' not in advice.recommendation
  covrl.clip_cov(advice.fraction, advice.low, advice.high)


def test_the_lower_bound_excludes_negative_covariances():
  advice = advise(
    dataclasses.replace(COLLAPSE, updates_per_iteration=1.0, high_quantile=-0.5)
  )
  assert advice.low == 0


def test_an_unfinished_run_and_a_rise_of_entropy_are_stated():
  advice = advise(dataclasses.replace(COLLAPSE, planned_iterations=500))
  assert '100 iterations of 500, the run is not finished' in advice.reasons[0]
  advice = advise(dataclasses.replace(COLLAPSE, entropy_end=0.8))
  assert advice.method == 'none'
  assert 'rose by 100\u202f%' in advice.reasons[0]


def test_the_selected_tokens_of_the_run_are_stated():
  advice = advise(dataclasses.replace(COLLAPSE, selected=400.0))
  assert 'control of 400 of 20,000 tokens per update' in advice.reasons[0]
  assert not any('control of' in reason for reason in advise(COLLAPSE).reasons)


def test_covariance_of_many_tokens_leads_to_a_controlled_bonus():
  advice = advise(dataclasses.replace(COLLAPSE, covariance=0.05))
  assert advice.method == 'controlled_bonus'
  assert advice.target == 0.2


def test_tail_share_is_1_if_the_mean_is_below_the_tail_and_0_without_a_tail():
  assert dataclasses.replace(COLLAPSE, covariance=-0.01).tail_share == 1.0
  no_tail = {0.0002: -1.0, 0.002: -1.0, 0.02: -1.0}
  assert dataclasses.replace(COLLAPSE, tails=no_tail).tail_share == 0.0


def test_an_update_of_few_tokens_has_no_small_tails(tmp_path):
  values = {'covariance': 0.001, 'covariance_top/0.02': 0.04, 'tokens': 300.0}
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20), values=values)
  inputs = read_inputs(load_run(run))
  assert inputs.tails == {0.02: pytest.approx(0.04)}
  assert advise(inputs).fraction == 0.02


def write_run(path, entropy, *, updates=2, without=(), values=None):
  """Writes a run with the given entropy by iteration and constant other metrics."""
  path.mkdir()
  values = (
    dict.fromkeys(REQUIRED_METRICS, 0.1) | {'tokens': 20.0} | (values or {})
  )
  lines = [
    {'phase': 'train', 'iteration': iteration} | values | {'entropy': float(h)}
    for iteration, h in enumerate(entropy)
    for _ in range(updates)
  ]
  for line in lines:
    for name in without:
      del line[name]
  text = ''.join(f'{json.dumps(line)}\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  return path


def test_inputs_are_read_from_the_metrics_of_a_run(tmp_path):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20))
  inputs = read_inputs(load_run(run))
  assert inputs.iterations == 20
  assert inputs.updates_per_iteration == 2
  assert inputs.entropy_start == pytest.approx(0.975)
  assert inputs.entropy_end == pytest.approx(0.075)
  assert inputs.halving_iterations == 11


def test_entropy_that_was_never_halved_has_no_halving_time(tmp_path):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.7, 20))
  assert read_inputs(load_run(run)).halving_iterations is None


def test_missing_metrics_are_named(tmp_path):
  run = write_run(
    tmp_path / 'grpo', np.ones(9), without=('covariance', 'tokens')
  )
  with pytest.raises(
    ValueError,
    match=r'must have the metrics covariance and tokens of updates, got none$',
  ):
    read_inputs(load_run(run))
  run = run_with_covariances_at(tmp_path / 'none', lambda *_: False)
  with pytest.raises(ValueError, match='as where an update has too few tokens'):
    read_inputs(run)
  config = {'name': 'a', 'config': {'logging': {'diagnostics_every': 0}}}
  (run.path / 'config.json').write_text(json.dumps(config))
  with pytest.raises(ValueError, match=r'logging\.diagnostics_every=0 leaves'):
    read_inputs(load_run(run.path))


@pytest.mark.parametrize('missing_iterations', [slice(0, 6), slice(14, 20)])
@pytest.mark.parametrize('name', ['entropy', 'reward'])
def test_metrics_that_are_missing_in_a_part_of_the_run_are_named(
  tmp_path, name, missing_iterations
):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20))
  lines = [
    json.loads(line)
    for line in (run / 'metrics.jsonl').read_text().splitlines()
  ]
  for line in lines:
    if line['iteration'] in range(20)[missing_iterations]:
      line[name] = None
  text = ''.join(f'{json.dumps(line)}\n' for line in lines)
  (run / 'metrics.jsonl').write_text(text)
  with pytest.raises(
    ValueError, match=f'must have {name} in 90\u202f% .* 14 of 20'
  ):
    read_inputs(load_run(run))


def run_with_covariances_at(path, is_measured):
  """A run that measures the distribution of covariances at some iterations."""
  run = write_run(path, np.linspace(1.0, 0.05, 20))
  file, lines = run / 'metrics.jsonl', []
  for index, line in enumerate(file.read_text().splitlines()):
    metrics = json.loads(line)
    names = ('covariance_top/0.02', 'covariance_quantile/0.99')
    metrics |= dict.fromkeys(names, float(metrics['iteration']))
    if not is_measured(index, metrics['iteration']):
      for name in names:
        del metrics[name]
    lines.append(f'{json.dumps(metrics)}\n')
  file.write_text(''.join(lines))
  return load_run(run)


def test_covariances_may_be_measured_at_intervals(tmp_path):
  # Two updates per iteration: iterations 0 and 5 of the first six.
  run = run_with_covariances_at(
    tmp_path / 'a', lambda number, _: number % 10 == 0
  )
  inputs = read_inputs(run)
  assert inputs.high_quantile == inputs.tails[0.02] == pytest.approx(2.5)
  assert inputs.entropy_end == pytest.approx(0.075)
  assert inputs.halving_iterations == 11
  run = run_with_covariances_at(
    tmp_path / 'b', lambda _, iteration: iteration > 5
  )
  with pytest.raises(ValueError, match=r'first third .* up to iteration 5'):
    read_inputs(run)


def test_updates_without_tokens_are_refused(tmp_path):
  values = {'tokens': 0.0}
  run = write_run(tmp_path / 'grpo', np.linspace(1, 0.05, 9), values=values)
  with pytest.raises(ValueError, match='at least one token, got 0'):
    read_inputs(load_run(run))


def test_a_short_run_is_refused(tmp_path):
  run = write_run(tmp_path / 'grpo', np.ones(4))
  with pytest.raises(ValueError, match=r'must have 5 iterations .* got 4'):
    read_inputs(load_run(run))


def test_a_policy_without_entropy_is_refused(tmp_path):
  run = write_run(tmp_path / 'grpo', np.zeros(9))
  with pytest.raises(
    ValueError, match=r'must be above 0 at the start, got 0 nats'
  ):
    read_inputs(load_run(run))


def test_command_prints_recommendation_and_reasons(tmp_path, capsys):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20))
  main(['advise', str(run)])
  out = capsys.readouterr().out
  assert out.startswith('an entropy bonus that a controller sets')
  assert '\n- entropy went from 0.975 to 0.0750 nats per token' in out


def test_command_names_unreadable_lines(tmp_path, capsys):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20))
  with (run / 'metrics.jsonl').open('a') as file:
    file.write('{"phase": \n')
  main(['advise', str(run)])
  assert '1 unreadable line of metrics.jsonl' in capsys.readouterr().err


def test_command_names_missing_metrics(tmp_path, capsys):
  run = write_run(tmp_path / 'grpo', np.ones(9), without=('reward',))
  with pytest.raises(SystemExit) as stopped:
    main(['advise', str(run)])
  assert stopped.value.code == 2
  assert 'must have the metrics reward of updates' in capsys.readouterr().err


def test_the_report_has_the_recommendation(tmp_path):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20))
  assert 'adaptive_bonus(0.4' in write_report(run).read_text()


def test_a_report_without_the_metrics_has_no_recommendation(tmp_path):
  run = write_run(tmp_path / 'grpo', np.ones(9), without=('reward',))
  assert 'Advice' not in write_report(run).read_text()


@pytest.mark.parametrize(
  ('name', 'value', 'bounds'),
  [
    ('entropy', -0.1, r'\[0, 100\]'),
    ('tokens', -5.0, r'\[0, inf\]'),
    ('equal_reward_groups', 7.0, r'\[0, 1\]'),
  ],
)
def test_impossible_metrics_are_refused(tmp_path, name, value, bounds):
  run = write_run(tmp_path / 'grpo', np.linspace(1.0, 0.05, 20))
  file = run / 'metrics.jsonl'
  *lines, last = file.read_text().splitlines()
  last = json.dumps(json.loads(last) | {name: value})
  file.write_text('\n'.join([*lines, last, '']))
  message = f'{name} of grpo must lie in {bounds}, got {value:g}'
  with pytest.raises(ValueError, match=message):
    read_inputs(load_run(run))


@pytest.mark.parametrize(
  'change',
  [
    {'entropy_start': 0.0},
    {'entropy_start': math.nan},
    {'entropy_start': 500.0},
    {'entropy_end': -1.0},
    {'entropy_end': math.nan},
    {'tails': {}},
    {'tails': {0.5: 1.0}},
    {'tails': {0.02: math.nan}},
    {'covariance': math.nan},
    {'tokens': math.nan},
    {'tokens': -1.0},
    {'halving_iterations': -3.0},
    {'equal_group_share': 7.0},
    {'updates_per_iteration': math.nan},
    {'iterations': 0},
    {'planned_iterations': -1},
    {'high_quantile': math.inf},
    {'reward': math.nan},
    {'selected': math.nan},
    {'selected': -5.0},
    {'reward': '1'},
  ],
)
def test_refuses_impossible_inputs(change):
  with pytest.raises((TypeError, ValueError), match='must'):
    dataclasses.replace(COLLAPSE, **change)
