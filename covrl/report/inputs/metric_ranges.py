# SPDX-License-Identifier: Apache-2.0
"""Ranges of the values that a run's metrics can have.

Values outside these ranges come from damaged files or other programs. They are
left out and counted like unreadable ones.
"""

from __future__ import annotations

import functools
import math
import re

# Entropy of more tokens than any vocabulary has, in nats.
_LARGEST_ENTROPY = 100.0
# Largest rounding errors, by which entropies are below 0 and shares outside [0, 1].
_ROUNDING = {'entropy': 1e-3, 'share': 1e-6, 'amount': 0.0}
_RANGES = {
  'entropy': (0.0, _LARGEST_ENTROPY),
  'share': (0.0, 1.0),
  'amount': (0.0, math.inf),
}
_PATTERNS = {
  'entropy': r'entropy|rollout_entropy',
  'share': (
    r'(.+/)?(greedy|(mean|pass|maj)@\d+)(_low|_high)?'
    r'|accuracy|[a-z_]+_fraction|equal_reward_groups|skipped'
  ),
  'amount': (
    r'(.+/)?(greedy|accuracy|(mean|pass|maj)@\d+)_stderr'
    r'|quadrant/.+|time/.+|seconds|tokens|tokens_per_second|response_length'
    r'|selected|eligible|quota|nonfinite|clamped|problems|unscored|gradient_norm'
    r'|log_ratio_abs|sampler_gap|sampler_gap_max'
  ),
}


@functools.lru_cache(maxsize=10_000)
def possible_range(field: str) -> tuple[float, float]:
  """The smallest and the largest value of a metric, without rounding errors.

  Args:
    field: name of the metric; the values of metrics that covrl does not define
      are not limited.

  >>> possible_range('aime24/mean@32'), possible_range('reward')
  ((0.0, 1.0), (-inf, inf))
  """
  kind = _kind(field)
  return _RANGES[kind] if kind else (-math.inf, math.inf)


def is_possible(field: str, value: float) -> bool:
  """Whether a metric can have a value, up to rounding errors.

  >>> is_possible('greedy', 1.7), is_possible('entropy', -1e-7)
  (False, True)
  """
  low, high = possible_range(field)
  kind = _kind(field)
  rounding = _ROUNDING[kind] if kind else 0.0
  return low - rounding <= value <= high + rounding


@functools.lru_cache(maxsize=10_000)
def _kind(field: str) -> str | None:
  """Kind of a metric; `None` for one that may have any value."""
  for kind, pattern in _PATTERNS.items():
    if re.fullmatch(pattern, field, re.ASCII):
      return kind
  return None
