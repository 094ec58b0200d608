# SPDX-License-Identifier: Apache-2.0
"""Evaluation suites in place of those of a run's configuration."""

from __future__ import annotations

import copy
import dataclasses

from covrl.config import Config


@dataclasses.dataclass(frozen=True)
class SuiteChoice:
  """Evaluation suites that replace those of a run's configuration.

  Attributes:
    names: names of the suites, separated by commas; see `covrl.data.load_suites`.
    directory: directory of the suites; the configuration's by default.
  """

  names: str
  directory: str | None = None


def with_suites(config: Config, suites: SuiteChoice | None) -> Config:
  """Returns a configuration that evaluates suites and has no training files."""
  if suites is None:
    return config
  config = copy.deepcopy(config)
  config.evaluate.suites = suites.names
  if suites.directory is not None:
    config.evaluate.suite_directory = suites.directory
  config.data.train = ''
  return config
