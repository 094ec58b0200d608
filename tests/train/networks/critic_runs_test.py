# SPDX-License-Identifier: Apache-2.0
"""Initial parameters of a critic, its skipped updates, and runs with it."""

import dataclasses
import signal
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.fixtures import MODELS
from train import process, runs
from train.killing import KILL_AT
from train.networks.critic_test import make_config
from train.setup.resume_test import arrays
from train.updates import padded_batch

from covrl.config import ConfigError
from covrl.models import Lora, Policy, tiny
from covrl.parallel import sharding
from covrl.pretrained import load_pretrained
from covrl.train.health import UpdateHealth
from covrl.train.networks import critic
from covrl.train.networks.init import initial_params, network_model
from covrl.train.step import advance_step

POLICY = Policy(dataclasses.replace(tiny(16), tied_embeddings=False))


def init_critic(initial, policy, params, mesh):
  """Model and initial parameters of a critic of a policy."""
  config = make_config(initial=initial)
  model = network_model('critic', critic(config), policy)
  return model, initial_params(initial, model, policy, params, config, mesh, 0)


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_critic_starts_as_the_policy_or_at_random():
  mesh = sharding.make_mesh((2, 4))
  params = POLICY.init(jax.random.key(0), mesh)
  model, actual = init_critic('policy', POLICY, params, mesh)
  head = actual.pop('value_head')
  assert not any(leaf.any() for leaf in head.values())
  assert_same(actual, {name: params[name] for name in params if name != 'head'})
  # Copies, which the updates of the policy do not donate.
  pointers = [
    leaf.addressable_data(0).unsafe_buffer_pointer()
    for tree in (actual['layers'], params['layers'])
    for leaf in jax.tree.leaves(tree)
  ]
  assert len(set(pointers)) == len(pointers)
  _, other = init_critic('random', POLICY, params, mesh)
  assert np.abs(other['embedding'] - params['embedding']).max() > 0.01
  assert jax.tree.structure(other) == jax.tree.structure(
    model.abstract_params()
  )


def test_a_critic_of_an_adapted_policy_has_its_merged_parameters():
  lora = Lora(rank=2, alpha=4.0)
  policy = Policy(
    dataclasses.replace(
      tiny(16), lora=lora, dtype='bfloat16', param_dtype='bfloat16'
    )
  )
  mesh = sharding.make_mesh((8,))
  params = policy.init(jax.random.key(0), mesh)
  model, actual = init_critic('policy', policy, params, mesh)
  assert model.config.lora is None
  assert model.config.param_dtype == 'float32'
  assert {leaf.dtype for leaf in jax.tree.leaves(actual)} == {
    jnp.dtype('float32')
  }
  del actual['value_head']
  merged = policy.merge(params)
  assert_same(
    actual, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), merged)
  )


def test_a_critic_starts_as_a_pretrained_model():
  mesh = sharding.make_mesh((8,))
  directory = str(MODELS / 'qwen2')
  policy, params = load_pretrained(directory, mesh, 'float32')
  model, actual = init_critic(directory, policy, params, mesh)
  del actual['value_head']
  assert_same(actual, {name: params[name] for name in params if name != 'head'})
  assert model.config.value_head
  with pytest.raises(
    ConfigError,
    match=rf"'critic' must have the vocabulary of the policy, 16 tokens, got"
    rf' {policy.config.vocab_size} in ',
  ):
    init_critic(directory, POLICY, None, mesh)


def test_a_fixed_policy_has_entropy_and_tokens_and_no_loss():
  rows = padded_batch()
  step, metrics = jax.device_get(jax.jit(advance_step)(jnp.int32(4), rows))
  assert step == 5
  mask = rows.loss_mask
  assert metrics['tokens'] == mask.sum()
  assert metrics['entropy'] == pytest.approx(
    rows.old_entropy[mask].mean(), rel=1e-5
  )
  assert metrics['skipped'] == 0
  assert np.isnan(metrics['loss'])


def test_health_counts_updates_that_the_critic_skips():
  health, warnings = UpdateHealth(), []
  metrics = {
    'tokens': 3.0,
    'skipped': 0.0,
    'loss': 0.1,
    'gradient_norm': 1.0,
    'critic/skipped': 1.0,
    'critic/loss': np.nan,
    'critic/gradient_norm': np.nan,
  }
  health.count(metrics, 'update 2 of iteration 1', warnings.append)
  assert warnings == [
    'update 2 of iteration 1 is skipped by the critic: its loss is nan'
  ]
  assert (health.skipped, health.skipped_in_a_row) == (1, 1)
  health.count(metrics | {'critic/skipped': 0.0}, 'the next', warnings.append)
  assert (health.skipped, health.skipped_in_a_row) == (1, 0)


@pytest.fixture(scope='session')
def finished_run(tmp_path_factory):
  return runs.finished_run(tmp_path_factory, 'toy_ppo:ppo')


def test_a_run_logs_its_critic_and_keeps_the_policy_fixed_in_the_warm_up(
  finished_run,
):
  lines = process.metric_lines(finished_run, 'train')
  assert len(lines) == 6
  assert ['policy_fixed' in line for line in lines] == [True] * 3 + [False] * 3
  for line in lines:
    assert line['skipped'] == line['critic/skipped'] == 0
    assert line['critic/loss'] > 0
    assert line['critic/explained_variance'] < 1
    assert 0 <= line['critic/clip_fraction'] <= 1
    assert line['seconds'] >= line['time/credit'] or line['step'] % 2 == 0
  # The policy is the reference until its first update.
  assert [line['kl_to_reference'] == 0 for line in lines[::2]] == [
    True,
    True,
    False,
  ]
  assert lines[3]['log_ratio_abs'] == 0
  assert lines[5]['log_ratio_abs'] > 0
  coefficients = [line['kl_coefficient'] for line in lines[::2]]
  np.testing.assert_allclose(coefficients, [0.05, 0.045, 0.0405], rtol=1e-5)


@pytest.mark.slow
def test_a_run_killed_between_the_updates_of_both_networks_resumes_bit_for_bit(
  finished_run, tmp_path
):
  workdir = tmp_path / 'run'
  killed = subprocess.run(
    process.arguments('toy_ppo:ppo', workdir),
    env=process.ENVIRONMENT | {KILL_AT: '4'},
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert killed.returncode == -signal.SIGKILL, killed.stderr
  assert len(process.metric_lines(workdir, 'train')) == 4
  process.train('toy_ppo:ppo', workdir)
  saved, actual_arrays = arrays(workdir)
  expected, expected_arrays = arrays(finished_run)
  assert saved.position == expected.position == 6
  assert actual_arrays.keys() == expected_arrays.keys()
  names = [
    name for name in actual_arrays if name.startswith('state.networks.critic.')
  ]
  assert any('opt_state' in name for name in names)
  for name, leaf in expected_arrays.items():
    assert (
      np.asarray(actual_arrays[name]).tobytes() == np.asarray(leaf).tobytes()
    ), name
  runs.assert_same_metrics(workdir, finished_run)
