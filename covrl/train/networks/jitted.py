# SPDX-License-Identifier: Apache-2.0
"""The model of a network beside the policy and its jitted programs."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from covrl.config import Config
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.train.networks.init import network_model
from covrl.train.networks.network import Network
from covrl.train.networks.step import make_network_score, make_network_step
from covrl.train.state_sharding import (
  abstract_opt_state,
  check_mesh,
  shardings,
)
from covrl.train.step import StepSettings
from covrl.types import NetworkState


@dataclasses.dataclass(frozen=True)
class NetworkPrograms:
  """The model of a network and its jitted programs.

  Attributes:
    network: the network.
    model: the model of the network.
    state: shapes and shardings of its state.
    score: `(params, rows [S, T]) -> output [S, T]`.
    update: `(state, rows [B, T]) -> (state, metrics)`; donates the state.
    update_packed: the same for packed rows.
  """

  network: Network
  model: Policy
  state: NetworkState
  score: Any
  update: Any
  update_packed: Any


def jit_network(
  name: str,
  network: Network,
  policy: Policy,
  config: Config,
  mesh: Mesh,
  settings: StepSettings,
) -> NetworkPrograms:
  """Jits the programs of one network.

  Args:
    name: name of the network.
    network: the network.
    policy: the policy beside which it is trained.
    config: the run's configuration.
    mesh: the mesh of the training state.
    settings: static settings of the policy's update of padded rows.

  Raises:
    ConfigError: the network does not fit the policy or the mesh.
  """
  model = network_model(name, network, policy)
  check_mesh(config, model.config, mesh)
  score_batches = config.updates_per_iteration * settings.micro_batches
  params = model.abstract_params(mesh)
  state = NetworkState(
    params=params,
    opt_state=abstract_opt_state(
      network.tx, params, mesh, offload=settings.offload_optimizer
    ),
  )
  out_shardings = (shardings(state), sharding.replicated(mesh))

  def jit_update(settings: StepSettings) -> Any:
    step = make_network_step(network, model, settings)
    return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)

  row_sharding = sharding.named_sharding(
    mesh, ('batch', 'sequence'), sharding.TRAIN_RULES
  )
  return NetworkPrograms(
    network=network,
    model=model,
    state=state,
    score=jax.jit(
      make_network_score(network, model, settings, score_batches),
      out_shardings=row_sharding,
    ),
    update=jit_update(settings),
    # Packed rows have responses in any column.
    update_packed=jit_update(dataclasses.replace(settings, first_column=0)),
  )
