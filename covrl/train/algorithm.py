# SPDX-License-Identifier: Apache-2.0
"""The functions and gradient transformations that a recipe trains with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import optax

from covrl.config import Recipe
from covrl.train.networks.estimator import Estimator
from covrl.train.networks.network import Network
from covrl.train.rollout_batch import Advantages
from covrl.train.step import Loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class Algorithm:
  """The functions and gradient transformations of a recipe.

  Attributes:
    loss: the policy loss.
    token_tx: the token chain.
    tx: the parameter chain.
    advantages: see `covrl.train.rollout_batch.Advantages`.
    networks: second networks by name.
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
    """Builds the algorithm of a recipe."""
    config = recipe.config
    return cls(
      loss=recipe.loss(config),
      token_tx=recipe.token_tx(config),
      tx=recipe.tx(config),
      advantages=recipe.advantages(config),
      networks=recipe.networks(config),
      estimator=recipe.estimator(config),
    )
