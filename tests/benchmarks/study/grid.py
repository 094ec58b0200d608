# SPDX-License-Identifier: Apache-2.0
"""Paths on a grid with one wall: prompts with all of their solutions."""

from __future__ import annotations

import itertools

import numpy as np
from jaxtyping import Float

from .tokens import ASK, FIRST_SYMBOL, RESPONSE, SIDE, Prompts, Rows, response

Cell = tuple[int, int]


def _cell(token: int) -> Cell:
  """Row and column of the cell that a token stands for."""
  return divmod(token - FIRST_SYMBOL, SIDE)


def _token(cell: Cell) -> int:
  """Token of a cell."""
  return FIRST_SYMBOL + SIDE * cell[0] + cell[1]


def _neighbours(cell: Cell, wall: Cell) -> list[Cell]:
  """Cells beside a cell, without those outside the grid and the wall."""
  row, column = cell
  neighbours = (
    (row + 1, column),
    (row - 1, column),
    (row, column + 1),
    (row, column - 1),
  )
  return [
    c for c in neighbours if 0 <= c[0] < SIDE and 0 <= c[1] < SIDE and c != wall
  ]


def paths(
  start: Cell, goal: Cell, wall: Cell, max_steps: int
) -> list[list[Cell]]:
  """All paths of at most `max_steps` steps that visit no cell twice."""
  paths_found: list[list[Cell]] = []

  def follow(path: list[Cell]) -> None:
    for cell in _neighbours(path[-1], wall):
      if cell == goal:
        paths_found.append([*path[1:], cell])
      elif cell not in path and len(path) < max_steps:
        follow([*path, cell])

  follow([start])
  return paths_found


def _solutions() -> dict[tuple[int, ...], list[list[int]]]:
  """Responses that solve each prompt: goals in three to five steps."""
  cells: list[Cell] = list(itertools.product(range(SIDE), range(SIDE)))
  solutions = {}
  for start, goal, wall in itertools.permutations(cells, 3):
    distance = abs(start[0] - goal[0]) + abs(start[1] - goal[1])
    if 3 <= distance <= 5:
      answers = paths(start, goal, wall, RESPONSE - 1)
      if answers:
        prompt = _token(start), _token(goal), _token(wall), ASK
        solutions[prompt] = [response(*map(_token, path)) for path in answers]
  return solutions


class Grid:
  """All prompts of a grid, each with all of its solutions.

  Attributes:
    solutions: solutions by prompt.
    train: prompts to train on.
    held_out: the other prompts, at most 64.
  """

  def __init__(self) -> None:
    self.solutions = _solutions()
    order = np.random.default_rng(5).permutation(sorted(self.solutions))
    self.held_out, self.train = order[:64], order[64:]
    self._sets = {
      prompt: set(map(tuple, rows)) for prompt, rows in self.solutions.items()
    }

  def is_usual(self, prompts: Prompts) -> np.ndarray:
    """Whether the goal lies as in most demonstrations: not above or left of the start."""
    start, goal = prompts[:, 0] - FIRST_SYMBOL, prompts[:, 1] - FIRST_SYMBOL
    below = goal // SIDE >= start // SIDE
    return below & (goal % SIDE >= start % SIDE)

  def score(
    self, prompts: Prompts, responses: Rows, phase: int
  ) -> Float[np.ndarray, ' n']:
    """1 for each response that is a solution, else 0."""
    del phase
    pairs = zip(prompts.tolist(), responses.tolist(), strict=True)
    return np.array(
      [tuple(row) in self._sets[tuple(prompt)] for prompt, row in pairs],
      np.float32,
    )

  def random_solutions(
    self, rng: np.random.Generator, prompts: Prompts
  ) -> Rows:
    """A solution of each prompt, chosen at random."""
    answers = [self.solutions[tuple(prompt)] for prompt in prompts.tolist()]
    return np.array(
      [solutions[rng.integers(len(solutions))] for solutions in answers]
    )

  def probes(self, prompts: Prompts) -> tuple[Prompts, Rows]:
    """All pairs of a prompt and a solution."""
    pairs = [
      (prompt, row)
      for prompt in prompts.tolist()
      for row in self.solutions[tuple(prompt)]
    ]
    row_prompts, rows = zip(*pairs, strict=True)
    return np.array(row_prompts), np.array(rows)

  def coverage(
    self,
    prompts: Prompts,
    path_probabilities: Float[np.ndarray, ' m'],
    samples: int = 64,
  ) -> dict[str, np.ndarray]:
    """Exact pass@1, pass@64 and distinct solutions in 64 samples, by prompt."""
    counts = [len(self.solutions[tuple(p)]) for p in prompts.tolist()]
    by_prompt = np.split(path_probabilities, np.cumsum(counts)[:-1])
    success_rates = np.array([p.sum() for p in by_prompt])
    return {
      'accuracy': success_rates,
      'pass64': 1 - (1 - np.minimum(success_rates, 1)) ** samples,
      'distinct': np.array([(1 - (1 - p) ** samples).sum() for p in by_prompt]),
    }
