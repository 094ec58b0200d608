# SPDX-License-Identifier: Apache-2.0
"""Checks a task's rewards by grading its reference answers.

A reference that is not graded as correct would reward wrong responses. Such
references are counted and reported; too many of them are an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

import numpy as np

from covrl.config import ConfigError
from covrl.data import Problem, ProblemSource
from covrl.data.fingerprints import text_fingerprint
from covrl.rewards import Scores, Scoring, Status
from covrl.tasks.task import Task

MAX_WRONG_FRACTION = 0.01
"""Fraction of references that may be graded as wrong."""

# Number of wrong references that a message names.
_MAX_EXAMPLES = 3
# Number of references that are graded together.
_BATCH_SIZE = 4096
# The first training problems, of which one of each source is scored.
_FIRST_PROBLEMS = 16


def check_references(
  task: Task, scoring: Scoring, *, programs: int
) -> list[str]:
  """Grades every reference as the response to its problem.

  Args:
    task: problems and rewards.
    scoring: the task's scoring workers.
    programs: number of programs to run per source, evenly spaced.

  Returns:
    One sentence for each source with references that are graded as wrong.

  Raises:
    ValueError: more than 1 % of a source's references are wrong; the message
      names the first ones by file, row and column.
    RuntimeError: the scoring workers are unavailable.
  """
  warnings = []
  for name, problems in _by_source(task.checked_sources).items():
    with_reference = [
      p for p in problems if task.reference_response(p) is not None
    ]
    if with_reference and with_reference[0].kind == 'code':
      with_reference = _evenly_spaced(with_reference, programs)
    wrong = _wrong_references(task, scoring, with_reference)
    if not wrong:
      continue
    examples = '; '.join(wrong[:_MAX_EXAMPLES])
    if len(wrong) > MAX_WRONG_FRACTION * len(with_reference):
      raise ValueError(
        f'at least {1 - MAX_WRONG_FRACTION:.0%} of the reference answers of a source'
        f' must be graded as correct, got {len(with_reference) - len(wrong):,} of'
        f' {len(with_reference):,} of {name}; wrong: {examples}'
      )
    warnings.append(
      f'{len(wrong)} of {len(with_reference):,} reference answers of {name} are graded as'
      f' wrong when they are the responses: {examples}'
    )
  return warnings


def check_scores(task: Task, scoring: Scoring) -> dict[str, str]:
  """Scores a real problem of each source, after all workers have started.

  The response is the reference response or, if it is unknown, the reference as
  text or else the prompt: one of them must have a score.

  Args:
    task: problems and rewards.
    scoring: the task's scoring workers.

  Returns:
    A digest of the scores of each reward by its name, of these responses and of
    wrong ones. It differs where a score function reads something that has changed.

  Raises:
    ConfigError: a reward does not give a response a score.
    RuntimeError: the scoring workers cannot be started.
  """
  scoring.warm_up()
  problem_by_source: dict[str, Problem] = {}
  for index in range(min(_FIRST_PROBLEMS, len(task.train))):
    problem = task.train[index]
    problem_by_source.setdefault(problem.source, problem)
  scores_by_reward: dict[str, list[float | None]] = {}
  for problem in problem_by_source.values():
    reference_response = task.reference_response(problem)
    responses = [str(problem.reference), problem.prompt]
    count = len(responses)
    if reference_response is not None:
      responses = [reference_response, *responses]
      count = 1
    responses.append('')
    scores = scoring.submit(
      responses,
      [problem.reference] * len(responses),
      sources=[problem.source] * len(responses),
      lengths=[1] * len(responses),
    ).result()
    for name, outcomes in scores.outcomes.items():
      scores_by_reward.setdefault(name, []).extend(
        outcome.score if outcome is not None and outcome.has_score else None
        for outcome in outcomes
      )
      failed = [
        outcome
        for outcome in outcomes[:count]
        if outcome is not None
        and not outcome.has_score
        and outcome.status in (Status.CRASH, Status.INVALID)
      ]
      if len(failed) == count:
        raise ConfigError(
          f'the reward {name!r} must be a function (response, reference) -> number'
          f' or Outcome, got for the response {_shortened(responses[0])} and the'
          f' reference {_shortened(problem.reference)}: {failed[0].detail}'
        )
  return {
    name: text_fingerprint(json.dumps(scores))
    for name, scores in scores_by_reward.items()
  }


def _shortened(value: object) -> str:
  """Returns a value's text of at most 60 characters."""
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:59]}…'


def _by_source(sources: Iterable[ProblemSource]) -> dict[str, list[Problem]]:
  """Groups the problems of all sources by the name of their data source."""
  groups: dict[str, list[Problem]] = {}
  for source in sources:
    for index in range(len(source)):
      problem = source[index]
      groups.setdefault(problem.source, []).append(problem)
  return groups


def _evenly_spaced(problems: Sequence[Problem], count: int) -> list[Problem]:
  """Selects `count` problems, evenly spaced."""
  indices = np.linspace(0, len(problems) - 1, min(count, len(problems)))
  return [problems[index] for index in indices.round().astype(int)]


def _wrong_references(
  task: Task, scoring: Scoring, problems: Sequence[Problem]
) -> list[str]:
  """Describes the references that are graded as wrong, with their location."""
  descriptions = []
  for start in range(0, len(problems), _BATCH_SIZE):
    batch = problems[start : start + _BATCH_SIZE]
    scores = _scores(task, scoring, batch)
    for problem, is_correct, detail in zip(
      batch, scores.correctness(), _details(scores, len(batch)), strict=True
    ):
      if is_correct != 1:
        reference = str(problem.reference)[:40]
        descriptions.append(
          f'column {problem.column!r} of {problem.location}, {reference!r} ({detail})'
        )
  return descriptions


def _scores(
  task: Task, scoring: Scoring, problems: Sequence[Problem]
) -> Scores:
  """Scores the reference responses to some problems."""
  responses = [task.reference_response(problem) or '' for problem in problems]
  return scoring.submit(
    responses,
    [problem.reference for problem in problems],
    sources=[problem.source for problem in problems],
    lengths=[1] * len(problems),
  ).result()


def _details(scores: Scores, count: int) -> list[str]:
  """Describes the outcomes of each response."""
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
