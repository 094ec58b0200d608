# SPDX-License-Identifier: Apache-2.0
"""Statistics of several runs, grouped by configuration and paired by seed.

The unit of inference is the seed: a value is the mean over a configuration's
seeds, and a difference from the baseline (the first configuration) is paired by
seed, both with Student's t intervals. Differences leave out seeds that the
baseline lacks. A single seed gives a value without an interval.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from covrl.evaluation import intervals
from covrl.evaluation.intervals import Estimate
from covrl.report.inputs.phase_metrics import Curve
from covrl.report.inputs.run_data import RunData, load_run
from covrl.report.inputs.run_json import flatten_config

# Prefixes of fields in which the runs of one configuration may differ: the
# seed, and fields that do not change results.
_IGNORED_FIELDS = (
  'seed',
  'warm_start.from_run',
  'logging.',
  'checkpoint.',
  'mesh.',
)


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one configuration.

  Attributes:
    name: name of the configuration.
    short_name: name without a prefix that all names share, for figures.
    runs: runs by seed.
    config: configuration by dotted field name, without ignored fields.
  """

  name: str
  short_name: str
  runs: Mapping[int, RunData]
  config: Mapping[str, str]

  @property
  def seeds_by_recipe(self) -> list[list[int]]:
    """Seeds whose runs have the same files of the recipe, for each such set.

    Runs without files are left out.
    """
    seeds_by_files: dict[tuple[tuple[str, bytes], ...], list[int]] = {}
    for seed, run in self.runs.items():
      if run.recipe_files:
        seeds_by_files.setdefault(run.recipe_files, []).append(seed)
    return list(seeds_by_files.values())

  def mean(self, metric: str) -> Estimate | None:
    """Mean over seeds of the final value of a metric."""
    return _mean_over_seeds(
      [final_value(run, metric) for run in self.runs.values()]
    )

  def difference(self, baseline: Group, metric: str) -> Estimate | None:
    """Final value minus that of the baseline, paired by seed."""
    pairs = [
      (final_value(run, metric), final_value(baseline.runs[seed], metric))
      for seed, run in self.runs.items()
      if seed in baseline.runs
    ]
    return _mean_over_seeds(
      [a - b for a, b in pairs if a is not None and b is not None]
    )

  def curve(self, phase: str, field: str) -> tuple[Curve, Curve, Curve]:
    """Mean, minimum and maximum over seeds, where all seeds have values.

    Args:
      phase: `'train'` or `'evals'`.
      field: name of the metric.
    """
    metrics = [getattr(run, phase) for run in self.runs.values()]
    curves = [
      curve
      for phase_metrics in metrics
      if (curve := phase_metrics.curve(field))
    ]
    if not curves:
      empty = Curve(np.zeros(0), np.zeros(0))
      return empty, empty, empty
    common_x = functools.reduce(np.intersect1d, [curve.x for curve in curves])
    rows = np.stack([c.y[np.isin(c.x, common_x)] for c in curves])
    mean, low, high = (
      Curve(common_x, rows.mean(0)),
      Curve(common_x, rows.min(0)),
      Curve(common_x, rows.max(0)),
    )
    return mean, low, high


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Groups of runs, the first of which is the baseline.

  Attributes:
    groups: at least one group.
    metrics: accuracies that at least one run has, and entropy.
    main_accuracy: accuracy by which the groups are compared first.
  """

  groups: Sequence[Group]
  metrics: Sequence[str]
  main_accuracy: str

  @property
  def baseline(self) -> Group:
    """The first group."""
    return self.groups[0]

  @property
  def seeds(self) -> list[int]:
    """All seeds in ascending order."""
    return sorted({seed for group in self.groups for seed in group.runs})

  @property
  def metrics_of_differences(self) -> list[str]:
    """Metrics with differences in the table: greedy only as the main accuracy."""
    return [m for m in self.metrics if m != 'greedy' or m == self.main_accuracy]

  def differences(self, metric: str) -> list[tuple[Group, Estimate]]:
    """Known differences from the baseline."""
    return [
      (group, estimate)
      for group in self.groups[1:]
      if (estimate := group.difference(self.baseline, metric)) is not None
    ]

  def first_evaluation(self, metric: str) -> Estimate | None:
    """Mean over seeds of a metric at the first evaluation, before RL.

    Runs of one seed may share their warm start, so a seed counts once.
    """
    means = []
    for seed in self.seeds:
      values = [
        value
        for group in self.groups
        if seed in group.runs
        and (value := _first_and_last(group.runs[seed], metric)[0]) is not None
      ]
      if values:
        means.append(float(np.mean(values)))
    return _mean_over_seeds(means)


def load_comparison(workdirs: Sequence[epath.PathLike]) -> Comparison:
  """Groups run directories by configuration, in the order given.

  Args:
    workdirs: run directories.

  Raises:
    ValueError: there is no run, or two have the same configuration and seed.
    FileNotFoundError: a directory does not exist.
  """
  if not workdirs:
    raise ValueError('a comparison must have at least one run, got none')
  runs = [load_run(workdir) for workdir in workdirs]
  runs_by_group: dict[tuple[str, str], dict[int, RunData]] = {}
  fields: dict[tuple[str, str], dict[str, str]] = {}
  for run in runs:
    config = seed_independent_fields(run)
    key = (run.name, json.dumps(config, sort_keys=True))
    first_run = runs_by_group.setdefault(key, {}).setdefault(run.seed, run)
    if first_run is not run:
      raise ValueError(
        'a comparison must have one run for each configuration and seed, got '
        f'{first_run.path} and {run.path}, both {run.name} with seed {run.seed}'
      )
    fields[key] = config
  names = _group_names(fields)
  short_names = _without_prefix(list(names.values()))
  groups = [
    Group(
      names[key],
      short_name,
      dict(sorted(runs_by_group[key].items())),
      fields[key],
    )
    for key, short_name in zip(runs_by_group, short_names, strict=True)
  ]
  accuracies = dict.fromkeys(name for run in runs for name in run.accuracies)
  return Comparison(groups, (*accuracies, 'entropy'), _main_accuracy(runs))


def final_value(run: RunData, metric: str) -> float | None:
  """A metric at the last evaluation, `None` if it is missing."""
  return _first_and_last(run, metric)[1]


def seed_independent_fields(run: RunData) -> dict[str, str]:
  """The run's configuration without fields that may differ between seeds."""
  return {
    name: value
    for name, value in flatten_config(run.config).items()
    if not name.startswith(_IGNORED_FIELDS)
  }


