# SPDX-License-Identifier: Apache-2.0
"""The training state at the start of a run, and its shapes and shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import Config
from covrl.models import Policy
from covrl.train.algorithm import Algorithm
from covrl.train.networks.programs import Networks
from covrl.train.state_sharding import abstract_opt_state, replicated_like
from covrl.types import TokenStats, TrainState, UpdateMeasurements


def policy_state(
  algorithm: Algorithm, config: Config
) -> Callable[[PyTree], TrainState]:
  """Returns a function of trainable parameters to the policy's initial state."""

  def frozen(trainable: PyTree) -> dict[str, PyTree]:
    if not config.train.keep_reference:
      return {}
    return {'reference': jax.tree.map(jnp.copy, trainable)}

  def initial(trainable: PyTree) -> TrainState:
    return TrainState(
      trainable=trainable,
      frozen=frozen(trainable),
      opt_state=algorithm.tx.init(trainable),
      token_state=algorithm.token_tx.init(TokenStats.template()),
      step=jnp.zeros((), jnp.int32),
      last_update=UpdateMeasurements.initial(),
    )

  return initial


def abstract_state(
  policy: Policy,
  algorithm: Algorithm,
  config: Config,
  mesh: Mesh,
  networks: Networks,
) -> TrainState:
  """Returns shapes and shardings of the training state.

  Args:
    policy: the policy to train.
    algorithm: gradient transformations of policy and tokens.
    config: the run's configuration.
    mesh: the mesh of the training state.
    networks: the networks beside the policy.
  """
  params = policy.abstract_params(mesh)
  trainable, base = policy.split(params)
  network_states, estimator_state = networks.abstract_state()
  shapes = jax.eval_shape(policy_state(algorithm, config), trainable)
  return dataclasses.replace(
    jax.tree.map(lambda leaf: replicated_like(leaf, mesh), shapes),
    trainable=trainable,
    frozen=dict.fromkeys(shapes.frozen, trainable) | base,
    opt_state=abstract_opt_state(
      algorithm.tx,
      trainable,
      mesh,
      offload=config.train.offload_optimizer,
    ),
    networks=network_states,
    estimator_state=estimator_state,
  )
