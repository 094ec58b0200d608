# SPDX-License-Identifier: Apache-2.0
"""Mazes on a grid: write a path from start to goal, cell by cell.

A cell is named by its column and its row, `a1` in a corner. The prompt names
start, goal and the cells that are walls, and a response the cells of the path:

  prompt     from b1 to e4 walls b3 c2 d4 :
  response   c1 d1 d2 d3 e3 e4

A step leads to a cell beside, above or below. Demonstrations for the warm start
are walks of an explorer that sees only the cells around it; they end at the goal
or after `max_steps` steps, so that many of them do not reach the goal.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

from covrl.config import MazeConfig
from covrl.data.generated.base import (
  MAX_REDRAWS,
  GeneratedSource,
  HeldOut,
  first_seed,
  too_few_problems,
)
from covrl.data.problems import Problem
from covrl.data.tokenizers.sentencepiece_tokenizer import (
  SentencePieceTokenizer,
  train_sentencepiece,
)

SOURCE_NAME = 'mazes'

Cell: TypeAlias = tuple[int, int]
"""Column and row of a cell, from 0."""


class Maze(NamedTuple):
  """A maze.

  Attributes:
    side: cells in a row and in a column.
    walls: cells that cannot be entered.
    start: cell before the first step.
    goal: cell of the last step.
  """

  side: int
  walls: frozenset[Cell]
  start: Cell
  goal: Cell

  def free_neighbours(self, cell: Cell) -> list[Cell]:
    """Cells beside, above and below a cell that can be entered."""
    column, row = cell
    neighbours = (
      (column + 1, row),
      (column - 1, row),
      (column, row + 1),
      (column, row - 1),
    )
    return [
      (x, y)
      for x, y in neighbours
      if 0 <= x < self.side and 0 <= y < self.side and (x, y) not in self.walls
    ]


def maze_tokenizer(config: MazeConfig) -> SentencePieceTokenizer:
  """Tokenizer with one token per cell.

  >>> tokenizer = maze_tokenizer(MazeConfig())
  >>> tokenizer.vocab_size, len(tokenizer.encode('from a1 to e5 walls c3 :'))
  (33, 7)
  """
  coordinates = range(config.side)
  cells = [
    cell_name((column, row)) for column in coordinates for row in coordinates
  ]
  return train_sentencepiece([*cells, 'from', 'to', 'walls', ':'])


def column_name(column: int) -> str:
  """Letter of a column.

  >>> column_name(1)
  'b'
  """
  return chr(ord('a') + column)


def cell_name(cell: Cell) -> str:
  """Name of a cell.

  >>> cell_name((1, 3))
  'b4'
  """
  column, row = cell
  return f'{column_name(column)}{row + 1}'


def cell_at(name: str) -> Cell:
  """Cell with a name.

  >>> cell_at('b4')
  (1, 3)
  """
  return ord(name[0]) - ord('a'), int(name[1:]) - 1


def path_text(path: list[Cell]) -> str:
  """Response that writes a path.

  >>> path_text([(1, 0), (1, 1)])
  'b1 b2'
  """
  return ' '.join(map(cell_name, path))


def distances(maze: Maze, origin: Cell) -> dict[Cell, int]:
  """Steps from a cell to all cells that can be reached, nearest first.

  >>> distances(Maze(2, frozenset({(1, 0)}), (0, 0), (1, 1)), (0, 0))
  {(0, 0): 0, (0, 1): 1, (1, 1): 2}
  """
  steps, queue = {origin: 0}, deque([origin])
  while queue:
    cell = queue.popleft()
    for neighbour in maze.free_neighbours(cell):
      if neighbour not in steps:
        steps[neighbour] = steps[cell] + 1
        queue.append(neighbour)
  return steps


def shortest_path(maze: Maze) -> list[Cell] | None:
  """A shortest path, without its start; `None` if the goal cannot be reached.

  >>> shortest_path(Maze(2, frozenset({(1, 0)}), (0, 0), (1, 1)))
  [(0, 1), (1, 1)]
  """
  steps = distances(maze, maze.goal)
  if maze.start not in steps:
    return None
  path, cell = [], maze.start
  while cell != maze.goal:
    cell = min(maze.free_neighbours(cell), key=lambda c: steps[c])
    path.append(cell)
  return path


def explorer_walk(rng: random.Random, maze: Maze, max_steps: int) -> list[Cell]:
  """Draws a walk of an explorer that sees only the cells around it.

  It goes to a random neighbouring cell that it has not visited and, in a dead
  end, back the way it came. The walk ends at the goal or after `max_steps`
  steps.

  >>> maze = Maze(3, frozenset({(1, 0)}), (0, 0), (2, 0))
  >>> path_text(explorer_walk(random.Random(3), maze, 6))
  'a2 b2 b3 a3 b3 c3'

  Args:
    rng: random number generator.
    maze: a maze whose goal can be reached.
    max_steps: most steps of the walk.

  Returns:
    The cells of the walk, without its start.
  """
  walk: list[Cell] = []
  trail, visited = [maze.start], {maze.start}
  while len(walk) < max_steps and trail[-1] != maze.goal:
    neighbours = maze.free_neighbours(trail[-1])
    if unvisited := [cell for cell in neighbours if cell not in visited]:
      trail.append(rng.choice(unvisited))
      visited.add(trail[-1])
    else:
      trail.pop()
    walk.append(trail[-1])
  return walk


def random_maze(rng: random.Random, config: MazeConfig) -> Maze:
  """Draws walls, a start, and a goal at a distance within the bounds.

  All distances that the walls and the start allow are equally likely.

  Raises:
    ValueError: the bounds allow too few mazes.
  """
  coordinates = range(config.side)
  cells = [(column, row) for column in coordinates for row in coordinates]
  for _ in range(100 * MAX_REDRAWS):
    rng.shuffle(cells)
    num_walls = rng.randint(config.min_walls, config.max_walls)
    start = cells[num_walls]
    maze = Maze(config.side, frozenset(cells[:num_walls]), start, start)
    goals: dict[int, list[Cell]] = {}
    for cell, steps in distances(maze, start).items():
      if config.min_distance <= steps <= config.max_steps:
        goals.setdefault(steps, []).append(cell)
    if goals:
      goal = rng.choice(goals[rng.choice(sorted(goals))])
      return maze._replace(goal=goal)
  raise too_few_problems(config)


def maze_problem(
  maze: Maze, max_steps: int, solution: str | None = None
) -> Problem:
  """Problem to find a path of at most `max_steps` steps.

  Args:
    maze: the maze.
    max_steps: most steps of a path.
    solution: response for supervised training.
  """
  walls = [cell_name(cell) for cell in sorted(maze.walls)]
  start, goal = cell_name(maze.start), cell_name(maze.goal)
  return Problem(
    prompt=' '.join(['from', start, 'to', goal, 'walls', *walls, ':']),
    reference={
      'side': maze.side,
      'walls': walls,
      'start': start,
      'goal': goal,
      'max_steps': max_steps,
    },
    source=SOURCE_NAME,
    solution=solution,
  )


def maze_of(problem: Problem) -> Maze:
  """Maze of a problem."""
  reference = problem.reference
  return Maze(
    side=reference['side'],
    walls=frozenset(map(cell_at, reference['walls'])),
    start=cell_at(reference['start']),
    goal=cell_at(reference['goal']),
  )


def solve_maze(problem: Problem) -> str | None:
  """A shortest path as response; `None` if the goal cannot be reached.

  >>> solve_maze(maze_problem(Maze(2, frozenset(), (0, 0), (0, 1)), max_steps=1))
  'a2'
  """
  path = shortest_path(maze_of(problem))
  return None if path is None else path_text(path)


def _generate_held_out(config: MazeConfig) -> Iterator[Problem]:
  rng = random.Random(first_seed('mazes, held out', 0))
  while True:
    yield maze_problem(random_maze(rng, config), config.max_steps)


held_out_mazes = HeldOut[MazeConfig](
  generate=_generate_held_out, key=lambda problem: problem.prompt
)
"""Generates the evaluation problems; see `HeldOut`."""


class MazeSource(GeneratedSource[MazeConfig]):
  """Training problems without held-out ones.

  >>> MazeSource(MazeConfig(held_out=0))[0].prompt
  'from a3 to e4 walls a1 a2 a5 c4 d1 d3 e2 :'
  """

  names = (SOURCE_NAME,)
  seed_name = 'mazes, train'
  excluded = held_out_mazes

  @property
  def generator(self) -> str:
    """Name of the generator of these problems."""
    return SOURCE_NAME

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields random mazes."""
    for _, maze in self._mazes(index):
      yield maze_problem(maze, self._config.max_steps)

  def _mazes(self, index: int) -> Iterator[tuple[random.Random, Maze]]:
    """Yields random mazes, each with the random generator that has drawn it."""
    rng = random.Random(self._seed + index)
    for _ in range(MAX_REDRAWS):
      yield rng, random_maze(rng, self._config)


class ExploredMazeSource(MazeSource):
  """Problems with an explorer's walk for the warm start.

  The mazes are distributed as those of `MazeSource`.

  >>> ExploredMazeSource(MazeConfig(held_out=0))[0].solution
  'd5 d4 d3 d2 c2 b2 b3 a3'
  """

  seed_name = 'mazes, explored'

  @property
  def generator(self) -> str:
    """Name of the generator of these problems."""
    return f'{SOURCE_NAME}, explored'

  def candidates(self, index: int) -> Iterator[Problem]:
    """Yields random mazes, each with a walk."""
    steps = self._config.max_steps
    for rng, maze in self._mazes(index):
      walk = explorer_walk(rng, maze, steps)
      yield maze_problem(maze, steps, path_text(walk))
