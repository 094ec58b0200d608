# SPDX-License-Identifier: Apache-2.0
"""Update and scoring of a network beside the policy, as pure functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from covrl.array_checks import check_scalar
from covrl.models import Policy
from covrl.train.apply import (
  accumulator_dtype,
  run_chain,
  to_device,
)
from covrl.train.forward import Metrics, apply_token_weights
from covrl.train.microbatch import over_micro_batches
from covrl.train.networks.network import Network, network_output
from covrl.train.step import StepSettings
from covrl.types import NetworkState, Scalar, TokenBatch

# Metrics of every network's update.
_COMMON_METRICS = {'loss', 'gradient_norm', 'skipped'}

NetworkStep = Callable[[NetworkState, TokenBatch], tuple[NetworkState, Metrics]]


def make_network_step(
  network: Network, model: Policy, settings: StepSettings
) -> NetworkStep:
  """Builds the update of a network.

  An update whose gradient or parameters would not be finite, or that has no
  token to train on, changes nothing.

  Args:
    network: the network.
    model: the model of the network.
    settings: static settings of the policy's update.

  Returns:
    `(state, rows) -> (state, metrics)`, to be jitted.
  """

  def update(
    state: NetworkState, batch: TokenBatch
  ) -> tuple[NetworkState, Metrics]:
    batch = apply_token_weights(batch, network.weights, settings.max_length)

    def loss(
      params: PyTree, rows: TokenBatch
    ) -> tuple[Scalar, tuple[Float[Array, 'B T'], dict[str, Any]]]:
      output = network_output(
        network.output,
        model,
        params,
        rows,
        settings.temperature,
        settings.first_column,
      )
      value, per_token = checked_loss(network, output, rows)
      return value, jax.lax.stop_gradient((output, per_token))

    def run_micro_batch(
      rows: TokenBatch,
    ) -> tuple[
      tuple[PyTree, Scalar], tuple[Float[Array, 'B T'], dict[str, Any]]
    ]:
      (value, per_token), gradients = jax.value_and_grad(loss, has_aux=True)(
        state.params, rows
      )
      gradients = jax.tree.map(
        lambda g: g.astype(accumulator_dtype(g)), gradients
      )
      return (gradients, value), per_token

    (gradients, value), (output, per_token) = over_micro_batches(
      run_micro_batch, batch, settings.micro_batches
    )
    has_tokens = jnp.any(batch.loss_mask)
    opt_state = state.opt_state
    if settings.offload_optimizer:
      opt_state = to_device(opt_state)
    norm = optax.tree.norm(gradients)
    gradients = jax.tree.map(
      lambda g, p: g.astype(p.dtype), gradients, state.params
    )
    params, next_opt_state, is_valid = run_chain(
      network.tx, gradients, opt_state, state.params, value
    )
    finite = jnp.isfinite(value) & jnp.isfinite(norm) & is_valid
    old_state = NetworkState(params=state.params, opt_state=opt_state)
    new = NetworkState(params=params, opt_state=next_opt_state)
    next_state = jax.tree.map(
      lambda new, old: jnp.where(finite & has_tokens, new, old), new, old_state
    )
    return next_state, {
      'loss': jnp.where(has_tokens, value, jnp.nan),
      'gradient_norm': jnp.where(has_tokens, norm, jnp.nan),
      'skipped': jnp.where(finite, 0.0, 1.0),
      **_checked_metrics(network, output, batch, per_token),
    }

  return update


def checked_loss(
  network: Network, output: Float[Array, 'B T'], rows: TokenBatch
) -> tuple[Scalar, dict[str, Any]]:
  """Computes a network's loss, and checks the types of the results."""
  match network.loss(output, rows):
    case (value, dict() as per_token):
      check_scalar("the value of a network's loss", value)
      return value, per_token
    case result:
      raise TypeError(
        "a network's loss must compute a scalar and a dict of arrays, got"
        f' {type(result).__name__}'
      )


def _checked_metrics(
  network: Network,
  output: Float[Array, 'B T'],
  batch: TokenBatch,
  per_token: dict[str, Any],
) -> dict[str, Scalar]:
  """Computes a network's metrics, and checks their names and types."""
  result: Any = network.metrics(output, batch, per_token)
  if not isinstance(result, dict) or _COMMON_METRICS & set(result):
    actual = (
      sorted(result) if isinstance(result, dict) else type(result).__name__
    )
    raise TypeError(
      "a network's metrics must be a dict of scalars by names other than"
      f' {", ".join(sorted(_COMMON_METRICS))}, got {actual}'
    )
  for name, value in result.items():
    check_scalar(f"a network's metric {name!r}", value)
  return result


def make_network_score(
  network: Network, model: Policy, settings: StepSettings, micro_batches: int
) -> Callable[[PyTree, TokenBatch], Float[Array, 'S T']]:
  """Builds the program that runs a network on an iteration's rows.

  Args:
    network: the network.
    model: the model of the network.
    settings: static settings of the policy's update.
    micro_batches: micro-batches of all rows of the iteration.

  Returns:
    `(params, rows) -> output [S, T]`.
  """

  def score(params: PyTree, batch: TokenBatch) -> Float[Array, 'S T']:
    def run(rows: TokenBatch) -> tuple[tuple[()], Float[Array, 'B T']]:
      return (), network_output(
        network.output,
        model,
        params,
        rows,
        settings.temperature,
        settings.first_column,
      )

    return over_micro_batches(run, batch, micro_batches)[1]

  return score
