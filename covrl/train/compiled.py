# SPDX-License-Identifier: Apache-2.0
"""Compiled programs of a run; all are compiled before its first step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from covrl.config import Config
from covrl.data.packing import pack_if_fit, prompt_width
from covrl.entropy import Selection, required_truncation
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.train.algorithm import Algorithm, reads_moments
from covrl.train.forward import (
  PolicyStats,
  make_entropy_change,
  make_score_step,
)
from covrl.train.initial_state import abstract_state, policy_state
from covrl.train.logged_samples import make_explain_selection
from covrl.train.networks.programs import Networks
from covrl.train.rollout_batch import RolloutBatch, token_advantages
from covrl.train.state_sharding import shardings
from covrl.train.step import StepSettings, advance_step, make_train_step
from covrl.types import TokenBatch, TrainState


def abstract_key() -> Key[Array, '']:
  """Returns the abstract value of a PRNG key."""
  return jax.eval_shape(lambda: jax.random.key(0))


def without_frozen_base(state: TrainState) -> TrainState:
  """Removes the frozen base of adapters, which checkpoints do not store."""
  frozen = {k: v for k, v in state.frozen.items() if k != 'base'}
  return dataclasses.replace(state, frozen=frozen)


class CompiledPrograms:
  """The jitted programs of reinforcement learning on one mesh.

  `compile` compiles all of them; afterwards nothing is compiled.
  """

  def __init__(
    self, policy: Policy, algorithm: Algorithm, config: Config, mesh: Mesh
  ) -> None:
    """Jits the programs.

    Args:
      policy: the policy to train.
      algorithm: loss, advantages and gradient transformations.
      config: the run's configuration.
      mesh: the mesh of the training state.
    """
    self._policy = policy
    self._algorithm = algorithm
    self._config = config
    self._mesh = mesh
    self.truncation = required_truncation(algorithm.token_tx)
    settings = StepSettings(
      temperature=config.rollout.temperature,
      # The last column of a prompt predicts the first token of a response.
      first_column=prompt_width(config.rollout.max_prompt_length) - 1,
      micro_batches=config.train.micro_batches,
      weights=config.train.weights,
      max_length=config.rollout.max_response_length,
      has_old_stats=config.scores_rollouts,
      balance=config.train.balance,
      offload_optimizer=config.train.offload_optimizer,
      truncation=self.truncation,
      reads_moments=reads_moments(algorithm),
      diagnostics_every=config.logging.diagnostics_every,
    )
    self.networks = Networks(
      policy, algorithm.networks, algorithm.estimator, config, mesh, settings
    )
    self._state_shardings = shardings(self.abstract_state().of_policy())

    def jit_update(settings: StepSettings) -> Any:
      return jax.jit(
        make_train_step(
          policy, algorithm.loss, algorithm.token_tx, algorithm.tx, settings
        ),
        donate_argnums=0,
        out_shardings=(self._state_shardings, sharding.replicated(mesh)),
      )

    self._update = jit_update(settings)
    # Packed rows have responses in any column.
    self._update_packed = jit_update(
      dataclasses.replace(settings, first_column=0)
    )
    micro_batches, temperature = settings.micro_batches, settings.temperature
    first_column = settings.first_column
    score_batches = config.updates_per_iteration * micro_batches
    self._score = jax.jit(
      make_score_step(
        policy,
        temperature,
        score_batches,
        first_column,
        self.truncation.min_p,
        moments=settings.reads_moments,
      )
    )
    self._advantages = jax.jit(token_advantages(algorithm.advantages))
    self._explain_selection = jax.jit(make_explain_selection(algorithm, config))
    self._entropy_change = jax.jit(
      make_entropy_change(policy, temperature, micro_batches, first_column)
    )
    self._warm_up_steps = config.critic.warm_up
    self._advance_step = jax.jit(
      advance_step, donate_argnums=0, out_shardings=sharding.replicated(mesh)
    )
    self._copy = jax.jit(
      lambda params: jax.tree.map(jnp.copy, params),
      out_shardings=self._state_shardings.trainable,
    )
    self._compiled_updates: dict[int, Callable[..., Any]] = {}
    self._compiled_score: Callable[..., Any] | None = None

  def abstract_state(self) -> TrainState:
    """Returns shapes and shardings of the training state."""
    return abstract_state(
      self._policy, self._algorithm, self._config, self._mesh, self.networks
    )

  @property
  def uses_score(self) -> bool:
    """Whether the run scores an iteration's rows outside of updates."""
    return bool(
      self._config.scores_rollouts
      or self._config.train.keep_reference
      or self._config.logging.samples
    )

  @property
  def has_filtered_logprobs(self) -> bool:
    """Whether scored rows have log-probabilities after a filter by min-p.

    With one update per rollout, the update computes them instead.
    """
    return self.truncation.min_p is not None and self._config.scores_rollouts

  def init_state(self, params: PyTree) -> TrainState:
    """Returns the initial training state for all parameters of the policy."""
    trainable, base = self._policy.split(params)
    out_shardings = without_frozen_base(self._state_shardings)
    init = jax.jit(
      policy_state(self._algorithm, self._config), out_shardings=out_shardings
    )
    state = init(trainable)
    networks, estimator_state = self.networks.init(params)
    return dataclasses.replace(
      state,
      frozen=state.frozen | base,
      networks=networks,
      estimator_state=estimator_state,
    )

  def params(self, state: TrainState) -> PyTree:
    """Returns all parameters of the policy."""
    return self._policy.join(state.trainable, state.frozen)

  def reference(self, state: TrainState) -> PyTree:
    """Returns all parameters of the reference policy."""
    return self._policy.join(state.frozen['reference'], state.frozen)

  def trace_update(
    self, batch: TokenBatch, count: int | None = None
  ) -> jax.stages.Traced:
    """Traces an update.

    Args:
      batch: rows of an iteration, arrays or shapes.
      count: rows per update; `train.sequences_per_update` by default.

    Raises:
      ValueError: the loss or a gradient transformation is invalid.
    """
    state, key = self.abstract_state().of_policy(), abstract_key()
    count = count or self._config.train.sequences_per_update
    rows = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
      batch,
    )
    with self._use_mesh():
      first = jax.ShapeDtypeStruct((), bool)
      update = self._update_of(count)
      return update.trace(state, self._abstract(rows), first, key)

  def trace_score(self, batch: TokenBatch) -> jax.stages.Traced:
    """Traces the scoring of an iteration's rows, arrays or shapes."""
    params = self.params(self.abstract_state())
    # Rows are scored before they have log-probabilities of other policies.
    moments = dataclasses.replace(batch.old_moments, filtered_logprobs=None)
    batch = dataclasses.replace(batch, ref_logprobs=None, old_moments=moments)
    with self._use_mesh():
      return self._score.trace(params, self._abstract(batch))

  def compile(self, state: TrainState, batch: TokenBatch) -> None:
    """Compiles all programs that the run uses.

    Args:
      state: the training state; unchanged.
      batch: rows of an iteration, such as padding.
    """
    train, logging = self._config.train, self._config.logging
    row_counts = {train.sequences_per_update, train.packed_rows} - {0}
    self.networks.compile(batch, row_counts)
    for count in sorted(row_counts):
      traced = self.trace_update(batch, count)
      self._compiled_updates[count] = traced.lower().compile()
    if self.uses_score:
      self._compiled_score = self.trace_score(batch).lower().compile()
    rows, sequences = self._update_rows(batch), len(batch.tokens)
    if not self.networks.estimates_advantages:
      self.advantages(
        np.zeros(sequences, np.float32),
        np.zeros(sequences, np.int32),
        np.asarray(batch.loss_mask),
      )
    if self._warm_up_steps:
      self._advance_step(jnp.copy(state.step), self._shard(rows))
    if logging.samples:
      self.explain_selection(state, self._with_scores(rows), jax.random.key(0))
    if logging.entropy_change_every or train.reset_reference_every:
      before = self.copy(state.trainable)
      if logging.entropy_change_every:
        self.entropy_change(before, state, rows)

  def update(
    self, state: TrainState, rows: TokenBatch, first: bool, key: Key[Array, '']
  ) -> tuple[TrainState, dict[str, Any]]:
    """Makes one optimiser update; donates the buffers of `state`.

    First the other networks are updated, then the policy, which is fixed while
    a critic warms up.

    Args:
      state: the training state.
      rows: the rows of the update, host arrays.
      first: whether it is the iteration's first update.
      key: the run's PRNG key for training.

    Returns:
      The new state, and metrics as device scalars.
    """
    self._check_prompts(rows)
    count, packing = self._config.train.packed_rows, {}
    if count:
      rows = pack_if_fit(rows, length=rows.tokens.shape[1], count=count)
      packing['packed'] = jnp.asarray(len(rows.tokens) == count, jnp.float32)
    networks, network_metrics = self.networks.update(state.networks, rows)
    estimator_state, state = state.estimator_state, state.of_policy()
    new_state, metrics = self._update_policy(state, rows, first, key)
    new_state = dataclasses.replace(
      new_state, networks=networks, estimator_state=estimator_state
    )
    return new_state, metrics | network_metrics | packing

  def _update_policy(
    self, state: TrainState, rows: TokenBatch, first: bool, key: Key[Array, '']
  ) -> tuple[TrainState, dict[str, Any]]:
    """Updates the policy, or advances the step of a fixed one."""
    if self._warm_up_steps:
      steps = int(state.step)
      if steps < self._warm_up_steps:
        step, metrics = self._advance_step(state.step, self._shard(rows))
        return dataclasses.replace(state, step=step), metrics
      # The policy is still the one that sampled.
      first = first or steps == self._warm_up_steps
    rows_count = len(rows.tokens)
    run = self._compiled_updates.get(rows_count) or self._update_of(rows_count)
    with self._use_mesh():
      return run(state, self._shard(rows), np.asarray(first), key)

  def score(self, params: PyTree, batch: TokenBatch) -> PolicyStats:
    """Returns the policy's statistics of an iteration's tokens."""
    self._check_prompts(batch)
    run = self._compiled_score or self._score
    with self._use_mesh():
      return run(params, self._shard(batch))

  def assign_credit(
    self, state: TrainState, rollout: RolloutBatch
  ) -> tuple[TrainState, RolloutBatch]:
    """Estimates advantages per token before an iteration's first update.

    State and data are unchanged in a run without an estimator.
    """
    return self.networks.assign_credit(state, rollout)

  def advantages(
    self, rewards: np.ndarray, groups: np.ndarray, mask: np.ndarray
  ) -> np.ndarray:
    """Returns the advantages `[S, T]` of an iteration's tokens."""
    return np.asarray(self._advantages(rewards, groups, mask))

  def explain_selection(
    self, state: TrainState, rows: TokenBatch, key: Key[Array, '']
  ) -> tuple[Selection, Array]:
    """Returns the tokens that an update selects, and all tokens' covariances.

    Args:
      state: the training state before the update.
      rows: the rows of the update, host arrays.
      key: the run's PRNG key for training.
    """
    with self._use_mesh():
      return self._explain_selection(
        state.token_state, state.step, self._shard(rows), key
      )

  def reset_reference(self, state: TrainState) -> TrainState:
    """Replaces the reference policy by the current one."""
    reference = {'reference': self.copy(state.trainable)}
    return dataclasses.replace(state, frozen=state.frozen | reference)

  def copy(self, trainable: PyTree) -> PyTree:
    """Copies parameters, whose buffers the next update donates."""
    return self._copy(trainable)

  def entropy_change(
    self, before: PyTree, state: TrainState, rows: TokenBatch
  ) -> dict[str, Any]:
    """Measures the change of entropy that an update caused on its own tokens.

    Args:
      before: the trainable parameters before the update.
      state: the training state after the update.
      rows: the rows of the update, host arrays.
    """
    with self._use_mesh():
      return self._entropy_change(
        before, state.trainable, state.frozen, self._shard(rows)
      )

  def _check_prompts(self, rows: TokenBatch) -> None:
    """Refuses rows with tokens of the loss where there are prompts.

    Statistics are not computed there.
    """
    first_column = prompt_width(self._config.rollout.max_prompt_length) - 1
    count = int(np.count_nonzero(np.asarray(rows.loss_mask)[:, :first_column]))
    if count:
      raise ValueError(
        f'loss_mask must be false in the first {first_column} columns, which predict '
        f'tokens of prompts, got {count} true entries there'
      )

  def _update_of(self, count: int) -> Any:
    """Returns the jitted update of `count` rows."""
    is_packed = count == self._config.train.packed_rows
    return self._update_packed if is_packed else self._update

  def _use_mesh(self) -> contextlib.AbstractContextManager[None]:
    return sharding.use_mesh(self._mesh, sharding.TRAIN_RULES)

  def _abstract(self, batch: TokenBatch) -> TokenBatch:
    """Returns shapes and shardings of rows, as arguments of the programs."""
    batch = dataclasses.replace(batch, network_targets={})
    return jax.tree.map(
      lambda leaf, leaf_sharding: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=leaf_sharding
      ),
      batch,
      sharding.batch_shardings(batch, self._mesh),
    )

  def _update_rows(self, batch: TokenBatch) -> TokenBatch:
    """Returns the rows of an iteration's first update."""
    count = self._config.train.sequences_per_update
    return jax.tree.map(lambda x: x[:count], batch)

  def _with_scores(self, rows: TokenBatch) -> TokenBatch:
    """Adds to rows of zeros the entries that scored rows have."""
    if self.truncation.min_p is None:
      return rows
    moments = dataclasses.replace(
      rows.old_moments, filtered_logprobs=np.zeros_like(rows.old_logprobs)
    )
    return dataclasses.replace(rows, old_moments=moments)

  def _shard(self, batch: TokenBatch) -> TokenBatch:
    """Shards rows, without the inputs of networks beside the policy."""
    batch = dataclasses.replace(batch, network_targets={})
    return sharding.shard_batch(batch, self._mesh)
