# SPDX-License-Identifier: Apache-2.0
"""Advantages of a process reward model, its checks, and runs with it."""

import dataclasses
import signal
import subprocess
from typing import Any

import jax
import numpy as np
import pytest
from pretrained.fixtures import MODELS
from train import process, runs
from train.killing import KILL_AT
from train.setup.resume_test import arrays
from train.updates import POLICY, SEQUENCES, WIDTH, padded_batch

from covrl.cli import main
from covrl.config import Config, ConfigError, check
from covrl.objectives import implicit_rewards, process_advantages
from covrl.parallel import sharding
from covrl.train.networks import (
  CreditInputs,
  critic,
  prime_advantages,
  process_reward_model,
)
from covrl.train.networks.checks import check_networks
from covrl.train.networks.init import network_model

GROUP_SIZE = 4


def make_config(**fields):
  config = Config()
  for name, value in fields.items():
    setattr(config.prime, name, value)
  return config


def inputs(**changes: Any) -> Any:
  """Rows of 16 groups with rewards, log-probabilities and a reference."""
  rng = np.random.default_rng(4)
  output, ref = -rng.exponential(size=(2, SEQUENCES, WIDTH)).astype(np.float32)
  credit_inputs: dict[str, Any] = {
    'rows': dataclasses.replace(padded_batch(), ref_logprobs=ref),
    'rewards': (rng.random(SEQUENCES) < 0.4).astype(np.float32),
    'group_ids': np.arange(SEQUENCES, dtype=np.int32) // GROUP_SIZE,
    'update_ids': np.zeros(SEQUENCES, np.int32),
    'outputs': {'prm': output},
  }
  return CreditInputs(**credit_inputs | changes)


_jitted: dict[str, Any] = {}


def estimate_credit(credit_inputs, reference='frozen'):
  """Credit of an estimate, as NumPy arrays; compiled once per reference."""
  if reference not in _jitted:
    estimator = prime_advantages(make_config(reference=reference))
    _jitted[reference] = jax.jit(estimator.estimate)
  credit, state = jax.device_get(_jitted[reference]((), credit_inputs))
  assert state == ()
  return credit


@jax.jit
def _advantages(output, ref, rewards, ids, mask):
  process = implicit_rewards(output, ref, mask)
  return process_advantages(
    process,
    rewards,
    ids,
    mask,
    process_coefficient=5.0,
    outcome_coefficient=5.0,
  )


@pytest.mark.parametrize('reference', ['frozen', 'old'])
def test_advantages_and_metrics_match_their_formulas(reference):
  credit_inputs = inputs()
  rows, mask = credit_inputs.rows, credit_inputs.rows.loss_mask
  advantages, targets, metrics = estimate_credit(credit_inputs, reference)
  ref = rows.ref_logprobs if reference == 'frozen' else rows.old_logprobs

  expected, scale = jax.device_get(
    _advantages(
      credit_inputs.outputs['prm'],
      ref,
      credit_inputs.rewards,
      credit_inputs.group_ids,
      mask,
    )
  )
  np.testing.assert_allclose(advantages, expected, atol=1e-5)
  assert metrics['prm/scoring/scale'] == pytest.approx(scale, rel=1e-6)
  is_right = credit_inputs.rewards > 0.5
  np.testing.assert_array_equal(targets['labels'], mask & is_right[:, None])
  scores = 0.05 * np.where(mask, credit_inputs.outputs['prm'] - ref, 0).sum(
    axis=1
  )
  assert metrics['prm/scoring/reward'] == pytest.approx(scores.mean(), rel=1e-4)
  is_same_group = credit_inputs.group_ids[:, None] == credit_inputs.group_ids
  pairs = is_same_group & is_right[:, None] & ~is_right
  pair_accuracy = (scores[:, None] > scores)[pairs].mean()
  assert metrics['prm/scoring/pair_accuracy'] == pytest.approx(
    pair_accuracy, rel=1e-5
  )
  probabilities = 1 / (1 + np.exp(-scores))
  bins = (probabilities * 10).astype(int)
  error = sum(
    abs((probabilities - is_right)[bins == b].sum()) for b in range(10)
  )
  assert metrics['prm/scoring/calibration_error'] == pytest.approx(
    error / SEQUENCES, rel=1e-4
  )


def test_credit_does_not_depend_on_the_mesh():
  credit_inputs = inputs()
  expected, _, expected_metrics = estimate_credit(credit_inputs)
  mesh = sharding.make_mesh((2, 2, 2))
  run = jax.jit(
    prime_advantages(make_config()).estimate,
    out_shardings=sharding.replicated(mesh),
  )
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    (advantages, _, metrics), _ = jax.device_get(
      run((), sharding.shard_batch(credit_inputs, mesh))
    )
  np.testing.assert_allclose(advantages, expected, atol=2e-5)
  for name, value in expected_metrics.items():
    assert metrics[name] == pytest.approx(value, rel=1e-5), name
  assert metrics['prm/scoring/scale'] == expected_metrics['prm/scoring/scale']


