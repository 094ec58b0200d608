# SPDX-License-Identifier: Apache-2.0
"""Several runs as configurations with seeds, and what differs between them.

The unit of inference is the seed: a level is a mean over a configuration's
seeds, a difference to the baseline (the first configuration given) is paired
by seed, both with Student's t. Seeds that the baseline lacks count in no
difference. One seed gives a number without an interval.
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
from covrl.report.run import Curve, Run, load_run

# Fields in which runs of one configuration may differ: what tells seeds
# apart, and what does not change what is computed.
_FREE = ('seed', 'warm_start.from_run', 'logging.', 'checkpoint.', 'mesh.')


@dataclasses.dataclass(frozen=True)
class Group:
  """The runs of one configuration.

  Attributes:
    name: the configuration's.
    short: the same without what all names begin with, for figures.
    runs: by seed.
    fields: the configuration, by dotted name, without what may differ.
  """

  name: str
  short: str
  runs: Mapping[int, Run]
  fields: Mapping[str, str]

  def level(self, metric: str) -> Estimate | None:
    """The final value: mean over seeds."""
    return _over_seeds([final(run, metric) for run in self.runs.values()])

  def difference(self, baseline: Group, metric: str) -> Estimate | None:
    """Final value minus the baseline's, paired by seed."""
    pairs = [
      (final(run, metric), final(baseline.runs[seed], metric))
      for seed, run in self.runs.items()
      if seed in baseline.runs
    ]
    return _over_seeds(
      [a - b for a, b in pairs if a is not None and b is not None]
    )

  def curve(self, phase: str, field: str) -> tuple[Curve, Curve, Curve]:
    """Mean, lowest and highest over seeds, where all seeds have been."""
    lines = [getattr(run, phase) for run in self.runs.values()]
    curves = [curve for one in lines if (curve := one.curve(field))]
    if not curves:
      empty = Curve(np.zeros(0), np.zeros(0))
      return empty, empty, empty
    places = functools.reduce(np.intersect1d, [curve.x for curve in curves])
    rows = np.stack([c.y[np.isin(c.x, places)] for c in curves])
    mean, low, high = (
      Curve(places, rows.mean(0)),
      Curve(places, rows.min(0)),
      Curve(places, rows.max(0)),
    )
    return mean, low, high


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Configurations, the first of which is the baseline.

  Attributes:
    groups: at least one.
    metrics: what they are compared by: accuracies and entropy.
  """

  groups: Sequence[Group]
  metrics: tuple[str, str, str, str]

  @property
  def baseline(self) -> Group:
    """What the others are compared with."""
    return self.groups[0]

  @property
  def seeds(self) -> list[int]:
    """All seeds, in order."""
    return sorted({seed for group in self.groups for seed in group.runs})

  def differences(self, metric: str) -> list[tuple[Group, Estimate]]:
    """Differences to the baseline, where they are known."""
    return [
      (group, estimate)
      for group in self.groups[1:]
      if (estimate := group.difference(self.baseline, metric)) is not None
    ]

  def before(self, metric: str) -> Estimate | None:
    """The value at the first evaluation: the warm start, before RL.

    Runs of one seed may share their warm start: a seed counts once.
    """
    means = []
    for seed in self.seeds:
      found = [
        value
        for group in self.groups
        if seed in group.runs
        and (value := _ends(group.runs[seed], metric)[0]) is not None
      ]
      if found:
        means.append(float(np.mean(found)))
    return _over_seeds(means)


def load_comparison(workdirs: Sequence[epath.PathLike]) -> Comparison:
  """Groups run directories by configuration, in the order given.

  Raises:
    ValueError: if there is none, or two hold the same configuration and seed.
    FileNotFoundError: if one is no directory.
  """
  if not workdirs:
    raise ValueError('a comparison needs at least one run, got none')
  runs = [load_run(workdir) for workdir in workdirs]
  gathered: dict[tuple[str, str], dict[int, Run]] = {}
  fields: dict[tuple[str, str], dict[str, str]] = {}
  for run in runs:
    settled = settled_fields(run)
    key = (run.name, json.dumps(settled, sort_keys=True))
    seed = run.option('seed')
    seed = seed if isinstance(seed, int) else 0
    other = gathered.setdefault(key, {}).setdefault(seed, run)
    if other is not run:
      raise ValueError(
        'a comparison needs one run for each configuration and seed, got '
        f'{other.path} and {run.path}, both {run.name} with seed {seed}'
      )
    fields[key] = settled
  names = _names(fields)
  shorts = _without_prefix(list(names.values()))
  groups = [
    Group(names[key], short, dict(sorted(gathered[key].items())), fields[key])
    for key, short in zip(gathered, shorts, strict=True)
  ]
  evaluated = [run for run in runs if len(run.evals)] or runs
  return Comparison(groups, (*evaluated[0].accuracies, 'entropy'))


def final(run: Run, metric: str) -> float | None:
  """A metric at the run's last evaluation, `None` if it has none."""
  return _ends(run, metric)[1]


def settled_fields(run: Run) -> dict[str, str]:
  """The run's configuration without what may differ between its seeds."""
  return {
    name: value
    for name, value in flat(run.config).items()
    if not name.startswith(_FREE)
  }


def flat(config: Mapping[str, object], prefix: str = '') -> dict[str, str]:
  """Nested fields by dotted name.

  >>> flat({'seed': 1, 'train': {'iterations': 60}})
  {'seed': '1', 'train.iterations': '60'}
  """
  fields: dict[str, str] = {}
  for name, value in config.items():
    if isinstance(value, Mapping):
      fields |= flat(value, f'{prefix}{name}.')
    else:
      fields[f'{prefix}{name}'] = 'none' if value is None else str(value)
  return fields


def differing(group: Group, other: Group) -> dict[str, str]:
  """Fields of one group that are not the other's."""
  return {
    name: value
    for name, value in group.fields.items()
    if other.fields.get(name) != value
  }


def _over_seeds(values: Sequence[float | None]) -> Estimate | None:
  """Mean over the seeds that have a value."""
  known = [value for value in values if value is not None]
  return intervals.student_mean(np.array(known)) if known else None


def _ends(run: Run, metric: str) -> tuple[float | None, float | None]:
  """A metric at the first and the last evaluation."""
  numbers = run.evals.numbers(metric)
  known = numbers[np.isfinite(numbers)]
  return (float(known[0]), float(known[-1])) if known.size else (None, None)


def _names(
  fields: Mapping[tuple[str, str], Mapping[str, str]],
) -> dict[tuple[str, str], str]:
  """Names of the groups; those of one name get the fields they differ in."""
  names = {}
  for key, own in fields.items():
    twins = [other for k, other in fields.items() if k[0] == key[0]]
    told = [
      f'{field}={value}'
      for field, value in own.items()
      if any(twin.get(field) != value for twin in twins)
    ]
    names[key] = f'{key[0]} ({", ".join(told)})' if told else key[0]
  return names


def _without_prefix(names: Sequence[str]) -> list[str]:
  """Names without their first word, where it is the same for all.

  >>> _without_prefix(['countdown_kl_cov', 'countdown_kl_cov_beta0'])
  ['kl_cov', 'kl_cov_beta0']
  >>> _without_prefix(['grpo', 'kl_cov'])
  ['grpo', 'kl_cov']
  """
  firsts, _, rests = zip(*(name.partition('_') for name in names), strict=True)
  shared = len(names) > 1 and len(set(firsts)) == 1 and all(rests)
  return list(rests if shared else names)
