# SPDX-License-Identifier: Apache-2.0
"""The error of invalid configurations."""


class ConfigError(ValueError):
  """An invalid configuration or run directory, described in one sentence."""
