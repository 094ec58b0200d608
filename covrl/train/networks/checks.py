# SPDX-License-Identifier: Apache-2.0
"""Checks that a recipe's networks, estimator and fields belong together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covrl.config import Config, ConfigError, flatten
from covrl.train.networks.estimator import Estimator
from covrl.train.networks.network import Network

# Config sections of networks: the network, and a recipe that has one.
_SECTIONS = {
  'critic': ('critic', 'countdown:ppo'),
  'prime': ('process reward model', 'countdown:prime'),
}


def check_networks(networks: Any, estimator: Any, config: Config) -> None:
  """Checks the results of a recipe's `networks` and `estimator`.

  Args:
    networks: the networks by name.
    estimator: the estimator; `None` without one.
    config: the run's configuration.

  Raises:
    ConfigError: a value has a wrong type, a network is missing or has no
      effect, or a field has no effect.
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
  networks_read = () if estimator is None else estimator.networks
  if missing := [name for name in networks_read if name not in networks]:
    raise ConfigError(
      f"the recipe's estimator reads the network {missing[0]!r}, which must be"
      f" among the recipe's networks, got {_listed(networks)}"
    )
  if unread := [name for name in networks if name not in networks_read]:
    raise ConfigError(
      f"the recipe's network {unread[0]!r} must be among those that its estimator"
      f' reads, got {_listed(networks_read)}'
    )
  output = None if estimator is None else estimator.output
  for name, network in networks.items():
    if output not in (None, network.output):
      raise ConfigError(
        f"the network {name!r} must have the output {output}, which the recipe's"
        f' estimator reads, got {network.output}'
      )
  updated_before = [
    name for name, each in networks.items() if each.update == 'before'
  ]
  if updated_before and estimator is not None and estimator.targets is None:
    raise ConfigError(
      f"the recipe's estimator must have targets with the network {updated_before[0]!r},"
      ' which is updated before it is scored, got None'
    )
  _refuse_unread_fields(
    config, () if estimator is None else estimator.config_sections
  )
  if estimator is None:
    return
  if estimator.reads_reference and not config.train.keep_reference:
    raise ConfigError(
      "train.keep_reference must be true with the recipe's estimator, which"
      ' reads the reference policy, got false'
    )


def _refuse_unread_fields(
  config: Config, sections_read: tuple[str, ...]
) -> None:
  """Refuses fields of networks that the recipe lacks.

  Args:
    config: the run's configuration.
    sections_read: names of the sections that the recipe's estimator reads.
  """
  defaults = flatten(Config())
  for section, (network, example) in _SECTIONS.items():
    if section in sections_read:
      continue
    for name, value in flatten(config).items():
      if name.startswith(f'{section}.') and value != defaults[name]:
        raise ConfigError(
          f'{name} must be {defaults[name]!r} in a recipe without a {network},'
          f' got {value!r}; {example} has one'
        )


def _listed(names: Any) -> str:
  return ', '.join(map(repr, names)) or 'none'