def differing_fields(group: Group, other: Group) -> dict[str, str]:
  """Fields of one group with a different value in the other one."""
  return {
    name: value
    for name, value in group.config.items()
    if other.config.get(name) != value
  }


def _main_accuracy(runs: Sequence[RunData]) -> str:
  """Main accuracy of the first evaluated run, or another one that all share."""
  evaluated_runs = [run for run in runs if run.accuracies] or runs
  names = [run.main_accuracy for run in evaluated_runs]
  shared_names = (
    name
    for name in (*names, 'greedy')
    if all(name in run.accuracies for run in evaluated_runs)
  )
  return next(shared_names, names[0])


def _mean_over_seeds(values: Sequence[float | None]) -> Estimate | None:
  """Mean over the known values, one per seed; two are too few for an interval."""
  known = [value for value in values if value is not None]
  if not known:
    return None
  estimate = intervals.student_mean(np.array(known))
  if len(known) != 2:
    return estimate
  return intervals.Estimate(
    estimate.value, kind='two seeds, no interval', values=tuple(known)
  )


def _first_and_last(
  run: RunData, metric: str
) -> tuple[float | None, float | None]:
  """A metric at the first and at the last evaluation."""
  numbers = run.evals.column(metric)
  known = numbers[np.isfinite(numbers)]
  return (float(known[0]), float(known[-1])) if known.size else (None, None)


def _group_names(
  fields: Mapping[tuple[str, str], Mapping[str, str]],
) -> dict[tuple[str, str], str]:
  """Names of the groups; equal names are followed by differing fields."""
  names = {}
  for key, fields_of_group in fields.items():
    fields_of_equal_names = [
      other for k, other in fields.items() if k[0] == key[0]
    ]
    differences = [
      f'{field}={value}'
      for field, value in fields_of_group.items()
      if any(other.get(field) != value for other in fields_of_equal_names)
    ]
    names[key] = (
      f'{key[0]} ({", ".join(differences)})' if differences else key[0]
    )
  return names


def _without_prefix(names: Sequence[str]) -> list[str]:
  """Names without their first word if all share it.

  >>> _without_prefix(['countdown:kl_cov', 'countdown:kl_cov_beta0'])
  ['kl_cov', 'kl_cov_beta0']
  >>> _without_prefix(['grpo', 'kl_cov'])
  ['grpo', 'kl_cov']
  """
  words = [name.replace(':', '_', 1).partition('_') for name in names]
  first_words, _, other_words = zip(*words, strict=True)
  is_shared = len(names) > 1 and len(set(first_words)) == 1 and all(other_words)
  return list(other_words if is_shared else names)
