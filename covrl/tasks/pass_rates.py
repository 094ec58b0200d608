# SPDX-License-Identifier: Apache-2.0
"""Reads measured pass rates of training problems, `data.pass_rates`."""

from __future__ import annotations

import json

import numpy as np

from covrl import storage
from covrl.config import ConfigError


def read_pass_rates(file: str) -> dict[str, float]:
  """Returns pass rates by problem key, from an evaluation's results.

  Conversations with the same last question have the same key, and so have
  repeated problems.

  Args:
    file: path of the results; empty for none.

  Raises:
    ConfigError: the file cannot be read, holds something else, or has two rates
      for one key.
  """
  if not file:
    return {}
  # Pass rate and row number by key.
  rates: dict[str, tuple[float, int]] = {}
  try:
    lines = storage.as_path(file).read_bytes().splitlines()
  except OSError as error:
    raise ConfigError(
      'data.pass_rates must name a file that can be read, got'
      f' {file}: {error.strerror or error}'
    ) from None
  for number, line in enumerate(lines, 1):
    try:
      result = json.loads(line)
      correct = [
        is_correct
        for is_correct in result['correct'] or [result['greedy']]
        if is_correct is not None
      ]
      if not correct:
        # No response has a score, so that the rate is unknown.
        continue
      rate = float(np.mean(correct))
      if not 0 <= rate <= 1:
        raise ValueError
      key = result['key']
      first_rate, first_number = rates.setdefault(key, (rate, number))
    except (ValueError, KeyError, TypeError, RecursionError):
      raise ConfigError(
        'data.pass_rates must be results written by covrl evaluate, got'
        f' something else in row {number} of {file}'
      ) from None
    if rate != first_rate:
      raise ConfigError(
        'data.pass_rates must have one rate for each question, got'
        f' {first_rate:g} in row {first_number} and {rate:g} in row {number} of'
        f' {file} for the key {key!r}; leave out all but one of its rows'
      )
  return {key: rate for key, (rate, _) in rates.items()}
