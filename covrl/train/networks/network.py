# SPDX-License-Identifier: Apache-2.0
"""Second networks of a run: output, initial parameters, loss and parameter chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, get_args

import optax
from jaxtyping import Array, Float, PyTree

from covrl.config import CriticConfig, PrimeConfig
from covrl.models import Policy
from covrl.objectives import WeightMode
from covrl.train.forward import policy_stats
from covrl.types import Scalar, TokenBatch

Output = Literal['values', 'logprobs']
UpdateOrder = Literal['before', 'after']
PerToken = dict[str, Float[Array, 'B T']]

POLICY, RANDOM = 'policy', 'random'
"""Values of `Network.initial` other than a pretrained model."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
  """A network that is trained beside the policy, such as a critic.

  It reads the same rows as the policy, on the same mesh, and computes one number
  per token. An `Estimator` turns the numbers into advantages.

  Attributes:
    output: the number: 'values', a scalar from the hidden state before the
      token, or 'logprobs', the log-probability of the token, in nats.
    loss: `(output [B, T], rows) -> (Σ weights · loss, per-token results)`, with
      the rows' `weights` and the estimator's `network_targets`.
    metrics: `(output, rows, per-token results) -> scalars`, over all rows of an
      update.
    tx: the parameter chain.
    initial: 'policy' for the policy's parameters at the start of the run,
      'random', or a pretrained model: a directory or a name on the Hugging Face
      hub.
    weights: aggregation of the loss; see `covrl.token_weights`.
    update: 'before' makes an iteration's updates of the network before its rows
      are scored, with the estimator's `targets` as `network_targets`; 'after'
      makes each with the policy's update on the same rows.

  Raises:
    ValueError: an option is unknown, `initial` is not a name, `loss` or `metrics`
      is not a function, or the parameter chain is not an optax transformation.
  """

  output: Output
  loss: Callable[
    [Float[Array, 'B T'], TokenBatch], tuple[Scalar, dict[str, Any]]
  ]
  metrics: Callable[
    [Float[Array, 'B T'], TokenBatch, dict[str, Any]], dict[str, Scalar]
  ]
  tx: optax.GradientTransformation
  initial: str = POLICY
  weights: WeightMode = 'token-mean'
  update: UpdateOrder = 'after'

  def __post_init__(self) -> None:
    if self.output not in get_args(Output):
      raise ValueError(
        f'output must be one of {get_args(Output)}, got {self.output!r}'
      )
    if self.update not in get_args(UpdateOrder):
      raise ValueError(
        f'update must be one of {get_args(UpdateOrder)}, got {self.update!r}'
      )
    if not isinstance(self.tx, optax.GradientTransformation):
      raise ValueError(
        f'tx must be an optax.GradientTransformation, got {self.tx!r}'
      )
    if self.weights not in get_args(WeightMode):
      raise ValueError(
        f'weights must be one of {get_args(WeightMode)}, got {self.weights!r}'
      )
    for name, function in (('loss', self.loss), ('metrics', self.metrics)):
      if not callable(function):
        raise ValueError(f'{name} must be a function, got {function!r:.80}')
    if not isinstance(self.initial, str) or not self.initial.strip():
      raise ValueError(
        "initial must be 'policy', 'random' or a pretrained model, got"
        f' {self.initial!r:.80}'
      )


def network_tx(
  settings: CriticConfig | PrimeConfig,
) -> optax.GradientTransformation:
  """The default parameter chain of a network: gradient clipping, then AdamW."""
  return optax.chain(
    optax.clip_by_global_norm(settings.max_gradient_norm),
    optax.adamw(
      settings.learning_rate, b2=0.999, weight_decay=settings.weight_decay
    ),
  )


def network_output(
  output: Output,
  model: Policy,
  params: PyTree,
  rows: TokenBatch,
  temperature: float,
  first_column: int,
) -> Float[Array, 'B T']:
  """Runs a network on rows of tokens.

  Args:
    output: see `Network`.
    model: the model of the network.
    params: the parameters.
    rows: rows of tokens.
    temperature: sampling temperature of log-probabilities.
    first_column: see `covrl.train.forward.forward`.
  """
  # A network other than the policy routes tokens by its own router.
  rows = dataclasses.replace(rows, experts=None)
  if output == 'logprobs':
    stats, _ = policy_stats(
      model, params, rows, temperature, first_column, moments=False
    )
    return stats.logprobs
  hidden, _ = model.hidden_and_routing(
    params,
    rows.tokens,
    positions=rows.positions,
    segment_ids=rows.segment_ids,
    one_sequence=first_column > 0,
  )
  return model.values(params, hidden)
