# SPDX-License-Identifier: Apache-2.0
"""Lines of `metrics.jsonl` as columns and curves, one table per phase."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float

from covrl.report.inputs.metric_ranges import is_possible, possible_range
from covrl.report.inputs.run_json import (
  IMPOSSIBLE,
  MISSING_UPDATE,
  REPEATED,
  Unreadable,
  finite_number,
  is_count,
  is_marked_missing,
  read_objects,
)

# Phases of a run whose metrics are logged.
_PHASES = ('warm_start', 'train', 'eval')
# Fields of metrics that are not numbers.
_TEXT_FIELDS = ('phase',)
# Names that `PhaseMetrics.names` returns, at most.
_MAX_NAMES = 100
# Metrics of which a single impossible value makes advice impossible.
_CHECKED_METRICS = ('entropy', 'tokens', 'equal_reward_groups', 'selected')


class Curve(NamedTuple):
  """A quantity over a run: ascending `x` and finite `y`."""

  x: Float[np.ndarray, ' n']
  y: Float[np.ndarray, ' n']

  def __bool__(self) -> bool:
    return self.x.size > 0


class PhaseMetrics:
  """Lines of `metrics.jsonl` of one phase, accessed as columns.

  >>> metrics = PhaseMetrics([
  ...   {'iteration': 1, 'reward': 0.2}, {'iteration': 2}
  ... ])
  >>> metrics.column('reward')
  array([0.2, nan])
  """

  def __init__(self, records: Sequence[Mapping[str, Any]] = ()) -> None:
    self.records = list(records)

  def __len__(self) -> int:
    return len(self.records)

  def column(self, field: str) -> Float[np.ndarray, ' n']:
    """The values of a field as floats, NaN where one is missing or impossible."""
    numbers = (_number(field, record) for record in self.records)
    return np.array([math.nan if n is None else n for n in numbers], float)

  def names(self, prefix: str, ending: str = '') -> list[str]:
    """Names of up to 100 fields with a prefix and an ending, as they appear."""
    names = dict.fromkeys(name for r in self.records for name in r)
    matching = [
      name
      for name in names
      if name.startswith(prefix) and name.endswith(ending)
    ]
    return matching[:_MAX_NAMES]

  def has(self, field: str) -> bool:
    """Whether some line has a finite number for the field."""
    return bool(np.isfinite(self.column(field)).any())

  def curve(self, field: str, over: str = 'iteration') -> Curve:
    """The mean of a field at each value of another one.

    Each update of an iteration has its own line; the curve has their mean.

    Args:
      field: field of the y values.
      over: field of the x values.
    """
    x, y = self.column(over), self.column(field)
    is_known = np.isfinite(x) & np.isfinite(y)
    unique, index = np.unique(x[is_known], return_inverse=True)
    total = np.bincount(index, weights=y[is_known], minlength=unique.size)
    return Curve(unique, total / np.bincount(index, minlength=unique.size))

  def seconds_per_iteration(self, field: str) -> float | None:
    """Mean seconds per iteration of a time field, `None` without values.

    Each line is an update. All lines of an iteration repeat the time of a phase of
    its rollout, and differ in the time of a phase of updates, so that the sum of the
    distinct numbers is the iteration's time.
    """
    seconds_by_iteration: dict[float, set[float]] = {}
    for iteration, number in zip(
      self.column('iteration'), self.column(field), strict=True
    ):
      if math.isfinite(number):
        seconds_by_iteration.setdefault(iteration, set()).add(number)
    totals = [sum(numbers) for numbers in seconds_by_iteration.values()]
    return sum(totals) / len(totals) if totals else None

  def mean(self, field: str) -> float | None:
    """The mean of all finite values of a field, `None` without values."""
    numbers = self.column(field)
    finite = numbers[np.isfinite(numbers)]
    return float(finite.mean()) if finite.size else None

  def value_at(self, index: int, field: str) -> float | None:
    """The number in a field of one line, `None` if it is missing or impossible."""
    return _number(field, self.records[index])


def check_possible(metrics: PhaseMetrics, name: str) -> None:
  """Checks that the metrics that advice depends on have possible values.

  Args:
    metrics: metrics of updates.
    name: name of the run, for the message.

  Raises:
    ValueError: a value is below 0, an entropy above 100 nats, or a share above 1.
  """
  for field in _CHECKED_METRICS:
    low, high = possible_range(field)
    for record in metrics.records:
      number = finite_number(record.get(field))
      if number is not None and not is_possible(field, number):
        raise ValueError(
          f'{field} of {name} must lie in [{low:g}, {high:g}], got {number:g}'
        )


def _number(field: str, record: Mapping[str, Any]) -> float | None:
  """The number in a field of a line, `None` if it is missing or impossible."""
  number = finite_number(record.get(field))
  if number is None or not is_possible(field, number):
    return None
  return number


def read_metrics(
  path: epath.Path, unreadable: Unreadable
) -> list[dict[str, Any]]:
  """Reads the lines of a file of metrics that are readable.

  Of lines with the same phase and step only the last one is kept, and the others
  are counted. So are updates without a line, whose steps are counted from 1.

  Args:
    path: the file, which may be missing.
    unreadable: receives the counts of unreadable lines and values.
  """
  records: dict[Any, dict[str, Any]] = {}
  bad_lines = bad_values = impossible = repeated = 0
  for number, record in read_objects(path, path.name, unreadable):
    phase, step = record.get('phase'), record.get('step')
    counts = (record.get(name) for name in ('step', 'iteration'))
    if phase not in _PHASES or not all(
      is_marked_missing(count) or is_count(count) for count in counts
    ):
      bad_lines += 1
      continue
    bad_values += sum(
      finite_number(value) is None and not is_marked_missing(value)
      for name, value in record.items()
      if name not in _TEXT_FIELDS
    )
    impossible += sum(
      not is_possible(name, known_number)
      for name, value in record.items()
      if (known_number := finite_number(value)) is not None
    )
    key = (phase, f'line {number}' if is_marked_missing(step) else step)
    repeated += records.pop(key, None) is not None
    records[key] = record
  unreadable.set_count(path.name, 'step or phase', bad_lines)
  unreadable.set_count(path.name, 'number', bad_values)
  unreadable.set_count(path.name, IMPOSSIBLE, impossible)
  unreadable.set_count(path.name, REPEATED, repeated)
  updates = {
    step
    for phase, step in records
    if phase == 'train' and isinstance(step, (int, float)) and step >= 1
  }
  missing = int(max(updates, default=0)) - len(updates)
  unreadable.set_count(path.name, MISSING_UPDATE, missing)
  return list(records.values())
