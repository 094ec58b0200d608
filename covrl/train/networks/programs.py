# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of a run's networks beside the policy on the policy's mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from covrl.config import Config
from covrl.data.packing import pack_if_fit
from covrl.models import Policy
from covrl.parallel import distributed, sharding
from covrl.train.forward import Metrics
from covrl.train.networks.checks import check_networks
from covrl.train.networks.estimator import (
  Credit,
  CreditInputs,
  Estimator,
  checked_estimate,
  checked_targets,
)
from covrl.train.networks.init import initial_params
from covrl.train.networks.jitted import jit_network
from covrl.train.networks.network import Network
from covrl.train.rollout_batch import RolloutBatch, merge_metrics
from covrl.train.state_sharding import (
  replicated_like,
  shardings,
)
from covrl.train.step import StepSettings
from covrl.types import NetworkState, TokenBatch, TrainState


class Networks:
  """A run's networks beside the policy, and the estimator that reads them."""

  def __init__(
    self,
    policy: Policy,
    networks: Mapping[str, Network],
    estimator: Estimator | None,
    config: Config,
    mesh: Mesh,
    settings: StepSettings,
  ) -> None:
    """Jits the programs.

    Args:
      policy: the policy beside which the networks are trained.
      networks: the networks by name.
      estimator: estimates advantages per token; `None` without one.
      config: the run's configuration.
      mesh: the mesh of the training state.
      settings: static settings of the policy's update of padded rows.

    Raises:
      ConfigError: a network does not fit the policy or the mesh.
    """
    check_networks(networks, estimator, config)
    self._policy = policy
    self._estimator = estimator
    self._config = config
    self._mesh = mesh
    self._programs = {
      name: jit_network(name, network, policy, config, mesh, settings)
      for name, network in networks.items()
    }
    self._updated_before = [
      name for name, network in networks.items() if network.update == 'before'
    ]
    self._estimate = self._targets = None
    if estimator is not None:
      if estimator.targets is not None and self._updated_before:
        self._targets = jax.jit(
          checked_targets(estimator), out_shardings=sharding.replicated(mesh)
        )
      self._estimate = jax.jit(
        checked_estimate(estimator), out_shardings=sharding.replicated(mesh)
      )
    self._compiled: dict[tuple[str, int], Callable[..., Any]] = {}

  @property
  def models(self) -> dict[str, Policy]:
    """The networks' models by name."""
    return {name: each.model for name, each in self._programs.items()}

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the networks."""
    return tuple(self._programs)

  @property
  def target_names(self) -> tuple[str, ...]:
    """Names of the entries of `TokenBatch.network_targets`."""
    return () if self._estimator is None else self._estimator.target_names

  @property
  def estimates_advantages(self) -> bool:
    """Whether an estimator takes the place of response-level advantages."""
    return self._estimator is not None

  def abstract_state(self) -> tuple[dict[str, NetworkState], PyTree]:
    """Returns shapes and shardings of the networks' and estimator's state."""
    states = {name: programs.state for name, programs in self._programs.items()}
    if self._estimator is None:
      return states, ()
    estimator_state = jax.tree.map(
      lambda leaf: replicated_like(leaf, self._mesh),
      jax.eval_shape(self._estimator.init),
    )
    return states, estimator_state

  def init(self, params: PyTree) -> tuple[dict[str, NetworkState], PyTree]:
    """Returns the initial state of networks and estimator.

    Args:
      params: all parameters of the policy at the start of the run.
    """
    states = {}
    for index, (name, programs) in enumerate(self._programs.items()):
      network_params = initial_params(
        programs.network.initial,
        programs.model,
        self._policy,
        params,
        self._config,
        self._mesh,
        index,
      )
      init = jax.jit(
        programs.network.tx.init,
        out_shardings=shardings(programs.state.opt_state),
      )
      states[name] = NetworkState(
        params=network_params, opt_state=init(network_params)
      )
    if self._estimator is None:
      return states, ()
    replicated = sharding.replicated(self._mesh)
    return states, jax.jit(self._estimator.init, out_shardings=replicated)()

  def assign_credit(
    self, state: TrainState, rollout: RolloutBatch
  ) -> tuple[TrainState, RolloutBatch]:
    """Estimates the advantages of an iteration, before its first update.

    Makes the iteration's updates of networks that are updated before they are
    scored; donates their state.

    Args:
      state: the training state.
      rollout: the iteration's data.

    Returns:
      The state with the estimator's next state, and the data with advantages,
      `network_targets` and metrics; both unchanged without an estimator.
    """
    if self._estimate is None:
      return state, rollout
    started = time.monotonic()
    if self._targets is not None:
      state, rollout = self._update_before_scoring(state, rollout)
    batch = dataclasses.replace(rollout.batch, network_targets={})
    rows, count = sharding.shard_batch(batch, self._mesh), len(rollout.order)
    with self._use_mesh():
      outputs = {
        name: self._program(('score ' + name, count), programs.score)(
          state.networks[name].params, rows
        )
        for name, programs in self._programs.items()
      }
      inputs = self._inputs(rollout, rows, outputs)
      run = self._program(('estimate', count), self._estimate)
      credit, estimator_state = run(state.estimator_state, inputs)
    fetched: Credit = distributed.fetch(credit)
    metrics = {name: float(value) for name, value in fetched.metrics.items()}
    batch = dataclasses.replace(
      rollout.batch,
      advantages=fetched.advantages,
      network_targets=fetched.network_targets,
    )
    metrics['time/credit'] = time.monotonic() - started
    return (
      dataclasses.replace(state, estimator_state=estimator_state),
      dataclasses.replace(
        rollout, batch=batch, metrics=merge_metrics(rollout.metrics, metrics)
      ),
    )

  def update(
    self, states: Mapping[str, NetworkState], rows: TokenBatch
  ) -> tuple[dict[str, NetworkState], Metrics]:
    """Updates networks on the rows of a policy's update; donates their state.

    Args:
      states: the states by name.
      rows: the rows, host arrays, padded or packed.

    Returns:
      The new states, and metrics `NAME/METRIC` as device scalars; without those
      of networks that are updated before they are scored, whose states remain.
    """
    later = [n for n in self._programs if n not in self._updated_before]
    new_states, network_metrics = self._update(later, states, rows)
    return {**states, **new_states}, network_metrics

  def _update_before_scoring(
    self, state: TrainState, rollout: RolloutBatch
  ) -> tuple[TrainState, RolloutBatch]:
    """Makes the updates of an iteration that precede its scoring."""
    rows = sharding.shard_batch(rollout.batch, self._mesh)
    inputs, count = self._inputs(rollout, rows, {}), len(rollout.order)
    run = self._program(('targets', count), self._targets)
    with self._use_mesh():
      targets: Any = distributed.fetch(run(inputs))
    rollout = dataclasses.replace(
      rollout, batch=dataclasses.replace(rollout.batch, network_targets=targets)
    )
    train, states = self._config.train, state.networks
    update_metrics: list[dict[str, float]] = []
    for update in range(self._config.updates_per_iteration):
      update_batch = rollout.update_rows(update, train.sequences_per_update)
      if train.packed_rows:
        length = update_batch.tokens.shape[1]
        update_batch = pack_if_fit(
          update_batch, length=length, count=train.packed_rows
        )
      new_states, network_metrics = self._update(
        self._updated_before, states, update_batch
      )
      states = {**states, **new_states}
      fetched = distributed.fetch(network_metrics)
      update_metrics.append({name: float(x) for name, x in fetched.items()})
    return (
      dataclasses.replace(state, networks=states),
      dataclasses.replace(rollout, update_metrics=update_metrics),
    )

  def _update(
    self,
    names: list[str],
    states: Mapping[str, NetworkState],
    rows: TokenBatch,
  ) -> tuple[dict[str, NetworkState], Metrics]:
    """Updates networks on some rows."""
    if not names:
      return {}, {}
    new_states: dict[str, NetworkState] = {}
    network_metrics: Metrics = {}
    sharded, count = sharding.shard_batch(rows, self._mesh), len(rows.tokens)
    with self._use_mesh():
      for name in names:
        run = self._program(
          ('update ' + name, count), self._update_of(name, count)
        )
        new_states[name], metrics = run(states[name], sharded)
        network_metrics |= {
          f'{name}/{metric}': x for metric, x in metrics.items()
        }
    return new_states, network_metrics

  def compile(self, batch: TokenBatch, row_counts: set[int]) -> None:
    """Compiles all programs.

    Args:
      batch: rows of an iteration, such as padding.
      row_counts: numbers of rows of an update.
    """
    count = len(batch.tokens)
    traced = {
      ('score ' + name, count): self.trace_score(name, batch)
      for name in self._programs
    }
    for rows in row_counts:
      for name in self._programs:
        traced['update ' + name, rows] = self.trace_update(name, batch, rows)
    if self._estimate is not None:
      traced['estimate', count] = self.trace_estimate(batch)
    if self._targets is not None:
      inputs = self._abstract_inputs(batch, {})
      with self._use_mesh():
        traced['targets', count] = self._targets.trace(inputs)
    self._compiled = {
      key: program.lower().compile() for key, program in traced.items()
    }

  def trace_update(
    self, name: str, batch: TokenBatch, count: int
  ) -> jax.stages.Traced:
    """Traces a network's update.

    Args:
      name: the network.
      batch: rows of an iteration, arrays or shapes.
      count: rows per update.
    """
    rows = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
      batch,
    )
    with self._use_mesh():
      return self._update_of(name, count).trace(
        self._programs[name].state, self._abstract(rows)
      )

  def trace_score(self, name: str, batch: TokenBatch) -> jax.stages.Traced:
    """Traces the scoring of an iteration's rows, arrays or shapes."""
    # Rows are scored before they have targets.
    batch = dataclasses.replace(batch, network_targets={})
    programs = self._programs[name]
    with self._use_mesh():
      return programs.score.trace(programs.state.params, self._abstract(batch))

  def trace_estimate(self, batch: TokenBatch) -> jax.stages.Traced:
    """Traces the estimator on an iteration's rows, arrays or shapes.

    Raises:
      TypeError: there is no estimator.
      ValueError: the estimator is invalid.
    """
    if self._estimate is None:
      raise TypeError(
        'trace_estimate must be called on networks with an estimator, got None'
      )
    per_token = jax.ShapeDtypeStruct(batch.tokens.shape, np.float32)
    outputs: dict[str, Any] = dict.fromkeys(self._programs, per_token)
    _, state = self.abstract_state()
    with self._use_mesh():
      return self._estimate.trace(state, self._abstract_inputs(batch, outputs))

  def _abstract_inputs(
    self, batch: TokenBatch, outputs: dict[str, Any]
  ) -> CreditInputs:
    """Returns shapes and shardings of the estimator's inputs."""
    count = len(batch.tokens)

    def per_sequence(dtype: Any) -> Any:
      return jax.ShapeDtypeStruct((count,), dtype)

    inputs = CreditInputs(
      rows=dataclasses.replace(batch, network_targets={}),
      rewards=per_sequence(np.float32),
      group_ids=per_sequence(np.int32),
      update_ids=per_sequence(np.int32),
      outputs=outputs,
    )
    return self._abstract(inputs)

  def _inputs(
    self,
    rollout: RolloutBatch,
    rows: TokenBatch,
    outputs: dict[str, Float[Array, 'S T']],
  ) -> CreditInputs:
    """Returns the estimator's inputs, sharded over the mesh."""
    count = len(rollout.order)
    update_ids = np.empty(count, np.int32)
    size = self._config.train.sequences_per_update
    update_ids[rollout.order] = np.arange(count) // size
    rewards, group_ids, update_ids = sharding.shard_batch(
      (np.float32(rollout.rewards), np.int32(rollout.groups), update_ids),
      self._mesh,
    )
    return CreditInputs(
      rows=rows,
      rewards=rewards,
      group_ids=group_ids,
      update_ids=update_ids,
      outputs=outputs,
    )

  def _update_of(self, name: str, count: int) -> Any:
    """Returns the jitted update of `count` rows."""
    programs, packed = self._programs[name], self._config.train.packed_rows
    return programs.update_packed if count == packed else programs.update

  def _program(self, key: tuple[str, int], jitted: Any) -> Callable[..., Any]:
    """Returns the program compiled for a key, else the jitted function."""
    return self._compiled.get(key) or jitted

  def _use_mesh(self) -> contextlib.AbstractContextManager[None]:
    return sharding.use_mesh(self._mesh, sharding.TRAIN_RULES)

  def _abstract(self, rows: PyTree) -> PyTree:
    """Returns shapes and shardings of rows."""
    return jax.tree.map(
      lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf_sharding
      ),
      rows,
      sharding.batch_shardings(rows, self._mesh),
    )
