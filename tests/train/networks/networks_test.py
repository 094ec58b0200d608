# SPDX-License-Identifier: Apache-2.0
"""Updates of critics and process reward models: formulas, invariances, NaN and infinite values."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_compilation import QUICK
from train.updates import (
  POLICY,
  SEQUENCES,
  WIDTH,
  assert_same_bits,
  padded_batch,
  padded_batch_stats,
  parameters,
)

from covrl.config import Config
from covrl.data.packing import pack_rows
from covrl.models import Policy, add_value_head, transformer, value_config
from covrl.parallel import sharding
from covrl.train.networks import critic, process_reward_model
from covrl.train.networks.network import network_output
from covrl.train.networks.step import make_network_step
from covrl.train.state_sharding import abstract_opt_state, shardings
from covrl.train.step import StepSettings
from covrl.types import NetworkState

CRITIC = Policy(value_config(POLICY.config))
# The gradient itself, then Adam with an ε far above rounding.
TX = optax.chain(optax.trace(decay=0.0), optax.adam(1e-2, eps=1e-4))


def with_targets(batch):
  """Rows with targets for a critic and outcomes for a reward model."""
  rng = np.random.default_rng(5)
  old, returns = rng.normal(size=(2, *batch.tokens.shape)).astype(np.float32)
  labels = np.repeat(rng.random((SEQUENCES, 1)) < 0.5, WIDTH, axis=1)
  targets = {'old_values': old, 'returns': returns, 'labels': labels}
  return dataclasses.replace(
    batch, network_targets={k: np.float32(v) for k, v in targets.items()}
  )


def critic_network():
  return critic(Config(), TX)


def reward_model():
  config = Config()
  # The rows have no log-probabilities of a reference policy.
  config.prime.reference = 'old'
  return process_reward_model(config, TX)


NETWORKS = {
  'critic': (critic_network, CRITIC),
  'reward_model': (reward_model, POLICY),
}


@functools.cache
def initial_params(kind):
  """Parameters of a network, with a head that is not 0."""
  params = parameters()
  if kind == 'critic':
    params = add_value_head(params, CRITIC.config)
    weight = np.random.default_rng(2).normal(size=32).astype(np.float32)
    params['value_head']['weight'] = jnp.asarray(weight)
  return jax.tree.map(np.asarray, params)


@functools.cache
def program(kind, shape, micro_batches):
  """A network's compiled update, its mesh, and the shardings of its state."""
  make_network, model = NETWORKS[kind]
  network, mesh = make_network(), sharding.make_mesh(shape)
  settings = StepSettings(temperature=0.8, micro_batches=micro_batches)
  params = model.abstract_params(mesh)
  opt_state = abstract_opt_state(network.tx, params, mesh)
  state_shardings = shardings(NetworkState(params=params, opt_state=opt_state))
  run = jax.jit(
    make_network_step(network, model, settings),
    out_shardings=(state_shardings, sharding.replicated(mesh)),
    compiler_options=QUICK,
  )
  return run, mesh, state_shardings


def update(kind, batch, shape=(8,), micro_batches=1, params=None):
  """The state before and after one update, and its metrics."""
  run, mesh, state_shardings = program(kind, shape, micro_batches)
  params = initial_params(kind) if params is None else params
  state = NetworkState(params=params, opt_state=TX.init(params))
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    updated = run(
      jax.device_put(state, state_shardings), sharding.shard_batch(batch, mesh)
    )
  return state, *jax.device_get(updated)


@pytest.mark.parametrize('kind', NETWORKS)
def test_updates_of_networks_do_not_depend_on_meshes_micro_batches_or_packing(
  kind,
):
  batch = with_targets(padded_batch())
  _, state, metrics = update(kind, batch)
  packed = pack_rows(batch, length=WIDTH, count=SEQUENCES // 2)
  for rows, shape, micro_batches in (
    (batch, (2, 2, 2), 4),
    (packed, (2, 1, 1, 1, 4), 1),
  ):
    _, other_state, other_metrics = update(kind, rows, shape, micro_batches)
    assert_close(other_state.params, state.params, 1e-4)
    assert_close(other_metrics, metrics, 1e-4)
  assert metrics['skipped'] == 0
  change = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), state.params, initial_params(kind)
  )
  assert min(jax.tree.leaves(change)) > 1e-3


