# SPDX-License-Identifier: Apache-2.0
"""Config section of generated arithmetic problems."""

import dataclasses
from typing import Annotated

from covrl.config.bounds import Bounds, NonNegative, Positive
from covrl.config.errors import ConfigError


@dataclasses.dataclass(kw_only=True, slots=True)
class ArithmeticConfig:
  """Sums and differences of integers; see `covrl.data.generated.arithmetic`.

  Attributes:
    seed: seed of the training problems; the held-out problems do not depend on
      it, so that runs with different seeds are evaluated on the same ones.
    min_terms: fewest terms of a problem.
    max_terms: most terms of a problem.
    max_value: largest term; the smallest is 1.
    held_out: number of problems reserved for evaluation, never trained on.
    size: number of problems in an epoch.
  """

  seed: NonNegative = 0
  min_terms: Annotated[int, Bounds(2, 16)] = 2
  max_terms: Annotated[int, Bounds(2, 16)] = 3
  max_value: Positive = 50
  held_out: NonNegative = 1024
  size: Annotated[int, Bounds(1, (1 << 31) - 1)] = 1 << 20

  def __post_init__(self) -> None:
    self.check()

  def check(self) -> None:
    """Checks that the bounds do not contradict each other.

    Raises:
      ConfigError: the range of the number of terms is empty, or a number is not
        within its bounds.
    """
    if not 2 <= self.min_terms <= self.max_terms:
      raise ConfigError(
        'arithmetic must have 2 <= min_terms <= max_terms, got'
        f' min_terms={self.min_terms} and max_terms={self.max_terms}'
      )
    if self.max_value < 1:
      raise ConfigError(
        f'arithmetic must have max_value >= 1, got {self.max_value}'
      )
    if self.held_out < 0 or not 0 < self.size < 1 << 31:
      raise ConfigError(
        'arithmetic must have held_out >= 0 and 0 < size < 2**31, got'
        f' held_out={self.held_out} and size={self.size}'
      )
