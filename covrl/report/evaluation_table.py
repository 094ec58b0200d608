# SPDX-License-Identifier: Apache-2.0
"""Table of accuracies by evaluation set, with published results.

The unit of inference is the problem: intervals are over problems, differences
are paired by problem, and seeds of a configuration are averaged per problem.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from covrl.evaluation.intervals import Estimate, bootstrap_sets
from covrl.report import formats
from covrl.report.evaluation_settings import setting_notes
from covrl.report.formats import join_words
from covrl.report.inputs.problem_results import ProblemId, problem_score
from covrl.report.inputs.published_results import PUBLISHED_ROWS
from covrl.report.inputs.run_data import RunData

OWN_PROBLEMS = 'held out'
"""Displayed name of a run's own problems, which have no set name."""

Scores = dict[ProblemId, list[float]]


@dataclasses.dataclass(frozen=True)
class EvaluationTable:
  """A table with one row per evaluation set, followed by means.

  Attributes:
    titles: titles of the columns after the set's name.
    rows: name and cells of each set.
    means: name and cells of each mean.
    notes: notes below the table.
  """

  titles: Sequence[str]
  rows: Sequence[tuple[str, Sequence[str]]]
  means: Sequence[tuple[str, Sequence[str]]]
  notes: Sequence[str]


@dataclasses.dataclass(frozen=True)
class _Column:
  """Scores of a configuration.

  Attributes:
    name: title of the column.
    recipe: recipe of the configuration's runs.
    scores: scores by set and problem; NaN for a problem without one.
  """

  name: str
  recipe: str
  scores: Scores

  def scores_of(self, name: str) -> Float[np.ndarray, ' N']:
    """Scores of the problems of a set that have one."""
    scores = np.array(
      [
        score
        for (set_name, _), scores in self.scores.items()
        if set_name == name
        for score in scores
      ],
      float,
    )
    return scores[~np.isnan(scores)]


def evaluation_table(
  configurations: Sequence[tuple[str, Sequence[RunData]]],
) -> EvaluationTable | None:
  """Compares the latest results of configurations.

  Scores of a set are means over samples if all runs have samples of the set,
  and results of greedy responses otherwise.

  Args:
    configurations: name and runs of each; the first one is the baseline.

  Returns:
    The table, without rows if the runs share no set; `None` if no results by
    problem were saved.
  """
  names, notes = _shared_sets(configurations)
  if not names:
    return EvaluationTable([], [], [], notes) if notes else None
  metrics = {name: _metric_of(configurations, name) for name in names}
  columns = [
    _Column(
      name, runs[0].name.rpartition(':')[2], _problem_scores(runs, metrics)
    )
    for name, runs in configurations
  ]
  # A problem whose responses could not be scored has no score.
  for name in tuple(names):
    unscored = [c.name for c in columns if not c.scores_of(name).size]
    if unscored:
      names.remove(name)
      notes.append(
        f'{name or OWN_PROBLEMS} is left out, of which {join_words(unscored)} has'
        ' no response with a score.'
      )
  if not names:
    return EvaluationTable([], [], [], notes)
  baseline, *others = columns
  published = {
    column.recipe: PUBLISHED_ROWS[column.recipe]
    for column in columns
    if column.recipe in PUBLISHED_ROWS
  }
  titles = ['problems', 'metric', baseline.name]
  for other in others:
    titles += [other.name, f'Δ {other.name}']
  titles += [f'paper: {row.name}' for row in published.values()]

  def cells(sets: Sequence[str], size: str, metric: str) -> list[str]:
    """Cells of a set, or of the unweighted mean over several sets."""
    row = [size, metric, _mean(baseline, sets)]
    for other in others:
      row += [_mean(other, sets), _difference(other, baseline, sets)]
    for reference in published.values():
      mean = reference.mean(sets)
      row.append('–' if mean is None else formats.fixed(mean, 1))
    return row

  rows = [
    (
      name or OWN_PROBLEMS,
      cells([name], f'{columns[0].scores_of(name).size:,}', metrics[name]),
    )
    for name in names
  ]
  means = []
  if len(names) > 1 or published:
    means.append(('plain mean over sets', cells(names, '', '')))
  if published:
    blanks = [''] * (len(titles) - len(published))
    printed_cells = [
      formats.fixed(row.printed_average, 1) for row in published.values()
    ]
    means.append(('average as printed', [*blanks, *printed_cells]))
  notes += [
    note
    for column, (_, runs) in zip(columns, configurations, strict=True)
    for name in names
    if (note := _partly_answered(column, runs, name, metrics[name]))
  ]
  notes += [
    note
    for other in others
    for name in names
    if (note := _unmatched(other, baseline, name))
  ]
  notes += setting_notes(configurations, names)
  return EvaluationTable(titles, rows, means, notes)


