# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of a run, all of them ready before its first step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key, PyTree

from covrl import sharding
from covrl.config import Config
from covrl.entropy import (
  Selection,
  exact_mean,
  explain,
  token_covariance,
)
from covrl.entropy.chain import init_token_state
from covrl.models import Policy
from covrl.train.iteration import Advantages
from covrl.train.layout import abstract_opt_state, replicated_like, shardings
from covrl.train.step import (
  Loss,
  PolicyStats,
  StepSettings,
  make_entropy_change,
  make_score_step,
  make_train_step,
)
from covrl.types import TokenBatch, TokenContext, TokenStats, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
  """What a config file's factories build.

  Attributes:
    loss: a policy loss.
    token_tx: the token chain.
    tx: the parameter chain.
    advantages: rewards and group ids to advantages.
  """

  loss: Loss
  token_tx: optax.GradientTransformation
  tx: optax.GradientTransformation
  advantages: Advantages


def abstract_key() -> Key[Array, '']:
  """The shape of a PRNG key."""
  return jax.eval_shape(lambda: jax.random.key(0))


class Programs:
  """The jitted programs of reinforcement learning, on one mesh.

  Everything is compiled by `compile`; afterwards nothing is, however long the
  run.
  """

  def __init__(
    self, policy: Policy, algorithm: Algorithm, config: Config, mesh: Mesh
  ) -> None:
    """Jits the programs.

    Args:
      policy: what is trained.
      algorithm: how.
      config: sizes.
      mesh: where.
    """
    self._policy = policy
    self._algorithm = algorithm
    self._config = config
    self._mesh = mesh
    settings = StepSettings(
      temperature=config.rollout.temperature,
      micro_batches=config.train.micro_batches,
      weights=config.train.weights,
      selection_source=config.entropy.selection_source,
    )
    update = make_train_step(
      policy, algorithm.loss, algorithm.token_tx, algorithm.tx, settings
    )
    self._state_shardings = shardings(self.abstract_state())
    self._update = jax.jit(
      update,
      donate_argnums=0,
      out_shardings=(self._state_shardings, sharding.replicated(mesh)),
    )
    parts = config.updates_per_iteration * config.train.micro_batches
    self._score = jax.jit(make_score_step(policy, settings, parts))
    self._advantages = jax.jit(algorithm.advantages)
    self._select = jax.jit(self._explain)
    self._entropy_change = jax.jit(make_entropy_change(policy, settings))
    self._copy = jax.jit(
      lambda params: jax.tree.map(jnp.copy, params),
      out_shardings=self._state_shardings.trainable,
    )
    self._update_compiled: Callable[..., Any] | None = None
    self._score_compiled: Callable[..., Any] | None = None

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the training state."""
    trainable = self._policy.abstract_params(self._mesh)
    shapes = jax.eval_shape(self._fresh_state, trainable)
    return dataclasses.replace(
      jax.tree.map(lambda leaf: replicated_like(leaf, self._mesh), shapes),
      trainable=trainable,
      frozen=dict.fromkeys(shapes.frozen, trainable),
      opt_state=abstract_opt_state(self._algorithm.tx, trainable, self._mesh),
    )

  def init_state(self, params: PyTree) -> TrainState:
    """A fresh training state of these parameters."""
    fresh = jax.jit(self._fresh_state, out_shardings=self._state_shardings)
    return fresh(params)

  def check(self, batch: TokenBatch) -> None:
    """Traces an update, so that what cannot run is refused before it must.

    Args:
      batch: gives an iteration's shapes.

    Raises:
      ValueError: from whichever part of the algorithm cannot work.
    """
    self.trace_update(batch)

  def trace_update(self, batch: TokenBatch) -> jax.stages.Traced:
    """Traces an update for the shapes of an iteration's batch, arrays or not."""
    state, key = self.abstract_state(), abstract_key()
    count = self._config.train.sequences_per_update
    rows = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
      batch,
    )
    with self._mesh_in_use():
      first = jax.ShapeDtypeStruct((), bool)
      return self._update.trace(state, self._abstract(rows), first, key)

  def trace_score(self, batch: TokenBatch) -> jax.stages.Traced:
    """Traces the scoring of an iteration's batch, arrays or not."""
    params = self.abstract_state().trainable
    with self._mesh_in_use():
      return self._score.trace(params, self._abstract(batch))

  def compile(self, state: TrainState, batch: TokenBatch) -> None:
    """Compiles every program, `batch` giving an iteration's shapes."""
    self._update_compiled = self.trace_update(batch).lower().compile()
    self._score_compiled = self.trace_score(batch).lower().compile()
    rows = self._first_rows(batch)
    key = jax.random.key(0)
    count = len(batch.tokens)
    self.advantages(np.zeros(count, np.float32), np.zeros(count, np.int32))
    self.select(state, rows, key)
    before = self.copy(state.trainable)
    if self._config.logging.entropy_change_every:
      self.entropy_change(before, state.trainable, rows)

  def update(
    self, state: TrainState, rows: TokenBatch, first: bool, key: Key[Array, '']
  ) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser update; the state given is used up."""
    run = self._update_compiled or self._update
    with self._mesh_in_use():
      return run(state, self._place(rows), np.asarray(first), key)

  def score(self, params: PyTree, batch: TokenBatch) -> PolicyStats:
    """Statistics of an iteration's tokens before its first update."""
    run = self._score_compiled or self._score
    with self._mesh_in_use():
      return run(params, self._place(batch))

  def advantages(self, rewards: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Advantages of an iteration's sequences."""
    return np.asarray(self._advantages(rewards, groups))

  def select(
    self, state: TrainState, rows: TokenBatch, key: Key[Array, '']
  ) -> tuple[Selection, Array]:
    """What the next update would select, and the covariance of every token."""
    with self._mesh_in_use():
      return self._select(state.token_state, state.step, self._place(rows), key)

  def reset_reference(self, state: TrainState) -> TrainState:
    """The same state, its reference policy being the current one."""
    reference = self.copy(state.trainable)
    return dataclasses.replace(state, frozen={'reference': reference})

  def copy(self, params: PyTree) -> PyTree:
    """Parameters that the next update will not use up."""
    return self._copy(params)

  def entropy_change(
    self, before: PyTree, after: PyTree, rows: TokenBatch
  ) -> dict[str, Any]:
    """What an update did to the entropy of its own tokens."""
    with self._mesh_in_use():
      return self._entropy_change(before, after, self._place(rows))

  def _mesh_in_use(self) -> contextlib.AbstractContextManager[None]:
    return sharding.in_use(self._mesh, sharding.TRAIN_RULES)

  def _abstract(self, batch: TokenBatch) -> TokenBatch:
    """The shapes of a batch, as it lies on the mesh."""
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=place
      ),
      batch,
      sharding.batch_shardings(batch, self._mesh),
    )

  def _first_rows(self, batch: TokenBatch) -> TokenBatch:
    count = self._config.train.sequences_per_update
    return jax.tree.map(lambda x: x[:count], batch)

  def _place(self, batch: TokenBatch) -> TokenBatch:
    return sharding.shard_batch(batch, self._mesh)

  def _fresh_state(self, params: PyTree) -> TrainState:
    return TrainState(
      trainable=params,
      frozen=self._frozen(params),
      opt_state=self._algorithm.tx.init(params),
      token_state=init_token_state(self._algorithm.token_tx),
      step=jnp.zeros((), jnp.int32),
      log_ratio_noise=jnp.zeros(()),
    )

  def _frozen(self, params: PyTree) -> dict[str, PyTree]:
    if not self._config.train.keep_reference:
      return {}
    return {'reference': jax.tree.map(jnp.copy, params)}

  def _explain(
    self,
    token_state: PyTree,
    step: Array,
    rows: TokenBatch,
    key: Key[Array, ''],
  ) -> tuple[Selection, Array]:
    stats = TokenStats(logprobs=rows.old_logprobs, entropy=rows.old_entropy)
    context = TokenContext(
      advantages=rows.advantages,
      old_logprobs=rows.old_logprobs,
      old_entropy=rows.old_entropy,
      old_moments=rows.old_moments,
      moments=rows.old_moments,
      mask=rows.loss_mask,
      weights=rows.weights,
      segment_ids=rows.segment_ids,
      sequence_ids=rows.sequence_ids,
      positions=rows.positions,
      sampler_logprobs=rows.sampler_logprobs,
      score_weight=rows.advantages,
      step=step,
      key=key,
      entropy=exact_mean(rows.old_entropy, rows.loss_mask),
    )
    if rows.ref_logprobs is not None:
      context['ref_logprobs'] = rows.ref_logprobs
    covariance = token_covariance(
      rows.old_logprobs, rows.advantages, rows.loss_mask
    )
    chosen = explain(
      self._algorithm.token_tx, stats, token_state=token_state, **context
    )
    nothing = Selection.of_mask(jnp.zeros_like(rows.loss_mask))
    return (chosen[0] if chosen else nothing), covariance
