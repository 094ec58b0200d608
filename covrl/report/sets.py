# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets in a table: levels, differences paired by problem, the paper.

The unit of inference is the problem: would other problems of the same kind
show the same? Seeds of a configuration are averaged problem by problem before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from covrl.evaluation.intervals import Estimate, bootstrap_sets
from covrl.report import words
from covrl.report.published import PUBLISHED
from covrl.report.run import ProblemId, Run

OWN = 'held out'
"""How a run's own problems are called, which are of no named set."""

Scores = dict[ProblemId, list[float]]


@dataclasses.dataclass(frozen=True)
class SetTable:
  """A table with one row a set, and the means below.

  Attributes:
    titles: of the columns behind the set's name.
    rows: name and cells of each set.
    means: the same of the rows below.
    notes: sentences on what the table does not show.
  """

  titles: Sequence[str]
  rows: Sequence[tuple[str, Sequence[str]]]
  means: Sequence[tuple[str, Sequence[str]]]
  notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Column:
  """A configuration: what its runs answered, set by set."""

  name: str
  recipe: str
  scores: Scores

  def of(self, name: str) -> Float[np.ndarray, ' N']:
    """Scores of a set's problems."""
    return np.array(
      [
        score
        for (suite, _), scores in self.scores.items()
        if suite == name
        for score in scores
      ]
    )


def set_table(
  configurations: Sequence[tuple[str, Sequence[Run]]],
) -> SetTable | None:
  """Puts the latest results of some configurations beside one another.

  A set counts by its samples' mean where all of them have samples of it, and
  else by the likeliest responses.

  Args:
    configurations: name and runs of each; the first one is the baseline.

  Returns:
    The table; `None` where no result by problem was kept.
  """
  names = _sets(configurations)
  if not names:
    return None
  sampled = {name: _is_sampled(configurations, name) for name in names}
  columns = [
    _Column(name, runs[0].name, _merged(runs, sampled))
    for name, runs in configurations
  ]
  baseline, *others = columns
  papers = {
    column.recipe: PUBLISHED[column.recipe]
    for column in columns
    if column.recipe in PUBLISHED
  }
  titles = ['problems', 'by', baseline.name]
  for other in others:
    titles += [other.name, f'Δ {other.name}']
  titles += [f'paper: {row.name}' for row in papers.values()]

  def cells(sets: Sequence[str], size: str, by: str) -> list[str]:
    """One row: of a set, or of the plain mean over several."""
    row = [size, by, _level(baseline, sets)]
    for other in others:
      row += [_level(other, sets), _difference(other, baseline, sets)]
    for paper in papers.values():
      mean = paper.mean(sets)
      row.append('–' if mean is None else words.fixed(mean, 1))
    return row

  rows = [
    (name or OWN, cells([name], f'{columns[0].of(name).size:,}', sampled[name]))
    for name in names
  ]
  means = []
  if len(names) > 1 or papers:
    means.append(('plain mean over sets', cells(names, '', '')))
  if papers:
    blanks = [''] * (len(titles) - len(papers))
    printed = [words.fixed(row.printed, 1) for row in papers.values()]
    means.append(('average as printed', [*blanks, *printed]))
  notes = [
    note
    for other in others
    for name in names
    if (note := _unmatched(other, baseline, name))
  ]
  return SetTable(titles, rows, means, notes)


def _sets(
  configurations: Sequence[tuple[str, Sequence[Run]]],
) -> list[str]:
  """Sets that every run has results of, in the first one's order."""
  found: list[dict[str, None]] = [
    dict.fromkeys(suite for suite, _ in run.answered)
    for _, runs in configurations
    for run in runs
  ]
  return [name for name in found[0] if all(name in each for each in found)]


def _is_sampled(
  configurations: Sequence[tuple[str, Sequence[Run]]], name: str
) -> str:
  """By which figure a set is compared: `mean@k`, or `greedy`."""
  counts = {
    len(record.get('correct') or ())
    for _, runs in configurations
    for run in runs
    for (suite, _), records in run.answered.items()
    if suite == name
    for record in records
  }
  if 0 in counts:
    return 'greedy'
  return f'mean@{"/".join(map(str, sorted(counts)))}'


def _merged(runs: Sequence[Run], by: Mapping[str, str]) -> Scores:
  """Each problem's score, mean over the runs that have it."""
  found: dict[ProblemId, list[list[float]]] = {}
  for run in runs:
    for problem, records in run.answered.items():
      if problem[0] in by:
        scores = [_score(record, by[problem[0]]) for record in records]
        found.setdefault(problem, []).append(scores)
  return {
    problem: [float(np.mean(each)) for each in zip(*lists, strict=False)]
    for problem, lists in found.items()
  }


def _score(record: Mapping[str, Any], by: str) -> float:
  marks = [record['greedy']] if by == 'greedy' else record['correct']
  return float(np.mean(marks))


def _level(column: _Column, sets: Sequence[str]) -> str:
  return _text(bootstrap_sets([column.of(name) for name in sets]), words.fixed)


def _difference(column: _Column, baseline: _Column, sets: Sequence[str]) -> str:
  pairs = [_paired(column, baseline, name) for name in sets]
  if not all(pair.size for pair in pairs):
    return '–'
  return _text(bootstrap_sets(pairs), words.signed)


def _paired(
  column: _Column, baseline: _Column, name: str
) -> Float[np.ndarray, ' N']:
  """Score minus the baseline's, of the problems that both have."""
  return np.array(
    [
      ours - theirs
      for problem, scores in column.scores.items()
      if problem[0] == name
      for ours, theirs in zip(
        scores, baseline.scores.get(problem, ()), strict=False
      )
    ]
  )


def _unmatched(column: _Column, baseline: _Column, name: str) -> str:
  """How many problems of a set only one of two has."""
  both = _paired(column, baseline, name).size
  alone = column.of(name).size + baseline.of(name).size - 2 * both
  if not alone:
    return ''
  return (
    f'{alone:,} problems of {name or OWN} were answered only by one of'
    f' {column.name} and {baseline.name}; they count in no difference.'
  )


def _text(estimate: Estimate, form: Any) -> str:
  """Percent, with the 95 % interval."""
  low, high = (
    words.fixed(100 * end, 1)
    for end in (estimate.low, estimate.high)
    if end is not None
  )
  return f'{form(100 * estimate.value, 1)} ({low} to {high})'
