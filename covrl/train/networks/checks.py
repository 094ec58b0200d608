# SPDX-License-Identifier: Apache-2.0
"""Checks that a recipe's networks, estimator and fields belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covrl.config import Config, ConfigError, CriticConfig, flatten
from covrl.train.networks.estimator import Estimator
from covrl.train.networks.network import Network


def check_networks(networks: Any, estimator: Any, config: Config) -> None:
  """Checks what a recipe's `networks` and `estimator` return.

  Args:
    networks: the networks by name.
    estimator: the estimator; `None` without one.
    config: the run's configuration.

  Raises:
    ConfigError: a type is another one, a network is missing or has no effect,
      or a field has no effect.
  """
  if not isinstance(networks, Mapping) or not all(
    isinstance(each, Network) for each in networks.values()
  ):
    raise ConfigError(
      f"the recipe's networks must map names to Network objects, got {networks!r}"
    )
  for name in networks:
    if not name.isidentifier():
      raise ConfigError(
        f'the name of a network must be an identifier, got {name!r}'
      )
  if estimator is not None and not isinstance(estimator, Estimator):
    raise ConfigError(
      f"the recipe's estimator must be an Estimator or None, got {estimator!r}"
    )
  read = () if estimator is None else estimator.networks
  if missing := [name for name in read if name not in networks]:
    raise ConfigError(
      f"the recipe's estimator reads the network {missing[0]!r}, which must be"
      f" among the recipe's networks, got {_listed(networks)}"
    )
  if unread := [name for name in networks if name not in read]:
    raise ConfigError(
      f"the recipe's network {unread[0]!r} must be among those that its estimator"
      f' reads, got {_listed(read)}'
    )
  if estimator is None:
    _refuse_critic_fields(config)
  elif estimator.reads_reference and not config.train.keep_reference:
    raise ConfigError(
      "the recipe's estimator reads the reference policy, which needs"
      ' train.keep_reference, got false'
    )


def _refuse_critic_fields(config: Config) -> None:
  """Refuses fields of a critic in a recipe without one."""
  defaults = flatten(CriticConfig())
  for name, value in flatten(config.critic).items():
    if value != defaults[name]:
      raise ConfigError(
        f'critic.{name} needs a recipe with a critic, such as countdown:ppo, got '
        f'{value!r} in one without'
      )


def _listed(names: Any) -> str:
  return ', '.join(map(repr, names)) or 'none'
