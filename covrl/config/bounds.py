# SPDX-License-Identifier: Apache-2.0
"""Bounds of numeric config fields, declared as metadata of their types."""

import dataclasses
import math
from typing import Annotated, TypeAlias


@dataclasses.dataclass(frozen=True)
class Bounds:
  """An interval that contains a field's values; infinities are never allowed.

  Attributes:
    low: smallest value.
    high: largest value.
    is_open: whether `low` itself is excluded.
    purpose: reason for the bounds, appended to errors.

  >>> str(Bounds(1)), str(Bounds(0, 1, is_open=True))
  ('at least 1', 'in (0, 1]')
  """

  low: float
  high: float = math.inf
  is_open: bool = False
  purpose: str = ''

  def contains(self, value: float) -> bool:
    """Returns whether a value is finite and within the bounds."""
    above = self.low < value if self.is_open else self.low <= value
    return math.isfinite(value) and above and value <= self.high

  def __str__(self) -> str:
    if self.high < math.inf:
      bracket = '(' if self.is_open else '['
      return f'in {bracket}{self.low:g}, {self.high:g}]'
    return f'{"above" if self.is_open else "at least"} {self.low:g}'

  @property
  def requirement(self) -> str:
    """The bounds as a requirement, for errors.

    >>> Bounds(0, 1).requirement
    'must lie in [0, 1]'
    """
    verb = 'lie' if self.high < math.inf else 'be'
    return f'must {verb} {self}{self.purpose and " "}{self.purpose}'


Positive: TypeAlias = Annotated[int, Bounds(1)]
NonNegative: TypeAlias = Annotated[int, Bounds(0)]
NonNegativeFloat: TypeAlias = Annotated[float, Bounds(0)]
PositiveFloat: TypeAlias = Annotated[float, Bounds(0, is_open=True)]
Share: TypeAlias = Annotated[float, Bounds(0, 1)]
PositiveShare: TypeAlias = Annotated[float, Bounds(0, 1, is_open=True)]
# A learning rate of 10 is far above any that trains a policy.
LearningRate: TypeAlias = Annotated[float, Bounds(0, 10)]