def test_critic_metrics_equal_those_of_numpy():
  batch = with_targets(padded_batch())
  mask, targets = batch.loss_mask, batch.network_targets
  _, _, metrics = update('critic', batch)
  values = np.asarray(
    jax.jit(
      lambda params, rows: network_output('values', CRITIC, params, rows, 1, 0)
    )(initial_params('critic'), padded_batch())
  )
  clipped = np.clip(
    values, targets['old_values'] - 0.5, targets['old_values'] + 0.5
  )
  losses = [(x - targets['returns']) ** 2 / 2 for x in (values, clipped)]
  expected = {
    'loss': np.maximum(*losses)[mask].mean(),
    'clip_fraction': (losses[1] > losses[0])[mask].mean(),
    'explained_variance': 1
    - np.var((targets['returns'] - values)[mask])
    / np.var(targets['returns'][mask]),
    'value': values[mask].mean(),
    'return': targets['returns'][mask].mean(),
  }
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_reward_model_metrics_equal_those_of_numpy():
  batch = with_targets(padded_batch())
  mask, labels = batch.loss_mask, batch.network_targets['labels']
  _, _, metrics = update('reward_model', batch)
  logprobs = padded_batch_stats(initial_params('reward_model')).logprobs
  log_ratio = np.where(mask, logprobs - batch.old_logprobs, 0)
  scores, is_right = 0.05 * log_ratio.sum(axis=1), labels.max(axis=1) > 0
  probabilities = 1 / (1 + np.exp(-scores))
  expected = {
    'loss': -np.log(
      np.where(is_right, probabilities, 1 - probabilities)
    ).mean(),
    'before_update/accuracy': ((scores > 0) == is_right).mean(),
    'before_update/probability': probabilities.mean(),
    'before_update/label': is_right.mean(),
  }
  for name, value in expected.items():
    assert metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_reward_model_with_nan_parameters_skips_its_update():
  params: Any = jax.tree.map(np.array, initial_params('reward_model'))
  params['embedding'][3] = np.nan
  before, after, metrics = update(
    'reward_model', with_targets(padded_batch()), params=params
  )
  assert metrics['skipped'] == 1
  for name in ('loss', 'before_update/accuracy', 'before_update/probability'):
    assert np.isnan(metrics[name]), name
  assert_same_bits(after, before)


def test_a_reward_model_with_nan_labels_skips_its_update():
  batch = with_targets(padded_batch())
  row, column = np.argwhere(batch.loss_mask)[7]
  batch.network_targets['labels'][row, column] = np.nan
  before, after, metrics = update('reward_model', batch)
  assert metrics['skipped'] == 1
  for name in ('loss', 'before_update/accuracy', 'before_update/label'):
    assert np.isnan(metrics[name]), name
  assert_same_bits(after, before)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_critic_with_targets_that_are_not_finite_skips_its_update(bad):
  batch = with_targets(padded_batch())
  row, column = np.argwhere(batch.loss_mask)[7]
  batch.network_targets['returns'][row, column] = bad
  before, after, metrics = update('critic', batch)
  assert metrics['skipped'] == 1
  assert not np.isfinite(metrics['loss'])
  assert np.isnan(metrics['explained_variance'])
  assert_same_bits(after, before)


def test_a_critic_with_nan_parameters_skips_its_update():
  params: Any = jax.tree.map(np.array, initial_params('critic'))
  params['value_head']['bias'][...] = np.nan
  before, after, metrics = update(
    'critic', with_targets(padded_batch()), params=params
  )
  assert metrics['skipped'] == 1
  assert np.isnan(metrics['value'])
  assert_same_bits(after, before)


