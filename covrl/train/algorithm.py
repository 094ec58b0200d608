# SPDX-License-Identifier: Apache-2.0
"""The functions and gradient transformations of a recipe, and what they read."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import optax

from covrl.array_checks import check_scalar
from covrl.config import (
  CHANGEABLE_ON_RESUME,
  ConfigError,
  Recipe,
  recorded_reads,
)
from covrl.entropy.base import update_signal
from covrl.entropy.inspection import single_token
from covrl.objectives import LossAux
from covrl.objectives.base import check_aux
from covrl.train.networks.estimator import Estimator
from covrl.train.networks.network import Network
from covrl.train.rollout_batch import Advantages
from covrl.train.step import Loss
from covrl.types import TokenStats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
  """The functions and gradient transformations of a recipe.

  Attributes:
    loss: the policy loss.
    token_tx: the token chain.
    tx: the parameter chain.
    advantages: see `covrl.train.rollout_batch.Advantages`.
    networks: networks beside the policy by name.
    estimator: estimates advantages per token, in place of `advantages`; `None`
      without one.
  """

  loss: Loss
  token_tx: optax.GradientTransformation
  tx: optax.GradientTransformation
  advantages: Advantages
  networks: Mapping[str, Network] = dataclasses.field(default_factory=dict)
  estimator: Estimator | None = None

  @classmethod
  def from_recipe(cls, recipe: Recipe) -> Algorithm:
    """Builds the algorithm of a recipe.

    Raises:
      ConfigError: a function of the recipe returns a value of another type.
    """
    config = recipe.config
    return cls(
      loss=checked_loss(recipe.loss(config)),
      token_tx=_transformation('token_tx', recipe.token_tx(config)),
      tx=_transformation('tx', recipe.tx(config)),
      advantages=_function('advantages', recipe.advantages(config)),
      networks=recipe.networks(config),
      estimator=recipe.estimator(config),
    )


def recorded_algorithm(recipe: Recipe) -> tuple[Algorithm, list[str]]:
  """Builds the algorithm of a recipe, and lists fields that it may not depend on.

  These are fields that may change when a run is resumed: a schedule over
  `train.iterations`, for example, is another one when the run is extended.

  Returns:
    The algorithm, and the fields of that kind that the recipe's functions read.
  """
  with recorded_reads(recipe.config, counts_copies=False) as read:
    algorithm = Algorithm.from_recipe(recipe)
  return algorithm, sorted(
    name for name in read if name.startswith(CHANGEABLE_ON_RESUME)
  )


def warm_start_transformation(recipe: Recipe) -> optax.GradientTransformation:
  """Returns the parameter chain of a recipe's warm start.

  Raises:
    ConfigError: `warm_start_tx` does not return a gradient transformation.
  """
  return _transformation('warm_start_tx', recipe.warm_start_tx(recipe.config))


def checked_loss(loss: Any) -> Loss:
  """Wraps a policy loss with checks of its results, made when it is traced.

  Raises:
    ConfigError: it is not a function; or, when it is traced, does not return a
      pair with a `LossAux`.
    TypeError: when it is traced, an entry of the `LossAux` has another dtype.
    ValueError: when it is traced, its value is not a scalar, or an entry has
      another shape.
  """
  _function('loss', loss)

  @functools.wraps(loss)
  def checked(stats: TokenStats, **context: Any) -> Any:
    result = loss(stats, **context)
    match result:
      case (value, LossAux() as aux):
        check_scalar("the value of the recipe's loss", value)
        check_aux(aux, "the recipe's loss", stats)
        return result
      case _:
        raise ConfigError(
          "the recipe's loss must compute a scalar and a LossAux, got"
          f' {type(result).__name__}'
        )

  return checked


def reads_reference(algorithm: Algorithm) -> bool:
  """Returns whether an algorithm depends on the reference policy.

  Loss and token chain are traced on a single token and not computed; what cannot
  be traced there counts as dependent.
  """
  if algorithm.estimator is not None and algorithm.estimator.reads_reference:
    return True
  return _reads(algorithm, 'ref_logprobs')


def reads_moments(algorithm: Algorithm) -> bool:
  """Returns whether a loss or token chain reads moments of the policy.

  Both the current moments and those of the old policy count, since a decision on
  the statistics of the old policy receives its moments as `moments`. They are
  traced as in `reads_reference`.
  """
  return _reads(algorithm, 'moments', 'old_moments')


def _reads(algorithm: Algorithm, *entries: str) -> bool:
  """Returns whether loss or token chain depend on entries of the context."""
  stats, context = single_token()
  given_by_loss = ('score_weight', 'clipped')
  loss_context: dict[str, Any] = {
    name: value for name, value in context.items() if name not in given_by_loss
  }

  def run(inputs: dict[str, Any]) -> tuple[Any, Any]:
    values = loss_context | inputs
    (value, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **values
    )
    state = algorithm.token_tx.init(stats.template())
    return value, update_signal(
      algorithm.token_tx, signal, state, stats, **(values | aux.for_selection)
    )

  try:
    traced = jax.make_jaxpr(run)(
      {name: loss_context[name] for name in entries}
    ).jaxpr
  except Exception:
    return True
  variables = [*traced.outvars, *(x for eqn in traced.eqns for x in eqn.invars)]
  return any(
    variable is argument for variable in variables for argument in traced.invars
  )


def _function(name: str, value: Any) -> Any:
  """Returns `value`, which a recipe's `name` has returned; it must be callable."""
  if not callable(value):
    raise ConfigError(
      f"the recipe's {name} must return a function, got {value!r}"
    )
  return value


def _transformation(name: str, value: Any) -> optax.GradientTransformation:
  """Returns `value`, which a recipe's `name` has returned, checking its type."""
  if not isinstance(value, optax.GradientTransformation):
    raise ConfigError(
      f"the recipe's {name} must return an optax.GradientTransformation, got"
      f' {value!r}'
    )
  return value