def _shared_sets(
  configurations: Sequence[tuple[str, Sequence[RunData]]],
) -> tuple[list[str], list[str]]:
  """Sets of which every run has results, and a note on each of the other ones."""
  runs = [run for _, runs in configurations for run in runs]
  runs_by_set: dict[str, list[str]] = {}
  for run in runs:
    for name in dict.fromkeys(set_name for set_name, _ in run.latest_results):
      runs_by_set.setdefault(name, []).append(run.path.name)
  shared = [n for n, names in runs_by_set.items() if len(names) == len(runs)]
  notes = [
    f'{name or OWN_PROBLEMS} is left out, of which only {join_words(names)} of the'
    f' {len(runs):,} runs {"has" if len(names) == 1 else "have"} results.'
    for name, names in runs_by_set.items()
    if len(names) < len(runs)
  ]
  return shared, notes


def _metric_of(
  configurations: Sequence[tuple[str, Sequence[RunData]]], name: str
) -> str:
  """Metric by which a set is compared: `mean@k` or `greedy`."""
  counts = {
    len(record.get('correct') or ())
    for _, runs in configurations
    for run in runs
    for (set_name, _), records in run.latest_results.items()
    if set_name == name
    for record in records
  }
  if 0 in counts:
    return 'greedy'
  return f'mean@{"/".join(map(str, sorted(counts)))}'


def _problem_scores(
  runs: Sequence[RunData], metrics: Mapping[str, str]
) -> Scores:
  """Score of each problem, mean over the runs that have it; NaN if none has."""
  scores_by_run: dict[ProblemId, list[list[float | None]]] = {}
  for run in runs:
    for problem, records in run.latest_results.items():
      if problem[0] in metrics:
        scores = [problem_score(r, metrics[problem[0]]) for r in records]
        scores_by_run.setdefault(problem, []).append(scores)

  def mean(repeated_scores: Sequence[float | None]) -> float:
    scores = [score for score in repeated_scores if score is not None]
    return float(np.mean(scores)) if scores else math.nan

  return {
    problem: [*map(mean, itertools.zip_longest(*lists))]
    for problem, lists in scores_by_run.items()
  }


def _mean(column: _Column, sets: Sequence[str]) -> str:
  """Cell of the mean score over sets."""
  return _estimate_text(
    bootstrap_sets([column.scores_of(name) for name in sets]), formats.fixed
  )


def _difference(column: _Column, baseline: _Column, sets: Sequence[str]) -> str:
  """Cell of the mean difference from the baseline over sets."""
  pairs = [_paired(column, baseline, name) for name in sets]
  if not all(pair.size for pair in pairs):
    return '–'
  return _estimate_text(bootstrap_sets(pairs), formats.signed)


def _paired(
  column: _Column, baseline: _Column, name: str
) -> Float[np.ndarray, ' N']:
  """Score minus that of the baseline, for problems that both have."""
  differences = np.array(
    [
      score - baseline_score
      for problem, scores in column.scores.items()
      if problem[0] == name
      for score, baseline_score in zip(
        scores, baseline.scores.get(problem, ()), strict=False
      )
    ],
    float,
  )
  return differences[~np.isnan(differences)]


def _partly_answered(
  column: _Column, runs: Sequence[RunData], name: str, metric: str
) -> str:
  """Note about problems of a set that have a score in some runs only."""
  counts = Counter(
    problem
    for run in runs
    for problem, records in run.latest_results.items()
    if problem[0] == name
    and any(problem_score(record, metric) is not None for record in records)
  )
  num_partly = sum(count < len(runs) for count in counts.values())
  if not num_partly:
    return ''
  return (
    f'{num_partly:,} of the {len(counts):,} problems of {name or OWN_PROBLEMS} have'
    f' a score in only some of the runs of {column.name}, which is their mean over'
    ' these runs.'
  )


def _unmatched(column: _Column, baseline: _Column, name: str) -> str:
  """Note about problems of a set that only one of two columns has."""
  num_both = _paired(column, baseline, name).size
  num_alone = (
    column.scores_of(name).size + baseline.scores_of(name).size - 2 * num_both
  )
  if not num_alone:
    return ''
  return (
    f'{num_alone:,} problems of {name or OWN_PROBLEMS} were answered by only one '
    f'of {column.name} and {baseline.name}; differences leave them out.'
  )


def _estimate_text(
  estimate: Estimate, number_format: Callable[[float, int], str]
) -> str:
  """An estimate in percent with its 95 % interval, a dash without one."""
  text = number_format(100 * estimate.value, 1)
  if estimate.low is None or estimate.high is None:
    return f'{text} (–)'
  low, high = (
    formats.fixed(100 * end, 1) for end in (estimate.low, estimate.high)
  )
  return f'{text} ({low} to {high})'
