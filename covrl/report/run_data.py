# SPDX-License-Identifier: Apache-2.0
"""Reads the metrics, configuration and results in a run directory.

Everything may be missing or incomplete, because the run may just have started
or may have been killed during a write. A missing file reads as empty. Lines
that are not JSON objects are skipped and counted; the page states their number.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from etils import epath
from jaxtyping import Float

from covrl import storage
from covrl.storage.append_log import read_log

_SEED = re.compile(r'(^|[-_.])(seed|s)?[-_=]?\d+$')


ProblemId: TypeAlias = tuple[str, str]
"""Evaluation set (empty for the run's own problems), and a key within it."""

Problems: TypeAlias = dict[ProblemId, list[dict[str, Any]]]
"""Results by problem; several if a set contains a question twice."""


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
    """The values of a field as floats, NaN where a line has no number."""
    return np.array([_number(r.get(field)) for r in self.records], float)

  def names(self, prefix: str) -> list[str]:
    """Names of fields with a prefix, in order of first appearance."""
    names = dict.fromkeys(name for r in self.records for name in r)
    return [name for name in names if name.startswith(prefix)]

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
    kept = np.isfinite(x) & np.isfinite(y)
    unique, index = np.unique(x[kept], return_inverse=True)
    total = np.bincount(index, weights=y[kept], minlength=unique.size)
    return Curve(unique, total / np.bincount(index, minlength=unique.size))

  def seconds_per_iteration(self, field: str) -> float | None:
    """Mean seconds per iteration of a time field, `None` without values.

    All lines of an iteration repeat the times of its rollout, and have
    different times of updates, so distinct numbers are added.
    """
    spent: dict[float, set[float]] = {}
    for iteration, number in zip(
      self.column('iteration'), self.column(field), strict=True
    ):
      if math.isfinite(number):
        spent.setdefault(iteration, set()).add(number)
    totals = [sum(numbers) for numbers in spent.values()]
    return sum(totals) / len(totals) if totals else None

  def mean(self, field: str) -> float | None:
    """The mean of all finite values of a field, `None` without values."""
    numbers = self.column(field)
    finite = numbers[np.isfinite(numbers)]
    return float(finite.mean()) if finite.size else None

  def value_at(self, index: int, field: str) -> float | None:
    """The number in a field of one line, `None` if it is missing."""
    value = _number(self.records[index].get(field))
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class RunData:
  """The contents of a run directory.

  Attributes:
    path: the directory.
    settings: contents of `config.json`, empty if it is missing.
    warm_start: metrics of the warm start.
    train: metrics of training iterations.
    evals: metrics of evaluations after the warm start.
    skipped: number of unreadable lines of `metrics.jsonl`.
  """

  path: epath.Path
  settings: Mapping[str, Any]
  warm_start: PhaseMetrics
  train: PhaseMetrics
  evals: PhaseMetrics
  skipped: int

  @property
  def config(self) -> Mapping[str, Any]:
    """The configuration as nested mappings."""
    config = self.settings.get('config')
    return config if isinstance(config, Mapping) else {}

  def config_value(self, name: str) -> Any:
    """A configuration value by its dotted name, `None` if it is missing."""
    value: Any = self.config
    for part in name.split('.'):
      value = value.get(part) if isinstance(value, Mapping) else None
    return value

  @property
  def name(self) -> str:
    """Name of the run's configuration.

    The name in `config.json`; else the stem of the configuration file; else the
    name of the directory without a seed, or of its parent if nothing is left.
    """
    name = self.settings.get('name')
    if name:
      return str(name)
    source = str(self.settings.get('source') or '')
    if source.endswith('.py') and '\n' not in source:
      return epath.Path(source).stem
    stem = _SEED.sub('', self.path.name)
    return stem or self.path.parent.name

  @property
  def accuracies(self) -> tuple[str, str, str]:
    """Names of the accuracies: greedy, mean@k and pass@k with the run's k."""
    for field in self.evals.names('mean@'):
      if field.removeprefix('mean@').isdigit():
        return 'greedy', field, f'pass@{field.removeprefix("mean@")}'
    return 'greedy', 'mean@8', 'pass@8'

  @property
  def iterations(self) -> tuple[int, int | None]:
    """Finished iterations, and the configured number of iterations."""
    seen = [
      number
      for lines in (self.train, self.evals)
      for number in lines.column('iteration')
      if math.isfinite(number)
    ]
    total = self.config_value('train.iterations')
    return int(max(seen, default=0)), total if isinstance(total, int) else None

  @property
  def finished(self) -> bool:
    """Whether all configured iterations are finished."""
    done, total = self.iterations
    return total is None or done >= total

  @functools.cached_property
  def rollout_files(self) -> list[epath.Path]:
    """Files of saved samples, oldest first."""
    return _numbered(self.path / 'rollouts')

  def results_at(self, iteration: float | None) -> Problems:
    """Results of one evaluation by problem; empty if they were not saved."""
    if iteration is None:
      return {}
    name = f'iteration_{int(iteration):06d}.jsonl'
    return _problems([self.path / 'evaluation' / name])

  @functools.cached_property
  def latest_results(self) -> Problems:
    """Latest results by problem, of `covrl evaluate` or else of the run."""
    folder = self.path / 'evaluation'
    if not folder.is_dir():
      return {}
    files = sorted(folder.glob('*.jsonl'), key=lambda path: path.name)
    own = [file for file in files if file.name.startswith('iteration_')]
    return _problems([file for file in files if file not in own] or own[-1:])


def load_run(workdir: epath.PathLike) -> RunData:
  """Reads a run directory.

  Args:
    workdir: the run directory.

  Raises:
    FileNotFoundError: the directory does not exist.
  """
  path = storage.as_path(workdir)
  if not path.is_dir():
    raise FileNotFoundError(
      f'a report needs a run directory, got {str(workdir)!r}, which is not a '
      'directory'
    )
  records, skipped = _read_lines(path / 'metrics.jsonl')
  phases = [record.get('phase') for record in records]
  warm_start = [i for i, phase in enumerate(phases) if phase == 'warm_start']
  warm_end = warm_start[-1] if warm_start else -1
  return RunData(
    path=path,
    settings=read_json(path / 'config.json'),
    warm_start=PhaseMetrics([records[i] for i in warm_start]),
    train=PhaseMetrics([r for r in records if r.get('phase') == 'train']),
    evals=PhaseMetrics(
      [r for r in records[warm_end + 1 :] if r.get('phase') == 'eval']
    ),
    skipped=skipped,
  )


def read_json(path: epath.Path) -> dict[str, Any]:
  """A JSON object from a file; empty if it is missing or incomplete."""
  try:
    content = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _problems(files: Sequence[epath.Path]) -> Problems:
  """Results in files by problem, without unreadable lines."""
  results: Problems = {}
  for file in files:
    for line in file.read_text().splitlines() if file.exists() else ():
      try:
        record = json.loads(line)
      except ValueError:
        continue
      if isinstance(record, dict) and 'greedy' in record:
        suite = str(record.get('suite', ''))
        key = str(record.get('key') or record.get('prompt'))
        results.setdefault((suite, key), []).append(record)
  return results


def _read_lines(path: epath.Path) -> tuple[list[dict[str, Any]], int]:
  """Readable lines, and the number of others.

  Of lines with the same phase and step only the last one is kept.
  """
  text = read_log(path)
  if text is None:
    return [], 0
  records: dict[Any, dict[str, Any]] = {}
  skipped = 0
  for number, line in enumerate(text.splitlines()):
    if not line.strip():
      continue
    try:
      record = json.loads(line)
    except ValueError:
      record = None
    if not isinstance(record, dict):
      skipped += 1
      continue
    key = (record.get('phase'), record.get('step', f'line {number}'))
    records.pop(key, None)
    records[key] = record
  return list(records.values()), skipped


def _numbered(folder: epath.Path) -> list[epath.Path]:
  """Sorted files `iteration_*.json` of a folder."""
  if not folder.is_dir():
    return []
  return sorted(folder.glob('iteration_*.json'), key=lambda path: path.name)


def _number(value: Any) -> float:
  """The value as a float, NaN if it is not a number."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return math.nan
  return float(value)
