# SPDX-License-Identifier: Apache-2.0
"""Diagnostics of updates at their interval, and moments only where they are read."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fast_compilation import QUICK
from train.updates import CLIPPED, POLICY, padded, parameters, score

import covrl
from covrl.parallel import sharding
from covrl.statistics import token_stats
from covrl.train import forward
from covrl.train.metrics import without_diagnostics
from covrl.train.step import StepSettings, make_train_step
from covrl.types import Measurements, TrainState

TX = optax.adam(1e-2)
DIAGNOSTICS = (
  *(f'covariance_top/{share}' for share in ('0.02', '0.2', '0.5')),
  *(f'covariance_quantile/{share}' for share in ('0.01', '0.5', '0.99')),
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
    measured=Measurements.initial(),
  )


@functools.cache
def updates(every, *, shape=(1,), micro_batches=1, reads_moments=False):
  """Three updates; the last state, and each update's metrics."""
  token_tx = optax.identity()
  settings = StepSettings(
    micro_batches=micro_batches,
    reads_moments=reads_moments,
    diagnostics_every=every,
  )
  step = make_train_step(POLICY, CLIPPED, token_tx, TX, settings)
  mesh = sharding.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
  run = jax.jit(step, compiler_options=QUICK)
  state, metrics_by_update = initial_state(token_tx), []
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    state = jax.device_put(state, sharding.replicated(mesh))
    rows = sharding.shard_batch(padded(), mesh)
    for _ in range(3):
      state, found = run(state, rows, np.asarray(False), jax.random.key(0))
      metrics_by_update.append(jax.device_get(found))
  return jax.device_get(state), metrics_by_update


@pytest.mark.parametrize(
  ('shape', 'micro_batches'), [((1,), 1), ((1,), 4), ((8,), 2)]
)
def test_diagnostics_are_computed_at_their_interval(shape, micro_batches):
  expected_state, expected = updates(1)
  state, metrics_by_update = updates(
    2, shape=shape, micro_batches=micro_batches
  )
  for number, (found, reference) in enumerate(
    zip(metrics_by_update, expected, strict=True)
  ):
    assert set(found) == set(reference) >= set(DIAGNOSTICS)
    for name in reference:
      if name in without_diagnostics(reference) or number != 1:
        np.testing.assert_allclose(
          found[name], reference[name], rtol=1e-4, atol=1e-6, err_msg=name
        )
      else:
        assert name.split('/')[0] in {
          'covariance_top',
          'covariance_quantile',
          'predicted_entropy_change',
        }
        assert np.isnan(found[name]), name
  # The finite ones, so that no comparison above is of NaN with NaN.
  assert all(np.isfinite(expected[0][name]) for name in DIAGNOSTICS)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    state.trainable,
    expected_state.trainable,
  )


def test_an_interval_of_0_leaves_diagnostics_out():
  expected, found = updates(1)[1][0], updates(0)[1][0]
  assert set(found) == set(without_diagnostics(expected))
  assert not set(found) & set(DIAGNOSTICS)


def test_parameters_do_not_depend_on_the_interval():
  expected = updates(1)[0].trainable
  for every in (0, 2):
    jax.tree.map(
      functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
      updates(every)[0].trainable,
      expected,
    )


@pytest.mark.parametrize(
  ('every', 'reads_moments', 'computes_moments'),
  [
    (1, False, [True]),
    (0, False, [False]),
    (2, False, [False, True]),
    (0, True, [True]),
    (2, True, [True]),
  ],
)
def test_moments_are_computed_only_where_they_are_read(
  every, reads_moments, computes_moments
):
  token_tx, seen = optax.identity(), []

  def recorded(*arrays, **options):
    seen.append(options.get('moments', False))
    return token_stats(*arrays, **options)

  settings = StepSettings(reads_moments=reads_moments, diagnostics_every=every)
  step = make_train_step(POLICY, CLIPPED, token_tx, TX, settings)
  with mock.patch.object(forward, 'token_stats', recorded):
    jax.eval_shape(
      step,
      initial_state(token_tx),
      padded(),
      np.asarray(False),
      jax.random.key(0),
    )
  # The first trace in a process may run twice.
  assert list(dict.fromkeys(seen)) == computes_moments


def test_a_traced_choice_of_moments_is_not_differentiated():
  @functools.partial(jax.jit, compiler_options=QUICK)
  def entropy_and_moments(params, rows, moments):
    def run(params):
      found = forward.forward(POLICY, params, rows, 0.8, 0, moments=moments)
      return jnp.sum(found.stats.entropy), found.moments

    return jax.value_and_grad(run, has_aux=True)(params)

  rows = jax.tree.map(jnp.asarray, padded())
  (value, moments), gradient = entropy_and_moments(parameters(), rows, True)
  (other, unknown), same = entropy_and_moments(parameters(), rows, False)
  assert value == other
  jax.tree.map(np.testing.assert_array_equal, gradient, same)
  assert np.isfinite(moments.square).all()
  assert np.isnan(unknown.square).all()
  expected = score(parameters(), padded())[1]
  np.testing.assert_allclose(moments.square, expected.square, rtol=1e-5)
