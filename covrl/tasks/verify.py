# SPDX-License-Identifier: Apache-2.0
"""What is known of a task before anything is trained: do its judges work?

A reference that is not judged right when it is given as the answer would pay
the policy for something else. Such references are counted and named, and too
many of them stop a run before it begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from covrl.data import Problem, ProblemSource
from covrl.rewards import Scores, Scoring
from covrl.tasks.task import Task

MOST_WRONG = 0.01
"""Share of references that may fail to be judged right."""

_NAMED = 3
_AT_ONCE = 4096


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
  """A problem as the policy will see it, and what its right answer earns.

  Attributes:
    prompt: as the policy is given it.
    source: where it is from.
    place: where it stands there.
    response: a right response; `None` where nobody knows one.
    reward: of this response, all parts together; must be the most there is.
    parts: of this response, by the name of the reward.
  """

  prompt: str
  source: str
  place: str
  response: str | None
  reward: float | None
  parts: dict[str, float]


def preview(task: Task, scoring: Scoring, *, count: int = 3) -> list[Preview]:
  """The first problems to train on, with the reward of their references.

  Args:
    task: its problems.
    scoring: its rewards.
    count: how many problems.

  Raises:
    RuntimeError: there is no one to judge.
  """
  size = min(count, len(task.train))
  problems = [task.train[index] for index in range(size)]
  known = [p for p in problems if task.right_response(p) is not None]
  scores = iter(_rows(_scores(task, scoring, known)))
  previews = []
  for problem in problems:
    response = task.right_response(problem)
    reward, parts = (None, {}) if response is None else next(scores)
    previews.append(
      Preview(
        prompt=problem.prompt,
        source=problem.source,
        place=problem.place,
        response=response,
        reward=reward,
        parts=parts,
      )
    )
  return previews


def check_references(
  task: Task, scoring: Scoring, *, programs: int
) -> list[str]:
  """Gives every reference as the answer to its problem, and counts the wrong.

  Args:
    task: says which problems are checked.
    scoring: its rewards.
    programs: how many programs, evenly spaced, are run.

  Returns:
    Sentences on those that are not judged right, one for each source.

  Raises:
    ValueError: they are more than 1 % of a source; the sentence names the
      first ones by file, row and column.
    RuntimeError: there is no one to judge.
  """
  notes = []
  for name, problems in _by_source(task.checked).items():
    known = [p for p in problems if task.right_response(p) is not None]
    if known and known[0].kind == 'code':
      known = _spaced(known, programs)
    wrong = _wrong(task, scoring, known)
    if not wrong:
      continue
    text = (
      f'{len(wrong)} of {len(known):,} reference answers of {name} are not'
      f' judged right when they are given: {"; ".join(wrong[:_NAMED])}'
    )
    if len(wrong) > MOST_WRONG * len(known):
      raise ValueError(
        f'at most {MOST_WRONG:.0%} of the reference answers of a source may'
        f' fail to be judged right, {text}'
      )
    notes.append(text)
  return notes


def _by_source(sources: Iterable[ProblemSource]) -> dict[str, list[Problem]]:
  found: dict[str, list[Problem]] = {}
  for source in sources:
    for index in range(len(source)):
      problem = source[index]
      found.setdefault(problem.source, []).append(problem)
  return found


def _spaced(problems: Sequence[Problem], count: int) -> list[Problem]:
  """So many of the problems, evenly spaced."""
  places = np.linspace(0, len(problems) - 1, min(count, len(problems)))
  return [problems[place] for place in places.round().astype(int)]


def _wrong(
  task: Task, scoring: Scoring, problems: Sequence[Problem]
) -> list[str]:
  """Where the references stand that are not judged right, and what they are."""
  wrong = []
  for start in range(0, len(problems), _AT_ONCE):
    some = problems[start : start + _AT_ONCE]
    scores = _scores(task, scoring, some)
    for problem, mark, detail in zip(
      some, scores.marks(), _details(scores, len(some)), strict=True
    ):
      if not mark >= 1:
        shown = str(problem.reference)[:40]
        wrong.append(
          f'column {problem.column!r} of {problem.place}, {shown!r} ({detail})'
        )
  return wrong


def _scores(
  task: Task, scoring: Scoring, problems: Sequence[Problem]
) -> Scores:
  """Scores of the right responses to some problems."""
  responses = [task.right_response(problem) or '' for problem in problems]
  return scoring.submit(
    responses,
    [problem.reference for problem in problems],
    sources=[problem.source for problem in problems],
    lengths=[1] * len(problems),
  ).result()


def _rows(scores: Scores) -> list[tuple[float, dict[str, float]]]:
  """Total and parts of every response."""
  return [
    (
      total,
      {
        name: outcome.score
        for name, outcomes in scores.outcomes.items()
        if (outcome := outcomes[row]) is not None
      },
    )
    for row, total in enumerate(scores.totals())
  ]


def _details(scores: Scores, count: int) -> list[str]:
  """How each response was judged, in words."""
  return [
    ', '.join(
      f'{outcome.status.value}: {outcome.detail}'
      if outcome.detail
      else outcome.status.value
      for outcomes in scores.outcomes.values()
      if (outcome := outcomes[row]) is not None
    )
    for row in range(count)
  ]
