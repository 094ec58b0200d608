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
    special: a further value, with a meaning of its own.
    purpose: reason for the bounds, appended to errors.

  >>> str(Bounds(1)), str(Bounds(0, 1, is_open=True)), str(Bounds(1, special=-1))
  ('at least 1', 'in (0, 1]', 'at least 1, or -1')
  """

  low: float
  high: float = math.inf
  is_open: bool = False
  special: float | None = None
  purpose: str = ''

  def contains(self, value: float) -> bool:
    """Returns whether a value is finite and within the bounds."""
    above = self.low < value if self.is_open else self.low <= value
    # `math.isfinite` fails for large integers.
    is_finite = abs(value) < math.inf
    is_within = is_finite and above and value <= self.high
    return is_within or value == self.special

  def __str__(self) -> str:
    special = '' if self.special is None else f', or {_text(self.special)}'
    if self.high < math.inf:
      bracket = '(' if self.is_open else '['
      return f'in {bracket}{_text(self.low)}, {_text(self.high)}]{special}'
    comparison = 'above' if self.is_open else 'at least'
    return f'{comparison} {_text(self.low)}{special}'

  @property
  def requirement(self) -> str:
    """The bounds as a requirement, for errors.

    >>> Bounds(0, 1).requirement
    'must lie in [0, 1]'
    """
    verb = 'lie' if self.high < math.inf else 'be'
    return f'must {verb} {self}{self.purpose and " "}{self.purpose}'


def _text(number: float) -> str:
  """Formats a bound; integers keep all digits."""
  return str(number) if isinstance(number, int) else f'{number:g}'


# Largest magnitudes of fields without an upper bound: the largest int32, and a
# float far beyond any sensible value.
MAX_MAGNITUDES = {int: 2**31 - 1, float: 1e9}

# The size of a mesh axis; −1 for all remaining devices.
AxisSize: TypeAlias = Annotated[int, Bounds(1, special=-1)]
Positive: TypeAlias = Annotated[int, Bounds(1)]
NonNegative: TypeAlias = Annotated[int, Bounds(0)]
# JAX's random keys take 32 bits of a seed, and would ignore the others.
SEED = Bounds(0, (1 << 32) - 1)
Seed: TypeAlias = Annotated[int, SEED]
NonNegativeFloat: TypeAlias = Annotated[float, Bounds(0)]
PositiveFloat: TypeAlias = Annotated[float, Bounds(0, is_open=True)]
Share: TypeAlias = Annotated[float, Bounds(0, 1)]
PositiveShare: TypeAlias = Annotated[float, Bounds(0, 1, is_open=True)]
# A learning rate of 10 is far above any that trains a policy.
LearningRate: TypeAlias = Annotated[float, Bounds(0, 10)]
