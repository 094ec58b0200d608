# SPDX-License-Identifier: Apache-2.0
"""The study's tasks: prompts, warm start, reward, and exact measurements.

All have prompts of four tokens and responses of up to six of one vocabulary, so
that they share compiled programs. Few responses to a prompt are right, and all of
them are known: their probabilities are computed and not estimated from samples.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

PROMPT, RESPONSE = 4, 6
VOCABULARY = 24
PAD, END, ASK, NONE = range(4)
FIRST_SYMBOL = 4  # sixteen symbols: digits, or cells of a grid
FORWARD, REVERSE, QUIT, GO = range(20, 24)
SIDE = 4

Rows = Int[np.ndarray, 'n R']
Prompts = Int[np.ndarray, 'n P']
Measured = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyTask:
  """A task of the study.

  Attributes:
    name: name on the command line.
    title: name in tables.
    metric: the primary metric.
    higher_is_better: whether more of it is better.
    draw: generator, count -> prompts to train on.
    demonstrate: generator, count -> prompts and responses to imitate.
    score: prompts, responses, phase -> rewards.
    phases: iterations of each phase; rewards change between them.
    warm_start: supervised steps.
    probes: prompts and responses whose probabilities are computed at evaluations.
    measure: probabilities of the probes' responses, phase -> metrics.
    every: iterations between evaluations.
    tuned_by: metric of the last evaluation by which arms choose their setting;
      empty for the primary one.
  """

  name: str
  title: str
  metric: str
  higher_is_better: bool = True
  draw: Callable[[np.random.Generator, int], Prompts]
  demonstrate: Callable[[np.random.Generator, int], tuple[Prompts, Rows]]
  score: Callable[[Prompts, Rows, int], Float[np.ndarray, ' n']]
  phases: tuple[int, ...]
  warm_start: int
  probes: tuple[Prompts, Rows]
  measure: Callable[[Float[np.ndarray, ' m'], int], Measured]
  every: int = 5
  tuned_by: str = ''


def response(*tokens: int) -> list[int]:
  """A response with its end, padded."""
  padding = [PAD] * (RESPONSE - 1 - len(tokens))
  return [*tokens, END, *padding]


def equal(responses: Rows, wanted: Rows) -> Float[np.ndarray, ' n']:
  """1 for each response that is the wanted one, else 0."""
  return (responses == wanted).all(axis=1).astype(np.float32)


# D1: a changed rule.

_DIGITS = 8


def _digits_answer(prompts: Prompts, mode: Int[np.ndarray, ' n']) -> Rows:
  """Answers that copy three digits, forwards or backwards."""
  digits = prompts[:, :3]
  copied = np.where((mode == FORWARD)[:, None], digits, digits[:, ::-1])
  end = np.full((len(prompts), 1), END)
  return np.concatenate([mode[:, None], copied, end, 0 * end], axis=1)


def _digit_prompts(rng: np.random.Generator, count: int) -> Prompts:
  digits = FIRST_SYMBOL + rng.integers(_DIGITS, size=(count, 3))
  return np.concatenate([digits, np.full((count, 1), ASK)], axis=1)


def changed_rule(habit: int = 20, after: int = 40) -> StudyTask:
  """D1: copy digits forwards; then only backwards is rewarded.

  Args:
    habit: iterations before the rule changes.
    after: iterations after it.
  """

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = _digit_prompts(rng, count)
    mode = np.where(rng.random(count) < 0.1, REVERSE, FORWARD)
    return prompts, _digits_answer(prompts, mode)

  def score(
    prompts: Prompts, responses: Rows, phase: int
  ) -> Float[np.ndarray, ' n']:
    mode = np.full(len(prompts), (FORWARD, REVERSE)[phase])
    return equal(responses, _digits_answer(prompts, mode))

  held_out = _digit_prompts(np.random.default_rng(7), 64)
  twice = np.concatenate([held_out, held_out])
  modes = np.repeat([FORWARD, REVERSE], len(held_out))

  def measure(found: Float[np.ndarray, ' m'], phase: int) -> Measured:
    habit_rate, new = found.reshape(2, -1).mean(axis=1)
    return {
      'accuracy': float((habit_rate, new)[phase]),
      'habit': float(habit_rate),
      'new_rule': float(new),
    }

  return StudyTask(
    name='changed_rule',
    title='D1, a changed rule',
    metric='updates_to_half',
    higher_is_better=False,
    draw=_digit_prompts,
    demonstrate=demonstrate,
    score=score,
    phases=(habit, after),
    warm_start=400,
    probes=(twice, _digits_answer(twice, modes)),
    measure=measure,
    every=2,
  )


# D3: a combination lock with a distractor.

DEPTHS = (1, 2, 3, 4)
KEYS = 2
QUITS = 0.2


def _lock_prompts(depths: Int[np.ndarray, ' n']) -> Prompts:
  fixed = np.full(len(depths), NONE), np.full(len(depths), ASK)
  return np.stack([FIRST_SYMBOL + depths, fixed[0], *fixed], axis=1)


def _key(depth: int) -> list[int]:
  rng = np.random.default_rng(depth)
  return [int(FIRST_SYMBOL + k) for k in rng.integers(KEYS, size=depth)]


def _lock_answers(prompts: Prompts) -> Rows:
  return np.array(
    [response(GO, *_key(int(row[0]) - FIRST_SYMBOL)) for row in prompts]
  )


def lock(iterations: int = 80) -> StudyTask:
  """D3: quit for a reward of 0.5, or enter a key of depth d for a reward of 1."""

  def draw(rng: np.random.Generator, count: int) -> Prompts:
    return _lock_prompts(rng.choice(DEPTHS, size=count))

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = draw(rng, count)
    rows = []
    for prompt in prompts:
      depth = int(prompt[0]) - FIRST_SYMBOL
      guess = FIRST_SYMBOL + rng.integers(KEYS, size=depth)
      quits = rng.random() < QUITS
      rows.append(response(QUIT) if quits else response(GO, *map(int, guess)))
    return prompts, np.array(rows)

  quitting = np.array(response(QUIT))

  def score(
    prompts: Prompts, responses: Rows, phase: int
  ) -> Float[np.ndarray, ' n']:
    del phase
    key = equal(responses, _lock_answers(prompts))
    return key + 0.5 * equal(responses, quitting[None])

  every = _lock_prompts(np.array(DEPTHS))

  def measure(found: Float[np.ndarray, ' m'], phase: int) -> Measured:
    del phase
    left = found > 0.5
    return {'left': float(left.mean()), 'accuracy': float(found.mean())} | {
      f'left/{depth}': float(each)
      for depth, each in zip(DEPTHS, left, strict=True)
    }

  return StudyTask(
    name='lock',
    title='D3, a combination lock',
    metric='left',
    draw=draw,
    demonstrate=demonstrate,
    score=score,
    phases=(iterations,),
    warm_start=300,
    probes=(every, _lock_answers(every)),
    measure=measure,
  )


# D2 and D4: paths on a grid with one wall.

Cell = tuple[int, int]


def _cell(token: int) -> Cell:
  return divmod(token - FIRST_SYMBOL, SIDE)


def _token(cell: Cell) -> int:
  return FIRST_SYMBOL + SIDE * cell[0] + cell[1]


def _neighbours(cell: Cell, wall: Cell) -> list[Cell]:
  row, column = cell
  around = (
    (row + 1, column),
    (row - 1, column),
    (row, column + 1),
    (row, column - 1),
  )
  return [
    c for c in around if 0 <= c[0] < SIDE and 0 <= c[1] < SIDE and c != wall
  ]


def paths(start: Cell, goal: Cell, wall: Cell, most: int) -> list[list[Cell]]:
  """All paths of at most `most` steps that visit no cell twice."""
  found: list[list[Cell]] = []

  def follow(path: list[Cell]) -> None:
    for cell in _neighbours(path[-1], wall):
      if cell == goal:
        found.append([*path[1:], cell])
      elif cell not in path and len(path) < most:
        follow([*path, cell])

  follow([start])
  return found


def _grid() -> dict[tuple[int, ...], list[list[int]]]:
  """Responses that solve each prompt: goals in three to five steps."""
  cells: list[Cell] = list(itertools.product(range(SIDE), range(SIDE)))
  solved = {}
  for start, goal, wall in itertools.permutations(cells, 3):
    distance = abs(start[0] - goal[0]) + abs(start[1] - goal[1])
    if 3 <= distance <= 5:
      answers = paths(start, goal, wall, RESPONSE - 1)
      if answers:
        prompt = _token(start), _token(goal), _token(wall), ASK
        solved[prompt] = [response(*map(_token, path)) for path in answers]
  return solved


class Grid:
  """All prompts of a grid, each with all of its solutions.

  Attributes:
    solutions: solutions by prompt.
    train: prompts to train on.
    held_out: the other prompts, at most 64.
  """

  def __init__(self) -> None:
    self.solutions = _grid()
    order = np.random.default_rng(5).permutation(sorted(self.solutions))
    self.held_out, self.train = order[:64], order[64:]
    self._sets = {
      prompt: set(map(tuple, rows)) for prompt, rows in self.solutions.items()
    }

  def is_habitual(self, prompts: Prompts) -> np.ndarray:
    """Whether the goal lies neither above nor to the left of the start."""
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
    return np.array([each[rng.integers(len(each))] for each in answers])

  def probes(self, prompts: Prompts) -> tuple[Prompts, Rows]:
    """All pairs of a prompt and a solution."""
    pairs = [
      (prompt, row)
      for prompt in prompts.tolist()
      for row in self.solutions[tuple(prompt)]
    ]
    asked, rows = zip(*pairs, strict=True)
    return np.array(asked), np.array(rows)

  def coverage(
    self, prompts: Prompts, found: Float[np.ndarray, ' m'], samples: int = 64
  ) -> dict[str, np.ndarray]:
    """Exact pass@1, pass@64 and distinct solutions in 64 samples, by prompt."""
    counts = [len(self.solutions[tuple(p)]) for p in prompts.tolist()]
    each = np.split(found, np.cumsum(counts)[:-1])
    solved = np.array([p.sum() for p in each])
    return {
      'accuracy': solved,
      'pass64': 1 - (1 - np.minimum(solved, 1)) ** samples,
      'distinct': np.array([(1 - (1 - p) ** samples).sum() for p in each]),
    }


def many_solutions(iterations: int = 400, every: int = 20) -> StudyTask:
  """D2: paths, of which all solutions are known, long after saturation.

  Args:
    iterations: iterations.
    every: iterations between evaluations.
  """
  grid = Grid()

  def draw(rng: np.random.Generator, count: int) -> Prompts:
    return grid.train[rng.integers(len(grid.train), size=count)]

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = draw(rng, count)
    return prompts, grid.random_solutions(rng, prompts)

  def measure(found: Float[np.ndarray, ' m'], phase: int) -> Measured:
    del phase
    figures = grid.coverage(grid.held_out, found)
    return {name: float(values.mean()) for name, values in figures.items()}

  return StudyTask(
    name='many_solutions',
    title='D2, many solutions',
    metric='distinct',
    tuned_by='accuracy',
    draw=draw,
    demonstrate=demonstrate,
    score=grid.score,
    phases=(iterations,),
    warm_start=250,
    probes=grid.probes(grid.held_out),
    measure=measure,
    every=every,
  )


def pushed(iterations: int = 60) -> StudyTask:
  """D5: D2 until about saturation, judged by pass@1."""
  return dataclasses.replace(
    many_solutions(iterations, every=5),
    name='pushed',
    title='D5, how far it can be pushed',
    metric='accuracy',
    tuned_by='',
  )


def out_of_distribution(iterations: int = 40) -> StudyTask:
  """D4: the warm start goes down and right; training and test ask for all goals."""
  grid = Grid()
  habitual = grid.is_habitual(grid.train)
  skewed = np.where(habitual, 1.0, 0.02)
  skewed /= skewed.sum()

  def draw(rng: np.random.Generator, count: int) -> Prompts:
    return grid.train[rng.integers(len(grid.train), size=count)]

  def demonstrate(rng: np.random.Generator, count: int) -> tuple[Prompts, Rows]:
    prompts = grid.train[rng.choice(len(grid.train), size=count, p=skewed)]
    return prompts, grid.random_solutions(rng, prompts)

  unusual = ~grid.is_habitual(grid.held_out)

  def measure(found: Float[np.ndarray, ' m'], phase: int) -> Measured:
    del phase
    figures = grid.coverage(grid.held_out, found)
    values = {name: float(each.mean()) for name, each in figures.items()}
    values['unusual'] = float(figures['accuracy'][unusual].mean())
    values['unusual_pass64'] = float(figures['pass64'][unusual].mean())
    values['habitual'] = float(figures['accuracy'][~unusual].mean())
    return values

  return StudyTask(
    name='out_of_distribution',
    title='D4, out of distribution',
    metric='unusual',
    draw=draw,
    demonstrate=demonstrate,
    score=grid.score,
    phases=(iterations,),
    warm_start=500,
    probes=grid.probes(grid.held_out),
    measure=measure,
    every=10,
  )


TASKS: dict[str, Callable[[], StudyTask]] = {
  'changed_rule': changed_rule,
  'lock': lock,
  'many_solutions': many_solutions,
  'out_of_distribution': out_of_distribution,
}
"""Tasks on which all arms are tuned and compared."""
ALL_TASKS: Mapping[str, Callable[[], StudyTask]] = TASKS | {'pushed': pushed}
