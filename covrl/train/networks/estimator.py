# SPDX-License-Identifier: Apache-2.0
"""Estimators of per-token advantages from rewards and networks' outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from covrl.array_checks import check_array, check_scalar
from covrl.types import Scalar, TokenBatch


class CreditInputs(NamedTuple):
  """Inputs of an estimate: all sequences of an iteration.

  Attributes:
    rows: one sequence per row, with the policy's statistics from before the
      updates, and the reference policy's if there is one.
    rewards: total reward of each sequence; of those without a score, whose mask
      is empty, it may be NaN.
    group_ids: sequences of the same prompt share an id.
    update_ids: index of the iteration's update that trains on each sequence.
    outputs: each network's output per token, computed before the network's
      updates of the iteration; after them if its `update` is 'before'.
  """

  rows: TokenBatch
  rewards: Float[Array, ' S']
  group_ids: Int[Array, ' S']
  update_ids: Int[Array, ' S']
  outputs: dict[str, Float[Array, 'S T']]


class Credit(NamedTuple):
  """Estimates for all sequences of an iteration.

  Attributes:
    advantages: advantage of each token, for the policy.
    network_targets: `TokenBatch.network_targets`, for the losses of networks.
    metrics: scalars, logged with every update of the iteration.
  """

  advantages: Float[Array, 'S T']
  network_targets: dict[str, Float[Array, 'S T']]
  metrics: dict[str, Scalar]


def checked_estimate(
  estimator: Estimator,
) -> Callable[[PyTree, CreditInputs], tuple[Credit, PyTree]]:
  """Wraps `Estimator.estimate` with checks of its results.

  Raises:
    TypeError: when it is traced, a result has a wrong type or dtype.
    ValueError: when it is traced, entries are missing, or shapes differ from those
      of the rows.
  """

  def estimate(state: PyTree, inputs: CreditInputs) -> tuple[Credit, PyTree]:
    result: Any = estimator.estimate(state, inputs)
    match result:
      case (Credit(), next_state):
        pass
      case _:
        raise TypeError(
          'an estimator must return Credit and its next state, got'
          f' {type(result).__name__}'
        )
    _check_state(state, next_state)
    network_targets = _checked_targets(
      estimator, result[0].network_targets, inputs
    )
    advantages = _per_token(
      'advantages', result[0].advantages, inputs.rows.loss_mask.shape
    )
    for name, value in result[0].metrics.items():
      check_scalar(f"the estimator's metric {name!r}", value)
    return result[0]._replace(
      advantages=advantages, network_targets=network_targets
    ), next_state

  return estimate


def checked_targets(
  estimator: Estimator,
) -> Callable[[CreditInputs], dict[str, Float[Array, 'S T']]]:
  """Wraps `Estimator.targets` with checks of its results."""

  def targets(inputs: CreditInputs) -> dict[str, Float[Array, 'S T']]:
    assert estimator.targets is not None
    return _checked_targets(estimator, estimator.targets(inputs), inputs)

  return targets


def _checked_targets(
  estimator: Estimator, targets: Any, inputs: CreditInputs
) -> dict[str, Float[Array, 'S T']]:
  """Checks entries of `TokenBatch.network_targets`; returns them in float32.

  Raises:
    TypeError: an entry is not of real numbers.
    ValueError: the names or shapes of the entries are not those required.
  """
  if not isinstance(targets, dict) or set(targets) != set(
    estimator.target_names
  ):
    names = sorted(targets) if isinstance(targets, dict) else type(targets)
    raise ValueError(
      "an estimator's network_targets must have the entries"
      f' {sorted(estimator.target_names)}, got {names}'
    )
  shape = inputs.rows.loss_mask.shape
  return {name: _per_token(name, x, shape) for name, x in targets.items()}


def _per_token(
  name: str, value: Any, shape: tuple[int, ...]
) -> Float[Array, 'S T']:
  """Checks an array of an estimator; returns it in float32."""
  check_array(f"the estimator's {name}", value, 'real', 'S T', shape)
  return jnp.asarray(value, jnp.float32)


def _check_state(before: PyTree, after: PyTree) -> None:
  """Checks that a state has the same structure, shapes and dtypes as before."""
  if _shapes_and_dtypes(before) != _shapes_and_dtypes(after):
    raise TypeError(
      "an estimator's next state must have the shapes and dtypes of the state"
      f' before, {_shapes_and_dtypes(before)}, got {_shapes_and_dtypes(after)}'
    )


def _shapes_and_dtypes(state: PyTree) -> PyTree:
  """Returns dtypes and shapes of a state's arrays, as texts."""
  return jax.tree.map(
    lambda x: f'{jnp.result_type(x)}{list(jnp.shape(x))}', state
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
  """Estimates advantages per token, in place of `Recipe.advantages`.

  Attributes:
    init: `() -> state`; scalars that are saved with the run.
    estimate: `(state, inputs) -> (credit, next state)`, a pure function.
    networks: names of the networks whose outputs it reads.
    output: the output that these must have; see `Network.output`.
    target_names: names of the entries of `Credit.network_targets`.
    reads_reference: whether it, or a network's loss, reads the reference
      policy's log-probabilities and the policy's own.
    targets: `inputs -> network targets`, all of them without any output, for
      networks that are updated before they are scored; `None` without such.
    config_sections: names of the config sections that it and its networks read.
  """

  init: Callable[[], PyTree]
  estimate: Callable[[PyTree, CreditInputs], tuple[Credit, PyTree]]
  networks: tuple[str, ...] = ()
  output: Literal['values', 'logprobs'] | None = None
  target_names: tuple[str, ...] = ()
  reads_reference: bool = False
  targets: Callable[[CreditInputs], dict[str, Float[Array, 'S T']]] | None = (
    None
  )
  config_sections: tuple[str, ...] = ()
