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

from covrl.config import Config, Recipe
from covrl.data.packing import pack_if_fit
from covrl.entropy import (
  Selection,
  explain,
  token_covariance,
)
from covrl.entropy.base import init_token_state
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.train.forward import (
  PolicyStats,
  make_entropy_change,
  make_score_step,
  mean_entropy,
  row_context,
  weigh,
)
from covrl.train.rollout_batch import Advantages
from covrl.train.state_sharding import (
  abstract_opt_state,
  replicated_like,
  shardings,
)
from covrl.train.step import Loss, StepSettings, make_train_step
from covrl.types import (
  Measured,
  TokenBatch,
  TokenContext,
  TokenStats,
  TrainState,
)


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

  @classmethod
  def of(cls, recipe: Recipe) -> Algorithm:
    """What a recipe's factories build."""
    config, module = recipe.config, recipe.module
    return cls(
      loss=module.make_loss(config),
      token_tx=module.make_token_tx(config),
      tx=module.make_tx(config),
      advantages=module.make_advantages(config),
    )


def abstract_key() -> Key[Array, '']:
  """The shape of a PRNG key."""
  return jax.eval_shape(lambda: jax.random.key(0))


def without_base(state: TrainState) -> TrainState:
  """A state without what adapters stand beside: what a checkpoint keeps."""
  kept = {k: v for k, v in state.frozen.items() if k != 'base'}
  return dataclasses.replace(state, frozen=kept)


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
      balance=config.train.balance,
      offload_optimizer=config.train.offload_optimizer,
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
    micro_batches, temperature = settings.micro_batches, settings.temperature
    parts = config.updates_per_iteration * micro_batches
    self._score = jax.jit(make_score_step(policy, temperature, parts))
    self._advantages = jax.jit(algorithm.advantages)
    self._select = jax.jit(self._explain)
    self._entropy_change = jax.jit(
      make_entropy_change(policy, temperature, micro_batches)
    )
    self._copy = jax.jit(
      lambda params: jax.tree.map(jnp.copy, params),
      out_shardings=self._state_shardings.trainable,
    )
    self._updates_compiled: dict[int, Callable[..., Any]] = {}
    self._score_compiled: Callable[..., Any] | None = None

  def abstract_state(self) -> TrainState:
    """Shapes and shardings of the training state."""
    params = self._policy.abstract_params(self._mesh)
    trainable, rest = self._policy.split(params)
    shapes = jax.eval_shape(self._fresh_state, trainable)
    return dataclasses.replace(
      jax.tree.map(lambda leaf: replicated_like(leaf, self._mesh), shapes),
      trainable=trainable,
      frozen=dict.fromkeys(shapes.frozen, trainable) | rest,
      opt_state=abstract_opt_state(
        self._algorithm.tx,
        trainable,
        self._mesh,
        offload=self._config.train.offload_optimizer,
      ),
    )

  def init_state(self, params: PyTree) -> TrainState:
    """A fresh training state of all of the policy's parameters."""
    trainable, rest = self._policy.split(params)
    places = without_base(self._state_shardings)
    fresh = jax.jit(self._fresh_state, out_shardings=places)(trainable)
    return dataclasses.replace(fresh, frozen=fresh.frozen | rest)

  def params(self, state: TrainState) -> PyTree:
    """All parameters of the policy."""
    return self._policy.join(state.trainable, state.frozen)

  def reference(self, state: TrainState) -> PyTree:
    """All parameters of the reference policy."""
    return self._policy.join(state.frozen['reference'], state.frozen)

  def check(self, batch: TokenBatch) -> None:
    """Traces an update, so that what cannot run is refused before it must.

    Args:
      batch: gives an iteration's shapes.

    Raises:
      ValueError: from whichever part of the algorithm cannot work.
    """
    self.trace_update(batch)

  def trace_update(
    self, batch: TokenBatch, count: int | None = None
  ) -> jax.stages.Traced:
    """Traces an update for the shapes of an iteration's batch, arrays or not.

    Args:
      batch: of an iteration.
      count: rows of the update; one for each of its sequences unless given.
    """
    state, key = self.abstract_state(), abstract_key()
    count = count or self._config.train.sequences_per_update
    rows = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype),
      batch,
    )
    with self._mesh_in_use():
      first = jax.ShapeDtypeStruct((), bool)
      return self._update.trace(state, self._abstract(rows), first, key)

  def trace_score(self, batch: TokenBatch) -> jax.stages.Traced:
    """Traces the scoring of an iteration's batch, arrays or not."""
    params = self.params(self.abstract_state())
    # What is scored has not been scored by the reference either.
    batch = dataclasses.replace(batch, ref_logprobs=None)
    with self._mesh_in_use():
      return self._score.trace(params, self._abstract(batch))

  def compile(self, state: TrainState, batch: TokenBatch) -> None:
    """Compiles every program, `batch` giving an iteration's shapes."""
    train = self._config.train
    for count in sorted({train.sequences_per_update, train.packed_rows} - {0}):
      traced = self.trace_update(batch, count)
      self._updates_compiled[count] = traced.lower().compile()
    self._score_compiled = self.trace_score(batch).lower().compile()
    rows = self._first_rows(batch)
    key = jax.random.key(0)
    count = len(batch.tokens)
    self.advantages(np.zeros(count, np.float32), np.zeros(count, np.int32))
    self.select(state, rows, key)
    before = self.copy(state.trainable)
    if self._config.logging.entropy_change_every:
      self.entropy_change(before, state, rows)

  def update(
    self, state: TrainState, rows: TokenBatch, first: bool, key: Key[Array, '']
  ) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser update; the state given is used up."""
    count = self._config.train.packed_rows
    if count:
      rows = pack_if_fit(rows, length=rows.tokens.shape[1], count=count)
    run = self._updates_compiled.get(len(rows.tokens), self._update)
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
    reference = {'reference': self.copy(state.trainable)}
    return dataclasses.replace(state, frozen=state.frozen | reference)

  def copy(self, trainable: PyTree) -> PyTree:
    """Parameters that the next update will not use up."""
    return self._copy(trainable)

  def entropy_change(
    self, before: PyTree, state: TrainState, rows: TokenBatch
  ) -> dict[str, Any]:
    """What the update that led to a state did to its own tokens' entropy.

    Args:
      before: what was trainable before it.
      state: after it.
      rows: the update's.
    """
    with self._mesh_in_use():
      return self._entropy_change(
        before, state.trainable, state.frozen, self._place(rows)
      )

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

  def _fresh_state(self, trainable: PyTree) -> TrainState:
    return TrainState(
      trainable=trainable,
      frozen=self._frozen(trainable),
      opt_state=self._algorithm.tx.init(trainable),
      token_state=init_token_state(self._algorithm.token_tx),
      step=jnp.zeros((), jnp.int32),
      measured=Measured.nothing(),
    )

  def _frozen(self, trainable: PyTree) -> dict[str, PyTree]:
    if not self._config.train.keep_reference:
      return {}
    return {'reference': jax.tree.map(jnp.copy, trainable)}

  def _explain(
    self,
    token_state: PyTree,
    step: Array,
    rows: TokenBatch,
    key: Key[Array, ''],
  ) -> tuple[Selection, Array]:
    rows = weigh(rows, self._config.train.weights)
    stats = TokenStats(logprobs=rows.old_logprobs, entropy=rows.old_entropy)
    context = row_context(rows, stats, rows.old_moments, jnp.asarray(True))
    context |= TokenContext(
      score_weight=rows.advantages,
      step=step,
      key=key,
      entropy=mean_entropy(rows, rows.old_entropy),
    )
    covariance = token_covariance(
      rows.old_logprobs, rows.advantages, rows.loss_mask
    )
    signal, _ = jax.grad(self._algorithm.loss, has_aux=True)(stats, **context)
    chosen = explain(
      self._algorithm.token_tx,
      stats,
      signal=signal,
      token_state=token_state,
      **context,
    )
    nothing = Selection.of_mask(jnp.zeros_like(rows.loss_mask))
    return (chosen[0] if chosen else nothing), covariance
