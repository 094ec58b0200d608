# SPDX-License-Identifier: Apache-2.0
"""The optimiser update, as one pure function of state and batch.

  tokens → statistics → loss's cotangents → token chain → pull-back
         → parameter chain

What the token chain selects is decided once for the whole optimiser batch; each
micro-batch is then one forward, loss, token chain with that decision, and
pull-back. The chain's state advances once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Key, PyTree

from covrl.entropy import Plan, exact_quantile
from covrl.entropy.base import update_signal
from covrl.models import Policy, Routing, load_balance
from covrl.train import metrics
from covrl.train.forward import (
  Metrics,
  Outputs,
  PolicyStats,
  mean_entropy,
  outputs,
  row_context,
  weigh,
)
from covrl.train.microbatch import in_parts
from covrl.types import (
  Measured,
  Scalar,
  TokenBatch,
  TokenContext,
  TokenStats,
  TrainState,
)

Loss = Callable[..., tuple[Scalar, Any]]
TrainStep = Callable[
  [TrainState, TokenBatch, Bool[Array, ''], Key[Array, '']],
  tuple[TrainState, Metrics],
]

# How far two programs may differ on unchanged parameters before the penalty
# takes it for movement: this quantile of what was measured.
NOISE_QUANTILE = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
  """Static choices of the update.

  Attributes:
    temperature: at which the policy's statistics are taken.
    micro_batches: parts of an optimiser batch.
    weights: aggregation; see `token_weights`.
    selection_source: `'old'` or `'current'`; with several micro-batches the
      latter costs one more forward.
    balance: coefficient of the load-balancing loss of a mixture of experts;
      with several micro-batches any but 0 costs one more forward, which is
      that of `'current'`.
    offload_optimizer: whether the parameter chain's state comes from the host's
      memory, and is fetched for the update.
  """

  temperature: float = 1.0
  micro_batches: int = 1
  weights: str = 'token-mean'
  selection_source: str = 'old'
  balance: float = 0.0
  offload_optimizer: bool = False


def make_train_step(
  policy: Policy,
  loss: Loss,
  token_tx: optax.GradientTransformation,
  tx: optax.GradientTransformation,
  settings: StepSettings,
) -> TrainStep:
  """Builds the update.

  Args:
    policy: what is trained.
    loss: `(stats, **context) -> (value, LossAux)`.
    token_tx: the token chain, on cotangents of `TokenStats`.
    tx: the parameter chain.
    settings: static choices.

  Returns:
    `(state, batch, first, key) -> (state, metrics)`, to be jitted. `first`
    says that the parameters have not changed since the rollout: the batch's
    own statistics then stand in for `old_logprobs`, so that every ratio is
    exactly 1. `key` is the run's.
  """

  is_current = settings.selection_source == 'current'
  is_balanced = settings.balance > 0 and policy.config.experts is not None
  # What a decision about the whole batch needs is read before any part of it.
  reads_ahead = is_current or (is_balanced and settings.micro_batches > 1)

  def update(
    state: TrainState,
    batch: TokenBatch,
    first: Bool[Array, ''],
    key: Key[Array, ''],
  ) -> tuple[TrainState, Metrics]:
    def forward(trainable: PyTree, rows: TokenBatch) -> Outputs:
      params = policy.join(trainable, state.frozen)
      return outputs(policy, params, rows, settings.temperature)

    batch = weigh(batch, settings.weights)
    shared = _shared_context(state, batch, first, key)
    stats = TokenStats(logprobs=batch.old_logprobs, entropy=batch.old_entropy)
    source, whole = (stats, batch.old_moments), None
    if reads_ahead:
      whole, current = in_parts(
        lambda rows: _apart(forward(state.trainable, rows)),
        batch,
        settings.micro_batches,
      )
      source = current if is_current else source
    plan, token_state = _decide(source, batch, state.token_state, shared, first)

    def part(
      given: tuple[TokenBatch, list[Any]],
    ) -> tuple[
      tuple[PyTree, Scalar, Routing | None],
      metrics.TokenReadings,
    ]:
      rows, decisions = given

      def differentiated(
        trainable: PyTree,
      ) -> tuple[tuple[TokenStats, Scalar | None], Outputs]:
        found, balance = forward(trainable, rows), None
        if is_balanced and found.routing is not None:
          balance = load_balance(found.routing.mass, whole or found.routing)
        return (found.stats, balance), found

      (stats, balance), pull_back, found = jax.vjp(
        differentiated, state.trainable, has_aux=True
      )
      moments, routing = found.moments, found.routing
      context = row_context(rows, stats, moments, first) | shared
      (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
        stats, **context
      )
      edited, _ = update_signal(
        token_tx,
        signal,
        state.token_state,
        stats,
        **(context | aux.for_selection | {'plan': Plan(decisions)}),
      )
      pulled = None if balance is None else jnp.asarray(settings.balance)
      (gradients,) = pull_back((edited, pulled))
      gradients = jax.tree.map(lambda g: g.astype(_wide(g)), gradients)
      return (gradients, value, routing), metrics.TokenReadings(
        stats=stats,
        moments=moments,
        log_ratio=aux.log_ratio,
        score_weight=aux.score_weight,
        clipped=aux.clipped,
        signal=signal,
        edited=edited,
      )

    (gradients, value, routing), tokens = in_parts(
      part, (batch, plan.decisions), settings.micro_batches
    )
    measured = _measure(state.measured, batch, tokens.stats, first)
    if settings.offload_optimizer:
      state = dataclasses.replace(state, opt_state=_fetched(state.opt_state))
    new_state, applied = _apply(tx, state, gradients, token_state, measured)
    readings = metrics.of_update(batch, tokens, plan, token_state)
    readings |= {
      'loss': value,
      'gradient_norm': optax.tree.norm(gradients),
      'skipped': 1.0 - applied,
      'log_ratio_noise': new_state.measured.log_ratio_noise,
      'entropy_moved': measured.entropy_moved,
    }
    if routing is not None:
      readings |= metrics.of_routing(routing)
    return new_state, readings

  def _decide(
    source: PolicyStats,
    batch: TokenBatch,
    token_state: PyTree,
    shared: TokenContext,
    first: Bool[Array, ''],
  ) -> tuple[Plan, PyTree]:
    """Runs the chain on the whole batch, for its decisions and next state."""
    plan = Plan()
    stand_in = first if is_current else jnp.asarray(False)
    stats, moments = source
    context = row_context(batch, stats, moments, stand_in) | shared
    (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
    context = context | aux.for_selection | {'plan': plan}
    _, token_state = update_signal(
      token_tx, signal, token_state, stats, **context
    )
    return plan, token_state

  return update


def _apart(found: Outputs) -> tuple[Routing | None, PolicyStats]:
  """What is added up over the parts of a batch, and what is joined."""
  return found.routing, found[:2]


def _shared_context(
  state: TrainState,
  batch: TokenBatch,
  first: Bool[Array, ''],
  key: Key[Array, ''],
) -> TokenContext:
  """Context entries that are the same for every micro-batch."""
  measured = state.measured
  moved = jnp.where(first, 0, measured.entropy_moved)
  return TokenContext(
    step=state.step,
    key=key,
    entropy=mean_entropy(batch, batch.old_entropy) + moved,
    entropy_change=measured.entropy_change,
    log_ratio_noise=measured.log_ratio_noise,
  )


def _measure(
  before: Measured,
  batch: TokenBatch,
  stats: TokenStats,
  first: Bool[Array, ''],
) -> Measured:
  """What the forward shows of the updates that the rollout has seen so far.

  On a rollout's first update there are none: the difference to the old
  statistics is rounding, and what the last update did to its own tokens was
  never seen.
  """
  noise = exact_quantile(
    jnp.abs(stats.logprobs - batch.old_logprobs),
    batch.loss_mask,
    NOISE_QUANTILE,
  )
  moved = mean_entropy(batch, stats.entropy - batch.old_entropy)
  return Measured(
    log_ratio_noise=jnp.where(first, noise, before.log_ratio_noise),
    entropy_moved=jnp.where(first, 0, moved),
    entropy_change=jnp.where(first, jnp.nan, moved - before.entropy_moved),
  )


def _apply(
  tx: optax.GradientTransformation,
  state: TrainState,
  gradients: PyTree,
  token_state: PyTree,
  measured: Measured,
) -> tuple[TrainState, Scalar]:
  """Applies the gradients, or skips the update if one is not finite."""
  finite = jnp.isfinite(optax.tree.norm(gradients))
  gradients = jax.tree.map(
    lambda g, p: g.astype(p.dtype), gradients, state.trainable
  )
  updates, opt_state = tx.update(gradients, state.opt_state, state.trainable)
  updated = (
    optax.apply_updates(state.trainable, updates),
    opt_state,
    token_state,
    measured,
  )
  kept = (
    state.trainable,
    state.opt_state,
    state.token_state,
    state.measured,
  )
  trainable, opt_state, token_state, measured = jax.tree.map(
    lambda new, old: jnp.where(finite, new, old), updated, kept
  )
  return (
    dataclasses.replace(
      state,
      trainable=trainable,
      opt_state=opt_state,
      token_state=token_state,
      step=state.step + 1,
      measured=measured,
    ),
    finite.astype(jnp.float32),
  )


def _fetched(opt_state: PyTree) -> PyTree:
  """The state where it can be computed with."""
  return jax.tree.map(
    lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), opt_state
  )


def _wide(array: Array) -> jnp.dtype:
  """Gradients are summed in float32 at least."""
  return jnp.promote_types(array.dtype, jnp.float32)
