# SPDX-License-Identifier: Apache-2.0
"""Diagnostics at their interval; moments of token distributions only where read."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_compilation import QUICK
from train.updates import CLIPPED, POLICY, padded_batch, parameters, score

import covrl
from covrl.parallel import sharding
from covrl.statistics import token_stats
from covrl.train import forward
from covrl.train.metrics import without_diagnostics
from covrl.train.step import StepSettings, make_train_step
from covrl.types import TrainState, UpdateMeasurements

TX = optax.adam(1e-2)
DIAGNOSTICS = (
  *(f'covariance_top/{share}' for share in ('0.02', '0.2', '0.5')),
  *(f'covariance_quantile/{share}' for share in ('0.01', '0.5', '0.99')),
  # The scores of tokens that the prediction averages; see `covrl.entropy`.
  *(
    f'predicted_entropy_change/{name}'
    for name in ('batch', 'state', 'definition', 'exact', 'signal')
  ),
)


def initial_state(token_tx):
  return TrainState(
    trainable=parameters(),
    frozen={},
    opt_state=TX.init(parameters()),
    token_state=token_tx.init(covrl.TokenStats.template()),
    step=jnp.zeros((), jnp.int32),
    last_update=UpdateMeasurements.initial(),
  )


@functools.cache
def updates(interval, *, shape=(1,), micro_batches=1, reads_moments=False):
  """Three updates; the last state, and each update's metrics."""
  token_tx = optax.identity()
  settings = StepSettings(
    micro_batches=micro_batches,
    reads_moments=reads_moments,
    diagnostics_every=interval,
  )
  step = make_train_step(POLICY, CLIPPED, token_tx, TX, settings)
  mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
  run = jax.jit(step, compiler_options=QUICK)
  state, metrics_by_update = initial_state(token_tx), []
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    state = jax.device_put(state, sharding.replicated(mesh))
    rows = sharding.shard_batch(padded_batch(), mesh)
    for _ in range(3):
      state, metrics = run(state, rows, np.asarray(False), jax.random.key(0))
      metrics_by_update.append(jax.device_get(metrics))
  return jax.device_get(state), metrics_by_update


@pytest.mark.parametrize(
  ('shape', 'micro_batches'), [((1,), 1), ((1,), 4), ((8,), 2)]
)
def test_diagnostics_are_computed_at_their_interval(shape, micro_batches):
  expected_state, expected = updates(1)
  state, metrics_by_update = updates(
    2, shape=shape, micro_batches=micro_batches
  )
  for index, (metrics, expected_metrics) in enumerate(
    zip(metrics_by_update, expected, strict=True)
  ):
    assert set(metrics) == set(expected_metrics) >= set(DIAGNOSTICS)
    for name in expected_metrics:
      if name in without_diagnostics(expected_metrics) or index != 1:
        np.testing.assert_allclose(
          metrics[name],
          expected_metrics[name],
          rtol=1e-4,
          atol=1e-6,
          err_msg=name,
        )
      else:
        assert name.split('/')[0] in {
          'covariance_top',
          'covariance_quantile',
          'predicted_entropy_change',
        }
        assert np.isnan(metrics[name]), name
  # The finite ones, so that no comparison above is of NaN with NaN.
  assert all(np.isfinite(expected[0][name]) for name in DIAGNOSTICS)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    state.trainable,
    expected_state.trainable,
  )


def test_an_interval_of_0_leaves_diagnostics_out():
  expected, metrics = updates(1)[1][0], updates(0)[1][0]
  assert set(metrics) == set(without_diagnostics(expected))
  assert not set(metrics) & set(DIAGNOSTICS)


def test_parameters_do_not_depend_on_the_interval():
  expected = updates(1)[0].trainable
  for interval in (0, 2):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      updates(interval)[0].trainable,
      expected,
    )


@pytest.mark.parametrize(
  ('interval', 'reads_moments', 'computes_moments'),
  [
    (1, False, [True]),
    (0, False, [False]),
    (2, False, [False, True]),
    (0, True, [True]),
    (2, True, [True]),
  ],
)
def test_moments_are_computed_only_where_they_are_read(
  interval, reads_moments, computes_moments
):
  token_tx, moments_options = optax.identity(), []

  def record_call(*arrays, **options):
    moments_options.append(options.get('moments', False))
    return token_stats(*arrays, **options)

  settings = StepSettings(
    reads_moments=reads_moments, diagnostics_every=interval
  )
  step = make_train_step(POLICY, CLIPPED, token_tx, TX, settings)
  with mock.patch.object(forward, 'token_stats', record_call):
    jax.eval_shape(
      step,
      initial_state(token_tx),
      padded_batch(),
      np.asarray(False),
      jax.random.key(0),
    )
  # The first trace in a process may run twice.
  assert list(dict.fromkeys(moments_options)) == computes_moments


def test_a_traced_moments_flag_changes_neither_value_nor_gradient():
  @functools.partial(jax.jit, compiler_options=QUICK)
  def entropy_and_moments(params, rows, moments):
    def run(params):
      output = forward.forward(POLICY, params, rows, 0.8, 0, moments=moments)
      return jnp.sum(output.stats.entropy), output.moments

    return jax.value_and_grad(run, has_aux=True)(params)

  rows = jax.tree.map(jnp.asarray, padded_batch())
  (value, moments), gradient = entropy_and_moments(parameters(), rows, True)
  (value_without, moments_without), gradient_without = entropy_and_moments(
    parameters(), rows, False
  )
  assert value == value_without
  jax.tree.map(np.testing.assert_array_equal, gradient, gradient_without)
  assert np.isfinite(moments.square).all()
  assert np.isnan(moments_without.square).all()
  expected = score(parameters(), padded_batch())[1]
  np.testing.assert_allclose(moments.square, expected.square, rtol=1e-5)