def test_equal_rewards_give_process_advantages_and_no_pair_accuracy():
  credit_inputs = inputs(rewards=np.ones(SEQUENCES, np.float32))
  advantages, targets, metrics = estimate_credit(credit_inputs)
  mask = credit_inputs.rows.loss_mask
  assert np.abs(advantages[mask]).max() > 0.1
  assert (targets['labels'] == mask).all()
  assert np.isnan(metrics['prm/scoring/pair_accuracy'])
  # A model that equals its reference gives process rewards of 0.
  credit_inputs = inputs(
    rewards=np.zeros(SEQUENCES, np.float32),
    outputs={'prm': credit_inputs.rows.ref_logprobs},
  )
  advantages, _, metrics = estimate_credit(credit_inputs)
  assert not advantages.any()
  assert metrics['prm/scoring/scale'] == metrics['prm/scoring/reward'] == 0


def test_an_empty_batch_has_no_advantages_and_no_metrics():
  rows = inputs().rows
  empty = dataclasses.replace(rows, loss_mask=np.zeros_like(rows.loss_mask))
  credit_inputs = inputs(
    rows=empty, rewards=np.full(SEQUENCES, np.nan, np.float32)
  )
  advantages, targets, metrics = estimate_credit(credit_inputs)
  assert not advantages.any()
  assert not targets['labels'].any()
  for name in ('pair_accuracy', 'calibration_error', 'reward'):
    assert np.isnan(metrics[f'prm/scoring/{name}']), name


def test_responses_without_a_score_have_advantages_of_zero_and_leave_others_finite():
  credit_inputs = inputs()
  mask = credit_inputs.rows.loss_mask.copy()
  mask[5] = False
  rewards, ids = credit_inputs.rewards.copy(), credit_inputs.group_ids.copy()
  rewards[5], ids[5] = np.nan, -6
  masked = dataclasses.replace(credit_inputs.rows, loss_mask=mask)
  advantages, _, metrics = estimate_credit(
    credit_inputs._replace(rows=masked, rewards=rewards, group_ids=ids)
  )
  assert np.isfinite(advantages).all()
  assert not advantages[5].any()
  assert np.isfinite(list(metrics.values())).all()


def test_numbers_that_are_not_finite_make_the_advantages_nan_and_are_logged():
  credit_inputs = inputs()
  row, column = np.argwhere(credit_inputs.rows.loss_mask)[30]
  for bad in (np.nan, -np.inf):
    output = credit_inputs.outputs['prm'].copy()
    output[row, column] = bad
    advantages, _, metrics = estimate_credit(
      credit_inputs._replace(outputs={'prm': output})
    )
    assert np.isnan(advantages[credit_inputs.rows.loss_mask]).all()
    for name in ('calibration_error', 'reward', 'scale'):
      # A log-probability of −∞ is a probability of 0, whose error is defined.
      is_known = name == 'calibration_error' and np.isinf(bad)
      assert np.isnan(metrics[f'prm/scoring/{name}']) == (not is_known), name


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    ({'coefficient': 0.0}, r'prime\.coefficient must be above 0, got 0'),
    ({'coefficient': -0.05}, r'prime\.coefficient must be above 0, got -0\.05'),
    ({'form': 'verl'}, r"prime\.form must be one of .*, got 'verl'"),
    ({'reference': 'x'}, r"prime\.reference must be one of .*, got 'x'"),
    ({'update': 'x'}, r"prime\.update must be one of .*, got 'x'"),
    (
      {'process_coefficient': 0.0, 'outcome_coefficient': 0.0},
      r'prime\.outcome_coefficient must be above 0, got 0 and 0',
    ),
    ({'outcome_coefficient': -1.0}, r'prime\.outcome_coefficient must be at'),
  ],
)
def test_refuses_invalid_fields_of_prime(fields, sentence):
  with pytest.raises(ConfigError, match=sentence):
    check(make_config(**fields))


