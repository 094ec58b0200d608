# SPDX-License-Identifier: Apache-2.0
"""The optimiser update as one pure function of state and batch.

  tokens → statistics → loss's cotangents → token chain → pull-back
         → parameter chain

The token chain takes its decisions once for the whole optimiser batch; each
micro-batch is then one forward, loss, token chain with those decisions, and
pull-back. The chain's state advances once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, Key, PyTree

from covrl.entropy import (
  DecisionCache,
  exact_mean,
  exact_quantile,
  selection_sources,
)
from covrl.entropy.base import update_signal
from covrl.models import Policy, RoutingStats, load_balancing_loss
from covrl.objectives import WeightMode
from covrl.statistics import NO_TRUNCATION, Truncation
from covrl.train import metrics
from covrl.train.apply import (
  accumulator_dtype,
  apply_gradients,
  to_device,
)
from covrl.train.forward import (
  ForwardOutputs,
  Metrics,
  PolicyStats,
  apply_token_weights,
  forward,
  mean_entropy,
  old_stats,
  row_context,
  with_old_stats,
)
from covrl.train.microbatch import over_micro_batches
from covrl.types import (
  Scalar,
  TokenBatch,
  TokenContext,
  TokenStats,
  TrainState,
  UpdateMeasurements,
)

Loss = Callable[..., tuple[Scalar, Any]]
# Outputs, pull-back of their cotangents, and the outputs that are not
# differentiated.
Differentiated = tuple[
  tuple[TokenStats, Scalar | None], Callable[..., Any], ForwardOutputs
]
TrainStep = Callable[
  [TrainState, TokenBatch, Bool[Array, ''], Key[Array, '']],
  tuple[TrainState, Metrics],
]

# The dead zone of penalties is this quantile of the measured difference between
# the scoring and the training program on unchanged parameters.
NOISE_QUANTILE = 0.99


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepSettings:
  """Static settings of the update.

  Attributes:
    temperature: sampling temperature of the policy's statistics.
    first_column: no token of the loss is predicted in the columns before it,
      whose statistics are not computed.
    micro_batches: number of micro-batches of an optimiser batch.
    weights: aggregation; see `token_weights`.
    max_length: longest response in tokens, by which 'constant-length' divides.
    has_old_stats: whether rows hold the policy's statistics from before the rollout's
      first update. If not, every update is its rollout's only one, and its own
      statistics take their place.
    balance: coefficient of the load-balancing loss of a mixture of experts; with
      several micro-batches any but 0 costs one more forward, which a chain that
      selects on current statistics shares.
    offload_optimizer: whether the parameter chain's state is in host memory and
      is copied to the device for the update.
    truncation: truncated policies whose statistics the token chain reads.
    reads_moments: whether loss or token chain read moments of the policy.
    diagnostics_every: updates between metrics of the distribution of the
      covariances and of predicted entropy changes; 0 for none. Between them they
      are NaN, and moments are not computed unless something reads them.
  """

  temperature: float = 1.0
  first_column: int = 0
  micro_batches: int = 1
  weights: WeightMode = 'token-mean'
  max_length: int = 1
  has_old_stats: bool = True
  balance: float = 0.0
  offload_optimizer: bool = False
  truncation: Truncation = NO_TRUNCATION
  reads_moments: bool = True
  diagnostics_every: int = 1

  def has_diagnostics(self, step: Int[Array, '']) -> bool | Bool[Array, '']:
    """Whether the update after `step` others has diagnostics."""
    if self.diagnostics_every in (0, 1):
      return self.diagnostics_every == 1
    return step % self.diagnostics_every == 0


def make_train_step(
  policy: Policy,
  loss: Loss,
  token_tx: optax.GradientTransformation,
  tx: optax.GradientTransformation,
  settings: StepSettings,
) -> TrainStep:
  """Builds the update.

  A token chain with selectors of `selection_source='current'` decides on the
  current statistics of the whole batch, which takes one more forward if there
  are several micro-batches; other chains decide on the old statistics.

  Args:
    policy: the policy to train.
    loss: `(stats, **context) -> (value, LossAux)`.
    token_tx: the token chain, on cotangents of `TokenStats`.
    tx: the parameter chain.
    settings: static settings.

  Returns:
    `(state, batch, first, key) -> (state, metrics)`, to be jitted. `first` is
    true if the parameters have not changed since the rollout: the batch's own
    statistics then replace `old_logprobs`, so that every ratio is exactly 1.
    `key` is the PRNG key of the run.
  """
  is_balanced = settings.balance > 0 and policy.config.experts is not None

  def update(
    state: TrainState,
    batch: TokenBatch,
    first: Bool[Array, ''],
    key: Key[Array, ''],
  ) -> tuple[TrainState, Metrics]:
    has_diagnostics = settings.has_diagnostics(state.step)

    def run_forward(
      trainable: PyTree,
      rows: TokenBatch,
      moments: bool | Bool[Array, ''] = settings.reads_moments,
    ) -> ForwardOutputs:
      params = policy.join(trainable, state.frozen)
      return forward(
        policy,
        params,
        rows,
        settings.temperature,
        settings.first_column,
        settings.truncation,
        moments=moments,
      )

    def differentiate(
      rows: TokenBatch, routing_sums: RoutingStats | None
    ) -> Differentiated:
      def run(
        trainable: PyTree,
      ) -> tuple[tuple[TokenStats, Scalar | None], ForwardOutputs]:
        moments = settings.reads_moments or has_diagnostics
        outputs, balance = run_forward(trainable, rows, moments), None
        if is_balanced and outputs.routing is not None:
          sums = routing_sums or outputs.routing
          balance = load_balancing_loss(outputs.routing.mass, sums)
        return (outputs.stats, balance), outputs

      return jax.vjp(run, state.trainable, has_aux=True)

    batch = apply_token_weights(batch, settings.weights, settings.max_length)
    if not settings.has_old_stats:
      first = jnp.asarray(True)
    selects_on_current = not settings.has_old_stats or _selects_on_current(
      token_tx,
      state.token_state,
      batch,
      old_stats(batch, settings.truncation),
      _shared_context(state, batch, first, key),
    )
    # A single micro-batch is differentiated once, before the decisions.
    whole_batch, routing_sums, current_stats = None, None, None
    if settings.micro_batches == 1:
      whole_batch = differentiate(batch, None)
      current_stats = whole_batch[2].stats, whole_batch[2].moments
    elif selects_on_current or is_balanced:
      routing_sums, current_stats = over_micro_batches(
        lambda rows: _routing_and_stats(run_forward(state.trainable, rows)),
        batch,
        settings.micro_batches,
      )
    if current_stats is not None and not settings.has_old_stats:
      batch = with_old_stats(batch, current_stats)
    decision_stats = old_stats(batch, settings.truncation)
    if current_stats is not None and selects_on_current:
      decision_stats = current_stats
    shared_context = _shared_context(state, batch, first, key)
    # At a rollout's first update the current statistics are also the old ones.
    replaces_old = first if selects_on_current else jnp.asarray(False)
    context = row_context(batch, *decision_stats, replaces_old) | shared_context
    decisions, token_state = _decide(
      loss, token_tx, state.token_state, decision_stats[0], context
    )

    def run_micro_batch(
      inputs: tuple[TokenBatch, dict[str, Any]],
    ) -> tuple[
      tuple[PyTree, Scalar, RoutingStats | None],
      metrics.PerTokenValues,
    ]:
      rows, recorded_decisions = inputs
      (stats, balance), pull_back, outputs = whole_batch or differentiate(
        rows, routing_sums
      )
      context = (
        row_context(rows, stats, outputs.moments, first) | shared_context
      )
      (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
        stats, **context
      )
      context = context | aux.for_selection
      context['decisions'] = DecisionCache(recorded_decisions)
      edited, _ = update_signal(
        token_tx, signal, state.token_state, stats, **context
      )
      balance_cotangent = (
        None if balance is None else jnp.asarray(settings.balance)
      )
      (gradients,) = pull_back((edited, balance_cotangent))
      gradients = jax.tree.map(
        lambda g: g.astype(accumulator_dtype(g)), gradients
      )
      return (gradients, value, outputs.routing), metrics.PerTokenValues(
        stats=stats,
        moments=outputs.moments,
        log_ratio=aux.log_ratio,
        score_weight=aux.score_weight,
        clipped=aux.clipped,
        signal=signal,
        edited=edited,
      )

    (gradients, value, routing), tokens = over_micro_batches(
      run_micro_batch, (batch, decisions), settings.micro_batches
    )
    measurements = _measure(state.last_update, batch, tokens.stats, first)
    has_tokens = jnp.any(batch.loss_mask)
    if settings.offload_optimizer:
      state = dataclasses.replace(state, opt_state=to_device(state.opt_state))
    new_state, finite = apply_gradients(
      tx, state, gradients, token_state, measurements, has_tokens, value
    )
    step_metrics = metrics.update_metrics(batch, tokens, decisions, token_state)
    step_metrics |= metrics.diagnostics(batch, tokens, has_diagnostics)
    step_metrics |= {
      'loss': jnp.where(has_tokens, value, jnp.nan),
      'gradient_norm': jnp.where(
        has_tokens, optax.tree.norm(gradients), jnp.nan
      ),
      'skipped': 1.0 - finite,
      'log_ratio_noise': new_state.last_update.log_ratio_noise,
      'entropy_change_since_rollout': measurements.entropy_change_since_rollout,
    }
    if not settings.has_old_stats:
      step_metrics |= metrics.sampler_metrics(batch)
    if routing is not None:
      step_metrics |= metrics.routing_metrics(routing)
    return new_state, step_metrics

  return update


def _selects_on_current(
  token_tx: optax.GradientTransformation,
  token_state: PyTree,
  batch: TokenBatch,
  old: PolicyStats,
  shared_context: TokenContext,
) -> bool:
  """Whether a selector of the token chain reads current statistics."""
  context = row_context(batch, *old, jnp.asarray(False)) | shared_context
  # Arrays in place of the loss's: the chain is traced and not computed.
  context['score_weight'] = batch.advantages
  context['clipped'] = batch.loss_mask
  sources = selection_sources(
    token_tx, old[0], token_state=token_state, **context
  )
  return 'current' in sources


def _decide(
  loss: Loss,
  token_tx: optax.GradientTransformation,
  token_state: PyTree,
  stats: TokenStats,
  context: TokenContext,
) -> tuple[dict[str, Any], PyTree]:
  """Runs the chain on the whole batch, for its decisions and next state."""
  cache = DecisionCache()
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
  context = context | aux.for_selection
  context['decisions'] = cache
  _, token_state = update_signal(
    token_tx, signal, token_state, stats, **context
  )
  return cache.decisions, token_state


def _routing_and_stats(
  outputs: ForwardOutputs,
) -> tuple[RoutingStats | None, PolicyStats]:
  """Outputs that are summed over micro-batches, and outputs of each token."""
  return outputs.routing, (outputs.stats, outputs.moments)


def _shared_context(
  state: TrainState,
  batch: TokenBatch,
  first: Bool[Array, ''],
  key: Key[Array, ''],
) -> TokenContext:
  """Context entries that all micro-batches share."""
  last = state.last_update
  entropy_since_rollout = jnp.where(first, 0, last.entropy_change_since_rollout)
  return TokenContext(
    step=state.step,
    key=key,
    entropy=mean_entropy(batch, batch.old_entropy) + entropy_since_rollout,
    entropy_change=last.entropy_change,
    log_ratio_noise=last.log_ratio_noise,
  )


def _measure(
  previous: UpdateMeasurements,
  batch: TokenBatch,
  stats: TokenStats,
  first: Bool[Array, ''],
) -> UpdateMeasurements:
  """Measures the effect of the earlier updates on this rollout.

  A rollout's first update has no earlier ones: differences to the old statistics
  are rounding, and the effect of the last update was not measured.
  """
  noise = exact_quantile(
    jnp.abs(stats.logprobs - batch.old_logprobs),
    batch.loss_mask,
    NOISE_QUANTILE,
  )
  entropy_since_rollout = mean_entropy(batch, stats.entropy - batch.old_entropy)
  return UpdateMeasurements(
    log_ratio_noise=jnp.where(first, noise, previous.log_ratio_noise),
    entropy_change_since_rollout=jnp.where(first, 0, entropy_since_rollout),
    entropy_change=jnp.where(
      first,
      jnp.nan,
      entropy_since_rollout - previous.entropy_change_since_rollout,
    ),
  )


def advance_step(
  step: Int[Array, ''], batch: TokenBatch
) -> tuple[Int[Array, ''], Metrics]:
  """Advances the step of a policy that is fixed.

  Args:
    step: optimiser updates so far.
    batch: rows of an optimiser batch, with the policy's statistics.

  Returns:
    The next step, and the metrics that an update without a loss has.
  """
  tokens = jnp.sum(batch.loss_mask, dtype=jnp.float32)
  return step + 1, {
    'entropy': exact_mean(batch.old_entropy, batch.loss_mask),
    'tokens': tokens,
    'loss': jnp.full((), jnp.nan),
    'gradient_norm': jnp.full((), jnp.nan),
    'skipped': jnp.zeros(()),
    'policy_fixed': jnp.ones(()),
  }
