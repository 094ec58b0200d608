# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run that the advice depends on, within their ranges."""

from __future__ import annotations

import dataclasses
import math

from covrl.array_checks import check_integer, check_number
from covrl.report.inputs.metric_ranges import possible_range

WIDEST_TAIL = 0.02
"""Largest share of the tokens of highest covariance that is called the tail."""

# Smallest and largest value of each number of `AdviceInputs`.
_RANGES = (
  ('planned_iterations', 0, math.inf),
  ('updates_per_iteration', 0, math.inf),
  ('tokens', 0, math.inf),
  ('entropy_start', *possible_range('entropy')),
  ('entropy_end', -1e-3, possible_range('entropy')[1]),
  ('halving_iterations', 0, math.inf),
  ('covariance', -math.inf, math.inf),
  ('high_quantile', -math.inf, math.inf),
  ('equal_group_share', 0, 1),
  ('reward', -math.inf, math.inf),
  ('selected', 0, math.inf),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdviceInputs:
  """Numbers of a run that the advice depends on.

  Numbers of a part of the run (first tenth, first third, last tenth) are means over
  the iterations of that part that have all metrics.

  Attributes:
    iterations: iterations with updates.
    planned_iterations: configured iterations of an unfinished run; `None` if they are unknown
      or finished.
    updates_per_iteration: updates on each rollout.
    tokens: response tokens per update, mean.
    entropy_start: entropy of the first tenth of the iterations, nats per token.
    entropy_end: entropy of the last tenth.
    halving_iterations: iterations until the entropy was half of that at the start; `None` if
      it never was.
    covariance: mean covariance over the first third of the iterations.
    tails: mean covariance of the top tokens over the first third, by their share;
      shares without a token in an update are left out.
    high_quantile: the .99 quantile of the covariance over the first third.
    equal_group_share: share of groups with equal rewards in the last tenth.
    reward: mean reward in the last tenth.
    selected: tokens that the run's own token chain selected per update, mean.

  Raises:
    TypeError: an attribute is not a number.
    ValueError: a number is not finite or out of its range, or the mean covariance
      of the top 2\u202f% of the tokens is missing.
  """

  iterations: int
  planned_iterations: int | None = None
  updates_per_iteration: float
  tokens: float
  entropy_start: float
  entropy_end: float
  halving_iterations: float | None
  covariance: float
  tails: dict[float, float]
  high_quantile: float
  equal_group_share: float
  reward: float
  selected: float = 0.0

  def __post_init__(self) -> None:
    check_integer('iterations', self.iterations, 1)
    for name, low, high in _RANGES:
      value = getattr(self, name)
      if value is not None:
        check_number(name, value, low, high)
    for share, covariance in self.tails.items():
      check_number('shares of tails', share, 0, 1, is_open=True)
      check_number('covariances of tails', covariance, -math.inf)
    if WIDEST_TAIL not in self.tails:
      raise ValueError(
        f'tails must have the share {WIDEST_TAIL:g}, got {sorted(self.tails)}'
      )
    if self.entropy_start <= 0:
      raise ValueError(
        f'entropy_start must be positive, got {self.entropy_start:g}'
      )

  @property
  def lost_entropy_share(self) -> float:
    """Share of the entropy at the start that was lost until the end."""
    return 1 - self.entropy_end / self.entropy_start

  @property
  def tail_share(self) -> float:
    """Share of the covariance that the top 2\u202f% of the tokens hold, at most 1.

    1 where the mean is not positive: without its tail, the covariance would
    raise the entropy.
    """
    tail = WIDEST_TAIL * self.tails[WIDEST_TAIL]
    if tail <= 0:
      return 0.0
    return 1.0 if self.covariance <= tail else tail / self.covariance
