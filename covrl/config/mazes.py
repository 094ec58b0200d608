# SPDX-License-Identifier: Apache-2.0
"""Config section of generated mazes."""

import dataclasses
from typing import Annotated

from covrl.config.bounds import Bounds, NonNegative, Positive
from covrl.config.errors import ConfigError


@dataclasses.dataclass(kw_only=True, slots=True)
class MazeConfig:
  """Mazes on a square grid; see `covrl.data.generated.mazes`.

  Attributes:
    seed: seed of the training mazes; the held-out mazes do not depend on it, so
      that runs with different seeds are evaluated on the same ones.
    side: cells in a row and in a column.
    min_walls: fewest cells that are walls.
    max_walls: most cells that are walls.
    min_distance: smallest length of a maze's shortest path from start to goal, in
      steps.
    max_steps: largest length of a maze's shortest path, of a path in a response,
      and of a walk that the warm start imitates, in steps.
    held_out: number of mazes reserved for evaluation, never trained on.
    size: number of mazes in an epoch.
  """

  seed: NonNegative = 0
  side: Annotated[int, Bounds(2, 26)] = 5
  min_walls: NonNegative = 4
  max_walls: NonNegative = 8
  min_distance: Positive = 5
  max_steps: Positive = 8
  held_out: NonNegative = 1024
  size: Annotated[int, Bounds(1, (1 << 31) - 1)] = 1 << 20

  def __post_init__(self) -> None:
    self.check()

  def check(self) -> None:
    """Checks that the bounds do not contradict each other.

    Raises:
      ConfigError: the grid is too small for its walls, a range is empty, or no
        grid of this size has such a distance.
    """
    if not 2 <= self.side <= 26:
      raise ConfigError(f'maze must have 2 <= side <= 26, got {self.side}')
    most_walls = self.side**2 - 2
    if not 0 <= self.min_walls <= self.max_walls <= most_walls:
      raise ConfigError(
        f'maze must have 0 <= min_walls <= max_walls <= {most_walls}, the cells'
        f' besides start and goal, got min_walls={self.min_walls} and'
        f' max_walls={self.max_walls}'
      )
    if not 1 <= self.min_distance <= self.max_steps:
      raise ConfigError(
        'maze must have 1 <= min_distance <= max_steps, got'
        f' min_distance={self.min_distance} and max_steps={self.max_steps}'
      )
    if self.min_distance >= self.side**2 - self.min_walls:
      raise ConfigError(
        f'maze must have min_distance < {self.side**2 - self.min_walls}, the most'
        f' cells that are free, got {self.min_distance}'
      )
    if self.held_out < 0 or not 0 < self.size < 1 << 31:
      raise ConfigError(
        'maze must have held_out >= 0 and 0 < size < 2**31, got'
        f' held_out={self.held_out} and size={self.size}'
      )
