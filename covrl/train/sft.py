# SPDX-License-Identifier: Apache-2.0
"""The warm start's update: imitate solved examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PyTree

from covrl.models import Policy
from covrl.statistics import token_stats
from covrl.types import Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedBatch:
  """Rows to imitate; see `covrl.data.TokenRows`."""

  tokens: Int[Array, 'B T']
  targets: Int[Array, 'B T']
  loss_mask: Bool[Array, 'B T']
  positions: Int[Array, 'B T']
  segment_ids: Int[Array, 'B T']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedState:
  """Parameters and optimiser state of the warm start."""

  params: PyTree
  opt_state: PyTree
  step: Int[Array, '']


def make_supervised_step(
  policy: Policy, tx: optax.GradientTransformation
) -> Callable[
  [SupervisedState, SupervisedBatch], tuple[SupervisedState, dict[str, Scalar]]
]:
  """Builds one update on the mean cross-entropy of the response tokens."""

  def loss(params: PyTree, batch: SupervisedBatch) -> tuple[Scalar, Scalar]:
    hidden = policy.hidden(
      params,
      batch.tokens,
      positions=batch.positions,
      segment_ids=batch.segment_ids,
    )
    stats = token_stats(
      hidden,
      policy.unembedding(params),
      batch.targets,
      soft_cap=policy.config.logit_soft_cap,
    )
    count = jnp.maximum(jnp.sum(batch.loss_mask), 1)

    def mean(values: Array) -> Scalar:
      return jnp.sum(jnp.where(batch.loss_mask, values, 0)) / count

    return -mean(stats.logprobs), mean(stats.entropy)

  def update(
    state: SupervisedState, batch: SupervisedBatch
  ) -> tuple[SupervisedState, dict[str, Scalar]]:
    (value, entropy), gradients = jax.value_and_grad(loss, has_aux=True)(
      state.params, batch
    )
    updates, opt_state = tx.update(gradients, state.opt_state, state.params)
    new_state = SupervisedState(
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      step=state.step + 1,
    )
    readings = {
      'loss': value,
      'entropy': entropy,
      'gradient_norm': optax.tree.norm(gradients),
    }
    return new_state, readings

  return update
