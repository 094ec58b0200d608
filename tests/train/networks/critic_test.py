# SPDX-License-Identifier: Apache-2.0
"""Advantages of a critic, and checks of its fields."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from train import process
from train.updates import SEQUENCES, WIDTH, padded_batch

from covrl.cli import main
from covrl.config import Config, ConfigError, check
from covrl.train.networks import CreditInputs, critic, critic_advantages
from covrl.train.networks.checks import check_networks

UPDATES = 4


def make_config(**fields):
  """Config of four updates, with these fields of the critic."""
  config = Config()
  config.rollout.prompts_per_iteration = SEQUENCES // 4
  config.rollout.responses_per_prompt = 4
  config.train.sequences_per_update = SEQUENCES // UPDATES
  for name, value in fields.items():
    setattr(config.critic, name, value)
  return config


def inputs(**changes: Any) -> Any:
  """Rows of four updates with rewards, values and a reference policy."""
  rng = np.random.default_rng(4)
  old, ref, values = rng.normal(size=(3, SEQUENCES, WIDTH)).astype(np.float32)
  rows = dataclasses.replace(padded_batch(), old_logprobs=old, ref_logprobs=ref)
  fields: dict[str, Any] = {
    'rows': rows,
    'rewards': (rng.random(SEQUENCES) < 0.4).astype(np.float32),
    'group_ids': np.arange(SEQUENCES, dtype=np.int32) // 4,
    'update_ids': rng.permutation(SEQUENCES).astype(np.int32) % UPDATES,
    'outputs': {'critic': values},
  }
  return CreditInputs(**fields | changes)


def estimate_credit(credit_inputs, **fields):
  """Credit and next state of an estimate, as NumPy arrays."""
  estimator = critic_advantages(make_config(**fields))
  run = jax.jit(estimator.estimate)
  return jax.device_get(run(estimator.init(), credit_inputs))


def test_advantages_are_whitened_over_each_update_and_returns_are_not():
  credit_inputs = inputs()
  mask, values = credit_inputs.rows.loss_mask, credit_inputs.outputs['critic']
  (advantages, targets, metrics), state = estimate_credit(credit_inputs)
  # With γ = λ = 1 the return is the reward, at every token.
  returns = np.where(mask, credit_inputs.rewards[:, None], 0)
  np.testing.assert_allclose(targets['returns'], returns, atol=1e-5)
  np.testing.assert_array_equal(
    targets['old_values'], np.where(mask, values, 0)
  )
  expected = np.zeros_like(returns)
  for update in range(UPDATES):
    update_mask = mask & (credit_inputs.update_ids == update)[:, None]
    plain = (returns - values)[update_mask]
    expected[update_mask] = (plain - plain.mean()) / plain.std(ddof=1)
  np.testing.assert_allclose(advantages, expected, atol=1e-4)
  mean = (returns - values)[mask].mean()
  assert metrics['advantage'] == pytest.approx(mean, rel=1e-4)
  assert state == {'kl_coefficient': 0.0}


def test_penalties_clipped_rewards_and_coefficients_match_their_formulas():
  credit_inputs = inputs()
  mask, rows = credit_inputs.rows.loss_mask, credit_inputs.rows
  (advantages, targets, metrics), state = estimate_credit(
    credit_inputs._replace(rewards=credit_inputs.rewards * 20),
    whiten=False,
    reward_clip=5.0,
    kl='k2',
    kl_coefficient=0.1,
    kl_target=0.5,
    kl_horizon=1000.0,
  )
  penalties = np.where(mask, (rows.old_logprobs - rows.ref_logprobs) ** 2, 0)
  penalties_to_go = np.cumsum(penalties[:, ::-1] / 2, axis=1)[:, ::-1]
  returns = np.where(
    mask, 5 * credit_inputs.rewards[:, None] - 0.1 * penalties_to_go, 0
  )
  np.testing.assert_allclose(targets['returns'], returns, atol=1e-4)
  expected_advantages = np.where(
    mask, returns - credit_inputs.outputs['critic'], 0
  )
  np.testing.assert_allclose(advantages, expected_advantages, atol=1e-4)
  expected = (penalties[mask] / 2).mean()
  assert metrics['kl_to_reference'] == pytest.approx(expected, rel=1e-4)
  assert metrics['clipped_rewards'] == credit_inputs.rewards.mean()
  # The divergence is above its target by more than 20 %.
  expected_coefficient = 0.1 * (1 + 0.2 * SEQUENCES / 1000)
  assert state['kl_coefficient'] == pytest.approx(
    expected_coefficient, rel=1e-5
  )


def test_a_penalty_without_a_reference_is_refused():
  credit_inputs = inputs()
  rows = dataclasses.replace(credit_inputs.rows, ref_logprobs=None)
  with pytest.raises(ValueError, match='rows must have ref_logprobs'):
    estimate_credit(credit_inputs._replace(rows=rows), kl_coefficient=0.5)


def test_length_adaptive_decay_changes_advantages_and_not_returns():
  credit_inputs = inputs()
  mask = credit_inputs.rows.loss_mask
  lengths = mask.sum(axis=1)
  (advantages, targets, _), _ = estimate_credit(
    credit_inputs, whiten=False, length_decay=0.5
  )
  returns = np.where(mask, credit_inputs.rewards[:, None], 0)
  np.testing.assert_allclose(targets['returns'], returns, atol=1e-5)
  # λ = 0 for up to two tokens: the difference of neighbouring values.
  row = int(np.argwhere(lengths == 2)[0, 0])
  first, last = np.flatnonzero(mask[row])
  values = credit_inputs.outputs['critic'][row]
  expected = values[last] - values[first]
  assert advantages[row, first] == pytest.approx(expected, rel=1e-4)


def test_equal_rewards_and_values_give_advantages_of_zero():
  credit_inputs = inputs(
    rewards=np.ones(SEQUENCES, np.float32),
    outputs={'critic': np.zeros((SEQUENCES, WIDTH), np.float32)},
  )
  (advantages, targets, metrics), _ = estimate_credit(credit_inputs)
  assert not advantages.any()
  assert (targets['returns'] == credit_inputs.rows.loss_mask).all()
  assert metrics['advantage'] == 1


def test_an_empty_batch_has_no_advantages_and_no_metrics():
  rows = padded_batch()
  empty = np.zeros_like(rows.loss_mask)
  credit_inputs = inputs(
    rows=dataclasses.replace(rows, loss_mask=empty),
    rewards=np.full(SEQUENCES, np.nan, np.float32),
  )
  (advantages, targets, metrics), _ = estimate_credit(credit_inputs)
  assert not advantages.any()
  assert not targets['returns'].any()
  assert np.isnan(metrics['advantage'])


def test_nan_values_make_their_own_update_nan_and_no_other():
  values = np.array(inputs().outputs['critic'])
  row, column = np.argwhere(inputs().rows.loss_mask)[30]
  values[row, column] = np.nan
  credit_inputs = inputs(outputs={'critic': values})
  (advantages, _, metrics), _ = estimate_credit(credit_inputs)
  mask = credit_inputs.rows.loss_mask
  is_affected = (
    mask & (credit_inputs.update_ids == credit_inputs.update_ids[row])[:, None]
  )
  assert np.isnan(advantages[is_affected]).all()
  assert np.isfinite(advantages[~is_affected]).all()
  assert np.isnan(metrics['advantage'])


@pytest.mark.parametrize(
  ('fields', 'sentence'),
  [
    ({'discount': 1.5}, r'critic\.discount must lie in \[0, 1\], got 1\.5'),
    ({'trace_decay': -0.1}, r'critic\.trace_decay must lie in \[0, 1\]'),
    (
      {'critic_trace_decay': 2.0},
      r'critic\.critic_trace_decay must lie in \[0, 1\], got 2',
    ),
    ({'clip': -1.0}, r'critic\.clip must be at least 0, got -1'),
    (
      {'kl_coefficient': 0.1},
      r'train\.keep_reference must be true with critic\.kl_coefficient, .* 0\.1',
    ),
    (
      {'kl_target': 0.1},
      r'critic\.kl_coefficient must be above 0 with critic\.kl_target',
    ),
    (
      {'length_decay': 0.05, 'trace_decay': 0.95},
      r'critic\.trace_decay must be 1 with critic\.length_decay',
    ),
    ({'warm_up': 10**6}, r'critic\.warm_up must be at most 120, the updates'),
    ({'kl': 'k4'}, r"critic\.kl must be one of .*, got 'k4'"),
  ],
)
def test_refuses_invalid_fields_of_the_critic(fields, sentence):
  with pytest.raises(ConfigError, match=sentence):
    check(make_config(**fields))


def test_refuses_a_critic_without_an_estimator_and_the_reverse():
  config = make_config()
  valid_networks: dict[str, Any] = {'critic': critic(config)}
  estimator = critic_advantages(config)
  check_networks(valid_networks, estimator, config)
  check_networks({}, None, config)
  for networks, tested_estimator, sentence in (
    (
      {},
      estimator,
      "reads the network 'critic', which must be among .*, got none",
    ),
    (
      valid_networks,
      None,
      "network 'critic' must be among those that its estimator.*got none",
    ),
    (
      {'a/b': valid_networks['critic']},
      None,
      "must be an identifier, got 'a/b'",
    ),
    ({'critic': 1}, estimator, r"must map names to Network objects, got {'"),
    (valid_networks, 'gae', "must be an Estimator or None, got 'gae'"),
  ):
    with pytest.raises(ConfigError, match=sentence):
      check_networks(networks, tested_estimator, config)
  with pytest.raises(
    ConfigError,
    match=r'critic\.warm_up must be .* in a recipe without a critic, got 5',
  ):
    check_networks({}, None, make_config(warm_up=5))
  penalised = make_config(kl_coefficient=0.1)
  with pytest.raises(ConfigError, match=r'train\.keep_reference must be true'):
    check_networks(valid_networks, critic_advantages(penalised), penalised)


def test_a_recipe_that_lacks_its_critic_is_refused_before_anything_is_written(
  capsys, tmp_path
):
  recipe = process.RECIPES / 'toy_ppo.py'
  with pytest.raises(SystemExit):
    main(['train', f'--config={recipe}:no_critic', f'--workdir={tmp_path}/run'])
  stderr = capsys.readouterr().err
  assert "must be among the recipe's networks, got none" in stderr
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'update_ids',
  [
    np.full(SEQUENCES, 99, np.int32),
    np.full(SEQUENCES, -1, np.int32),
    np.zeros(1, np.int32),
    np.zeros(SEQUENCES, np.float32),
  ],
)
def test_refuses_ids_of_updates_that_the_iteration_does_not_have(update_ids):
  estimator = critic_advantages(make_config())
  with pytest.raises((TypeError, ValueError), match='update_ids must'):
    estimator.estimate(estimator.init(), inputs(update_ids=update_ids))


def test_sequences_of_no_update_have_no_advantage():
  credit_inputs = inputs(update_ids=np.full(SEQUENCES, 99, np.int32))
  (advantages, _, _), _ = estimate_credit(credit_inputs)
  mask = credit_inputs.rows.loss_mask
  np.testing.assert_array_equal(np.isnan(advantages), mask)


@pytest.mark.parametrize(
  'fields',
  [
    {'clip': -1.0},
    {'length_decay': -1.0},
    {'kl_target': -1.0},
    {'kl_coefficient': float('nan')},
    {'kl': 'k9'},
    {'whiten': 'no'},
  ],
)
def test_fields_that_were_set_in_python_are_checked(fields):
  (name,) = fields
  for build in (critic, critic_advantages):
    with pytest.raises(ConfigError, match=rf'critic\.{name} must'):
      build(make_config(**fields))
