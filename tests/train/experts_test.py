# SPDX-License-Identifier: Apache-2.0
"""An update of a mixture of experts does not depend on its mesh or micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fast_compilation import QUICK
from train.updates import padded_batch

import covrl
from covrl.models import (
  ExpertRecordSpec,
  Experts,
  Policy,
  load_balancing_loss,
  tiny,
)
from covrl.parallel import sharding
from covrl.train.step import StepSettings, make_train_step
from covrl.types import TrainState, UpdateMeasurements

BALANCE = 0.5  # coefficient of the load-balancing loss
POLICY = Policy(
  dataclasses.replace(tiny(16), experts=Experts(count=4, per_token=2))
)
# The first state of the chain is the gradient itself.
TX = optax.chain(optax.trace(decay=0.0), optax.sgd(0.1))
CHAIN = covrl.entropy_bonus(0.01)


def rows():
  """Rows of which every other token has recorded experts."""
  batch, rng = padded_batch(), np.random.default_rng(5)
  record = ExpertRecordSpec.of(POLICY.config)
  experts = np.argsort(rng.random((*batch.tokens.shape, 2, 4)), axis=-1)
  experts = (experts[..., :2] + 1).astype(record.dtype)
  experts[:, ::2] = 0
  return dataclasses.replace(batch, experts=experts)


@functools.cache
def update(shape, micro_batches, balance):
  """Gradients and metrics of one update."""
  step = make_train_step(
    POLICY,
    functools.partial(covrl.clipped_surrogate, low=0.2, high=0.2),
    CHAIN,
    TX,
    StepSettings(micro_batches=micro_batches, balance=balance),
  )
  mesh = sharding.make_mesh(shape)
  params = POLICY.init(jax.random.key(0), mesh)
  state = TrainState(
    trainable=params,
    frozen={},
    opt_state=TX.init(params),
    token_state=CHAIN.init(covrl.TokenStats.template()),
    step=jnp.zeros((), jnp.int32),
    last_update=UpdateMeasurements.initial(),
  )
  run = jax.jit(step, compiler_options=QUICK)
  with jax.set_mesh(mesh):
    state, metrics = run(
      state,
      sharding.shard_batch(rows(), mesh),
      np.asarray(True),
      jax.random.key(3),
    )
  return jax.device_get((state.opt_state[0].trace, metrics))


def assert_close(actual, expected):
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    scale = np.abs(expected_leaf).max()
    np.testing.assert_allclose(
      actual_leaf, expected_leaf, rtol=1e-4, atol=1e-4 * scale
    )


def test_meshes_and_micro_batches_do_not_change_an_update_of_experts():
  gradients, metrics = update((8,), 1, BALANCE)
  for shape, micro_batches in (((1, 2, 1, 4), 1), ((2, 1, 2, 2), 4)):
    actual, other_metrics = update(shape, micro_batches, BALANCE)
    assert_close(actual, gradients)
    assert metrics.keys() == other_metrics.keys()
    for name in metrics:
      np.testing.assert_allclose(
        other_metrics[name],
        metrics[name],
        rtol=1e-4,
        atol=1e-5,
        err_msg=name,
      )


def test_the_load_balancing_loss_is_added_to_the_gradient():
  without_balance, metrics = update((8,), 1, 0.0)
  with_balance, other_metrics = update((8,), 1, BALANCE)
  batch = jax.tree.map(jnp.asarray, rows())

  def balance(params):
    _, routing = POLICY.hidden_and_routing(
      params,
      batch.tokens,
      positions=batch.positions,
      segment_ids=batch.segment_ids,
      recorded_experts=batch.experts,
    )
    assert routing is not None
    return load_balancing_loss(routing.mass, routing), routing

  gradients, routing = jax.jit(jax.grad(balance, has_aux=True))(
    POLICY.init(jax.random.key(0))
  )
  assert_close(
    jax.tree.map(np.subtract, with_balance, without_balance),
    jax.tree.map(lambda leaf: BALANCE * leaf, gradients),
  )
  # What is reported does not depend on the coefficient, and is not part of the
  # loss. Padding is routed to no expert.
  assert metrics['loss'] == other_metrics['loss']
  assert int(routing.tokens[0]) == int((batch.segment_ids > 0).sum())
  counts = np.asarray(routing.counts)
  assert (counts.sum(axis=1) == 2 * np.asarray(routing.tokens)).all()
  for values in (metrics, other_metrics):
    np.testing.assert_allclose(
      values['router/balance'],
      load_balancing_loss(routing.mass, routing),
      rtol=1e-5,
    )
    np.testing.assert_allclose(
      values['router/busiest'],
      (counts / counts.mean(axis=1, keepdims=True)).max(),
      rtol=1e-5,
    )
    assert values['router/idle'] == (counts == 0).mean()
    assert 0 < values['router/entropy'] <= np.log(4)
