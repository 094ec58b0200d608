# SPDX-License-Identifier: Apache-2.0
"""PRIME's process reward model, and advantages from its implicit rewards."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from covrl.config import Config
from covrl.config.validation import check_section
from covrl.objectives import (
  calibration_error,
  implicit_rewards,
  outcome_cross_entropy,
  pair_accuracy,
  process_advantages,
)
from covrl.rewards import CORRECT_ABOVE
from covrl.statistics.exact import exact_mean, exact_sum
from covrl.train.networks.estimator import Credit, CreditInputs, Estimator
from covrl.train.networks.network import Network, network_tx
from covrl.types import Scalar, TokenBatch

# Name of the process reward model in a recipe's networks and in metrics.
PRM = 'prm'


def process_reward_model(
  config: Config, tx: optax.GradientTransformation | None = None
) -> Network:
  """A process reward model with the settings of `config.prime`.

  A language model that learns to classify responses as right or wrong: β times
  a response's log-probability relative to a reference is the logit of being right.
  A response is right if its reward is above 0.5.

  Metrics of an update, `NAME/before_update/…`, are means over its responses with
  the parameters before it, which have not learned from these responses unless an
  earlier update of the iteration was made on them: the share that is classified
  as right or wrong correctly (`accuracy`), the mean probability of being right
  (`probability`), and the share of right responses (`label`).

  Args:
    config: the run's configuration.
    tx: its parameter chain; AdamW with `prime.learning_rate`,
      `prime.weight_decay` and `prime.max_gradient_norm` by default.

  Raises:
    ConfigError: a field of `config.prime` is invalid.
  """
  check_section(config, 'prime')
  settings = config.prime
  tx = tx or network_tx(settings)

  def loss(
    logprobs: Float[Array, 'B T'], rows: TokenBatch
  ) -> tuple[Scalar, dict[str, Any]]:
    value, aux = outcome_cross_entropy(
      logprobs,
      ref_logprobs=_reference_logprobs(rows, config),
      labels=rows.network_targets['labels'],
      mask=rows.loss_mask,
      weights=rows.weights,
      segment_ids=rows.segment_ids,
      coefficient=settings.coefficient,
    )
    return value, {'scores': aux.scores}

  def metrics(
    logprobs: Float[Array, 'B T'], rows: TokenBatch, per_token: dict[str, Any]
  ) -> dict[str, Scalar]:
    del logprobs
    scores, labels = per_token['scores'], rows.network_targets['labels']
    total_weight = exact_sum(rows.weights, rows.loss_mask)

    def mean(values: Float[Array, 'B T']) -> Scalar:
      return exact_sum(rows.weights * values, rows.loss_mask) / total_weight

    is_known = jnp.where(jnp.isnan(scores) | jnp.isnan(labels), jnp.nan, 1)
    is_classified_correctly = (scores > 0) == (labels > 0)
    return {
      'before_update/accuracy': mean(is_classified_correctly * is_known),
      'before_update/probability': mean(jax.nn.sigmoid(scores)),
      'before_update/label': mean(labels),
    }

  return Network(
    output='logprobs',
    loss=loss,
    metrics=metrics,
    tx=tx,
    initial=settings.initial,
    weights='sequence-mean-token-mean',
    update=settings.update,
  )


def prime_advantages(config: Config, network: str = PRM) -> Estimator:
  """Advantages of process rewards and outcomes, with settings of `config.prime`.

  Process rewards are normalised, and advantages whitened, over all responses of
  the iteration. An iteration in which a process reward is not finite has
  advantages of NaN: its updates are skipped and counted. If all rewards of an
  iteration are equal, its advantages come from process rewards alone.

  Outcomes in the advantages are the rewards as they are, of any size and with
  penalties, of length for example; the model learns only whether they are above
  0.5.

  Metrics `NAME/scoring/…` are of the model that computes the process rewards of the
  iteration: with `prime.update=before` it has been trained on the same responses
  just before, with `'after'` it has not seen them. They are the share of
  `covrl.objectives.pair_accuracy`, the `calibration_error`, the mean sum of process
  rewards of a response (`reward`), and the largest return (`scale`).

  Args:
    config: the run's configuration.
    network: name of the process reward model in `Recipe.networks`.

  Raises:
    ConfigError: a field of `config.prime` is invalid.
  """
  check_section(config, 'prime')
  settings = config.prime

  def targets(inputs: CreditInputs) -> dict[str, Float[Array, 'S T']]:
    mask = inputs.rows.loss_mask
    is_correct = mask & (inputs.rewards > CORRECT_ABOVE)[:, None]
    return {'labels': is_correct.astype(jnp.float32)}

  def estimate(
    state: tuple[()], inputs: CreditInputs
  ) -> tuple[Credit, tuple[()]]:
    rows, mask = inputs.rows, inputs.rows.loss_mask
    process_rewards = implicit_rewards(
      inputs.outputs[network],
      _reference_logprobs(rows, config),
      mask,
      coefficient=settings.coefficient,
    )
    estimated = process_advantages(
      process_rewards,
      inputs.rewards,
      inputs.group_ids,
      mask,
      form=settings.form,
      normalise=settings.normalise,
      whiten=settings.whiten,
      process_coefficient=settings.process_coefficient,
      outcome_coefficient=settings.outcome_coefficient,
    )
    is_scored = jnp.any(mask, axis=1)
    scores = jnp.sum(process_rewards, axis=1)
    is_correct = is_scored & (inputs.rewards > CORRECT_ABOVE)
    metrics = {
      'pair_accuracy': pair_accuracy(scores, is_correct, inputs.group_ids),
      'calibration_error': calibration_error(
        jax.nn.sigmoid(scores), is_correct, is_scored
      ),
      'reward': exact_mean(scores, is_scored),
      'scale': estimated.scale,
    }
    return (
      Credit(
        estimated.advantages,
        targets(inputs),
        {f'{network}/scoring/{name}': value for name, value in metrics.items()},
      ),
      state,
    )

  return Estimator(
    init=lambda: (),
    estimate=estimate,
    networks=(network,),
    output='logprobs',
    target_names=('labels',),
    reads_reference=settings.reference == 'frozen',
    targets=targets,
    config_sections=('prime',),
  )


def _reference_logprobs(
  rows: TokenBatch, config: Config
) -> Float[Array, 'B T']:
  """Log-probabilities that process rewards are relative to."""
  if config.prime.reference == 'old':
    return rows.old_logprobs
  if rows.ref_logprobs is None:
    raise ValueError(
      "rows must have ref_logprobs with prime.reference = 'frozen', got None"
    )
  return rows.ref_logprobs