def test_a_batch_without_tokens_changes_nothing_and_has_no_metrics():
  batch = with_targets(padded_batch())
  empty = np.zeros_like(batch.loss_mask)
  before, after, metrics = update(
    'critic', dataclasses.replace(batch, loss_mask=empty)
  )
  assert metrics.pop('skipped') == 0
  assert all(np.isnan(value) for value in metrics.values()), metrics
  assert_same_bits(after, before)


@pytest.mark.parametrize('first_column', [0, 3])
def test_a_critic_uses_a_causal_mask_alone_for_rows_of_one_sequence(
  first_column, monkeypatch
):
  """A mask of segments makes cuDNN compute blocks that a causal mask alone skips."""
  configs = []

  def attends_without_mask(config):
    configs.append(config)
    return False

  monkeypatch.setattr(transformer, 'attends_without_mask', attends_without_mask)
  jax.eval_shape(
    lambda params, rows: network_output(
      'values', CRITIC, params, rows, 1.0, first_column
    ),
    CRITIC.abstract_params(),
    padded_batch(),
  )
  assert bool(configs) == (first_column > 0)


@pytest.mark.usefixtures('no_annotation_checks')
def test_refuses_unknown_outputs_and_an_empty_initial_model():
  network = critic_network()
  for changes in (
    {'weights': 'sum'},
    {'weights': None},
    {'loss': None},
    {'loss': 'x'},
    {'metrics': 3},
    {'initial': ' '},
    {'initial': 5},
    {'initial': True},
  ):
    with pytest.raises(ValueError, match=f'{next(iter(changes))} must be'):
      dataclasses.replace(network, **changes)
  with pytest.raises(
    ValueError, match=r"output must be one of .*, got 'logits'"
  ):
    dataclasses.replace(network, output='logits')
  with pytest.raises(ValueError, match=r"initial must be .*, got ''"):
    dataclasses.replace(network, initial='')


@pytest.mark.parametrize(
  ('update', 'sentence'),
  [
    (
      lambda g: jax.tree.map(jnp.mean, g),
      r'of the shape of .* got float32 \(\)',
    ),
    (lambda g: jax.tree.map(lambda x: x[None], g), 'of the shape of their par'),
    (lambda g: jax.tree.map(jnp.int32, g), 'must be floats .* got int32'),
    (lambda g: jax.tree.map(lambda x: None, g), 'one update per parameter'),
    (lambda g: {}, 'one update per parameter'),
  ],
)
def test_updates_that_would_be_broadcast_are_refused(update, sentence):
  tx = optax.stateless(lambda gradients, params: update(gradients))
  network = dataclasses.replace(critic_network(), tx=tx)
  step = make_network_step(network, CRITIC, StepSettings(micro_batches=1))
  params = initial_params('critic')
  with pytest.raises(TypeError, match=sentence):
    jax.eval_shape(
      step,
      NetworkState(params=params, opt_state=tx.init(params)),
      with_targets(padded_batch()),
    )


def test_optimiser_states_of_other_parameters_are_refused():
  step = make_network_step(
    critic_network(), CRITIC, StepSettings(micro_batches=1)
  )
  params = initial_params('critic')
  other_opt_state = jax.tree.map(
    lambda x: x[:1] if x.ndim else x, TX.init(params)
  )
  with pytest.raises(TypeError, match='must keep the form of its state'):
    jax.eval_shape(
      step,
      NetworkState(params=params, opt_state=other_opt_state),
      with_targets(padded_batch()),
    )


def assert_close(actual, expected, tolerance):
  for actual_leaf, expected_leaf in zip(
    *map(jax.tree.leaves, (actual, expected)), strict=True
  ):
    np.testing.assert_allclose(
      actual_leaf, expected_leaf, rtol=tolerance, atol=tolerance
    )
