# SPDX-License-Identifier: Apache-2.0
"""Reward of mazes: 1 for a path from start to goal, else 0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAZE_EXAMPLE = (
  'a2 b2',
  {'side': 2, 'walls': ['b1'], 'start': 'a1', 'goal': 'b2', 'max_steps': 3},
)
"""A response and its reference, to warm workers up."""

_CELL = re.compile(r'([a-z])([1-9][0-9]?)')


def score_maze(response: str, reference: Mapping[str, Any]) -> float:
  """Scores whether a response is a path from the start to the goal.

  Every cell must lie in the grid, beside, above or below the cell before, and
  must not be a wall. The last one must be the goal.

  >>> maze = {'side': 3, 'walls': ['b1'], 'start': 'a1', 'goal': 'c1'}
  >>> reference = {**maze, 'max_steps': 6}
  >>> score_maze('a2 b2 c2 c1', reference)
  1.0
  >>> score_maze('b1 c1', reference)
  0.0

  Args:
    response: names of the cells that are entered, separated by spaces.
    reference: `side`, `walls`, `start`, `goal` and `max_steps` of the maze.

  Returns:
    1 for a path of at most `max_steps` steps, else 0.
  """
  names = response.split()
  if not 0 < len(names) <= reference['max_steps']:
    return 0.0
  walls, side = set(reference['walls']), reference['side']
  position = _coordinates(reference['start'])
  for name in names:
    next_position = _coordinates(name)
    if position is None or next_position is None or name in walls:
      return 0.0
    if max(next_position) >= side:
      return 0.0
    if (
      abs(next_position[0] - position[0]) + abs(next_position[1] - position[1])
      != 1
    ):
      return 0.0
    position = next_position
  return 1.0 if names[-1] == reference['goal'] else 0.0


def _coordinates(name: str) -> tuple[int, int] | None:
  """Column and row of a cell, from 0; `None` if it is not the name of one."""
  match = _CELL.fullmatch(name)
  if match is None:
    return None
  return ord(match[1]) - ord('a'), int(match[2]) - 1