def test_refuses_networks_and_fields_that_do_not_belong_together():
  config = make_config()
  config.train.keep_reference = True
  valid_networks: dict[str, Any] = {'prm': process_reward_model(config)}
  estimator = prime_advantages(config)
  check_networks(valid_networks, estimator, config)
  updated_first = {'prm': process_reward_model(make_config(update='before'))}
  check_networks(updated_first, estimator, config)
  for networks, tested_estimator, sentence in (
    ({}, estimator, "reads the network 'prm', which must be among .* got none"),
    (
      valid_networks,
      None,
      "network 'prm' must be among those that its estimator",
    ),
    (
      {'prm': critic(config)},
      estimator,
      "the network 'prm' must have the output logprobs, .* reads, got values",
    ),
    (
      updated_first,
      dataclasses.replace(estimator, targets=None),
      "must have targets with the network 'prm', which is updated before it is"
      ' scored, got None',
    ),
  ):
    with pytest.raises(ConfigError, match=sentence):
      check_networks(networks, tested_estimator, config)
  config.train.keep_reference = False
  with pytest.raises(ConfigError, match=r'train\.keep_reference must be true'):
    check_networks(valid_networks, estimator, config)
  # The policy's own log-probabilities need none, and are scored.
  old_config = make_config(reference='old')
  assert old_config.scores_rollouts
  check_networks(valid_networks, prime_advantages(old_config), old_config)
  with pytest.raises(
    ConfigError,
    match=r'prime\.coefficient must be .* in a recipe without a process reward model,'
    r' got 0\.1; countdown:prime has one',
  ):
    check_networks({}, None, make_config(coefficient=0.1))
  old_config.critic.clip = 0.1
  with pytest.raises(
    ConfigError, match=r'critic\.clip must be .* in a recipe without a critic'
  ):
    check_networks(valid_networks, prime_advantages(old_config), old_config)
  with pytest.raises(ValueError, match=r"update must be one of .*, got 'now'"):
    dataclasses.replace(critic(config), update='now')


def test_a_frozen_reference_that_is_missing_is_refused():
  credit_inputs = inputs(rows=padded_batch())
  estimator = prime_advantages(make_config())
  with pytest.raises(
    ValueError, match=r'rows must have ref_logprobs .* got None'
  ):
    jax.eval_shape(estimator.estimate, (), credit_inputs)


def test_a_model_of_another_vocabulary_is_refused():
  config = make_config(initial=str(MODELS / 'qwen2'))
  with pytest.raises(
    ConfigError,
    match=r"network 'prm' must have the vocabulary of the policy, 16 tokens, got",
  ):
    network_model('prm', process_reward_model(config), POLICY)


def test_a_recipe_that_lacks_its_model_is_refused_before_anything_is_written(
  capsys, tmp_path
):
  recipe = process.RECIPES / 'toy_prime.py'
  with pytest.raises(SystemExit):
    main(
      ['train', f'--config={recipe}:without_model', f'--workdir={tmp_path}/run']
    )
  stderr = capsys.readouterr().err
  assert "must be among the recipe's networks, got none" in stderr
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.slow
@pytest.mark.parametrize(('name', 'step'), [('prime', 3), ('updated_first', 2)])
def test_a_run_logs_its_model_and_resumes_bit_for_bit(
  name, step, tmp_path, tmp_path_factory
):
  """The resumed run was killed between the updates of both networks."""
  finished = runs.finished_run(tmp_path_factory, f'toy_prime:{name}')
  lines = process.metric_lines(finished, 'train')
  assert len(lines) == 6
  for line in lines:
    assert line['skipped'] == line['prm/skipped'] == 0
    assert 0 < line['prm/loss'] < 2
    assert 0 <= line['prm/before_update/accuracy'] <= 1
    assert 0 <= line['prm/scoring/calibration_error'] <= 1
    passed = line['groups/passed']
    assert line['groups/filled'] == max(0, 8 - passed)
    assert line['groups/drawn'] == 8 * line['draws']
  # Before its first update the model equals its reference.
  assert lines[0]['prm/before_update/probability'] == pytest.approx(
    0.5, abs=1e-4
  )
  assert lines[0]['prm/loss'] == pytest.approx(np.log(2), abs=1e-4)
  assert (lines[0]['prm/scoring/scale'] < 1e-5) == (name == 'prime')

  workdir = tmp_path / 'run'
  killed = subprocess.run(
    process.arguments(f'toy_prime:{name}', workdir),
    env=process.ENVIRONMENT | {KILL_AT: str(step)},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert len(process.metric_lines(workdir, 'train')) == step
  process.train(f'toy_prime:{name}', workdir)
  saved, actual_arrays = arrays(workdir)
  expected, expected_arrays = arrays(finished)
  assert saved.position == expected.position == 6
  assert actual_arrays.keys() == expected_arrays.keys()
  names = [
    name for name in actual_arrays if name.startswith('state.networks.prm.')
  ]
  assert any('opt_state' in name for name in names)
  for name, leaf in expected_arrays.items():
    assert (
      np.asarray(actual_arrays[name]).tobytes() == np.asarray(leaf).tobytes()
    ), name
  runs.assert_same_metrics(workdir, finished)


@pytest.mark.parametrize(
  'fields',
  [
    {'coefficient': float('nan')},
    {'reference': 'x'},
    {'normalise': 0},
    {'form': 'x'},
  ],
)
def test_fields_that_were_set_in_python_are_checked(fields):
  (name,) = fields
  for build in (process_reward_model, prime_advantages):
    with pytest.raises(ConfigError, match=rf'prime\.{name} must'):
      build(make_config(**fields))
