# SPDX-License-Identifier: Apache-2.0
"""What a run directory holds, read for pictures.

Everything may be missing or half written: the run may be a minute old, or
killed between two bytes. A file that is not there yet reads as empty; a line
that is no JSON object is skipped and counted, and the page says so.
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
from covrl.storage.append_log import read_journal

_SEED = re.compile(r'(^|[-_.])(seed|s)?[-_=]?\d+$')


ProblemId: TypeAlias = tuple[str, str]
"""A problem's evaluation set (empty for a run's own), and what tells it there."""

Problems: TypeAlias = dict[ProblemId, list[dict[str, Any]]]
"""Results by problem; more than one where a set has a question twice."""


class Curve(NamedTuple):
  """A quantity over the run: `x` ascending, `y` finite."""

  x: Float[np.ndarray, ' n']
  y: Float[np.ndarray, ' n']

  def __bool__(self) -> bool:
    return self.x.size > 0


class Lines:
  """Lines of `metrics.jsonl` of one phase, seen as columns.

  >>> lines = Lines([{'iteration': 1, 'reward': 0.2}, {'iteration': 2}])
  >>> lines.numbers('reward')
  array([0.2, nan])
  """

  def __init__(self, records: Sequence[Mapping[str, Any]] = ()) -> None:
    self.records = list(records)

  def __len__(self) -> int:
    return len(self.records)

  def numbers(self, field: str) -> Float[np.ndarray, ' n']:
    """One column as floats, NaN where a line has no number for it."""
    return np.array([_number(r.get(field)) for r in self.records], float)

  def fields(self, prefix: str) -> list[str]:
    """Names of the fields that start so, in order of first appearance."""
    names = dict.fromkeys(name for r in self.records for name in r)
    return [name for name in names if name.startswith(prefix)]

  def has(self, field: str) -> bool:
    """True if some line has a finite number for this field."""
    return bool(np.isfinite(self.numbers(field)).any())

  def curve(self, field: str, over: str = 'iteration') -> Curve:
    """The mean of the field at each value of `over`.

    An iteration's updates are lines of their own; their mean stands for the
    iteration.
    """
    x, y = self.numbers(over), self.numbers(field)
    kept = np.isfinite(x) & np.isfinite(y)
    places, index = np.unique(x[kept], return_inverse=True)
    total = np.bincount(index, weights=y[kept], minlength=places.size)
    return Curve(places, total / np.bincount(index, minlength=places.size))

  def seconds(self, field: str) -> float | None:
    """Mean seconds of an iteration, `None` if there are none.

    The lines of an iteration's updates repeat the times of its rollout and
    have their own times for the rest: distinct numbers add up.
    """
    spent: dict[float, set[float]] = {}
    for place, number in zip(
      self.numbers('iteration'), self.numbers(field), strict=True
    ):
      if math.isfinite(number):
        spent.setdefault(place, set()).add(number)
    totals = [sum(numbers) for numbers in spent.values()]
    return sum(totals) / len(totals) if totals else None

  def mean(self, field: str) -> float | None:
    """The mean of all finite entries, `None` if there is none."""
    numbers = self.numbers(field)
    finite = numbers[np.isfinite(numbers)]
    return float(finite.mean()) if finite.size else None

  def at(self, index: int, field: str) -> float | None:
    """The number that one line has for a field, `None` if it has none."""
    value = _number(self.records[index].get(field))
    return value if math.isfinite(value) else None


@dataclasses.dataclass(frozen=True)
class Run:
  """A run directory, read.

  Attributes:
    path: the directory.
    settings: contents of `config.json`, empty if there is none.
    warm_start: lines of that phase.
    train: lines of that phase.
    evals: lines of that phase, those after the warm start's end.
    skipped: lines of `metrics.jsonl` that could not be read.
  """

  path: epath.Path
  settings: Mapping[str, Any]
  warm_start: Lines
  train: Lines
  evals: Lines
  skipped: int

  @property
  def config(self) -> Mapping[str, Any]:
    """The resolved configuration's plain fields, nested."""
    config = self.settings.get('config')
    return config if isinstance(config, Mapping) else {}

  def option(self, name: str) -> Any:
    """A field by its dotted name, `None` if the configuration lacks it."""
    value: Any = self.config
    for part in name.split('.'):
      value = value.get(part) if isinstance(value, Mapping) else None
    return value

  @property
  def name(self) -> str:
    """Which configuration this is a run of.

    As `config.json` calls it; else the config file's stem, where it names a
    file; else the directory, or its parent if that is called after the seed.
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
    """Names of the accuracies: greedy, mean@k and pass@k for the run's k."""
    for field in self.evals.fields('mean@'):
      if field.removeprefix('mean@').isdigit():
        return 'greedy', field, f'pass@{field.removeprefix("mean@")}'
    return 'greedy', 'mean@8', 'pass@8'

  @property
  def iterations(self) -> tuple[int, int | None]:
    """Iterations done, and iterations asked for."""
    seen = [
      number
      for lines in (self.train, self.evals)
      for number in lines.numbers('iteration')
      if math.isfinite(number)
    ]
    asked = self.option('train.iterations')
    return int(max(seen, default=0)), asked if isinstance(asked, int) else None

  @property
  def finished(self) -> bool:
    """Whether all iterations asked for are done."""
    done, asked = self.iterations
    return asked is None or done >= asked

  @functools.cached_property
  def rollout_files(self) -> list[epath.Path]:
    """Kept samples, oldest first."""
    return _numbered(self.path / 'rollouts')

  def problems(self, iteration: float | None) -> Problems:
    """Results of one evaluation by problem; empty if they were not kept."""
    if iteration is None:
      return {}
    name = f'iteration_{int(iteration):06d}.jsonl'
    return _problems([self.path / 'evaluation' / name])

  @functools.cached_property
  def answered(self) -> Problems:
    """Latest results by problem: of `covrl evaluate`, else of the run itself."""
    folder = self.path / 'evaluation'
    if not folder.is_dir():
      return {}
    files = sorted(folder.glob('*.jsonl'), key=lambda path: path.name)
    own = [file for file in files if file.name.startswith('iteration_')]
    return _problems([file for file in files if file not in own] or own[-1:])


def load_run(workdir: epath.PathLike) -> Run:
  """Reads what a run directory holds so far.

  Raises:
    FileNotFoundError: if there is no such directory.
  """
  path = storage.path_of(workdir)
  if not path.is_dir():
    raise FileNotFoundError(
      f'a report needs a run directory, got {str(workdir)!r}, which is none'
    )
  records, skipped = _read_lines(path / 'metrics.jsonl')
  phases = [record.get('phase') for record in records]
  warm_start = [i for i, phase in enumerate(phases) if phase == 'warm_start']
  warm_end = warm_start[-1] if warm_start else -1
  return Run(
    path=path,
    settings=read_json(path / 'config.json'),
    warm_start=Lines([records[i] for i in warm_start]),
    train=Lines([r for r in records if r.get('phase') == 'train']),
    evals=Lines(
      [r for r in records[warm_end + 1 :] if r.get('phase') == 'eval']
    ),
    skipped=skipped,
  )


def read_json(path: epath.Path) -> dict[str, Any]:
  """A JSON object from a file; empty if the file is missing or half written."""
  try:
    content = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def _problems(files: Sequence[epath.Path]) -> Problems:
  """Lines of files, by problem; those that cannot be read are left out."""
  kept: Problems = {}
  for file in files:
    for line in file.read_text().splitlines() if file.exists() else ():
      try:
        record = json.loads(line)
      except ValueError:
        continue
      if isinstance(record, dict) and 'greedy' in record:
        suite = str(record.get('suite', ''))
        told = str(record.get('key') or record.get('prompt'))
        kept.setdefault((suite, told), []).append(record)
  return kept


def _read_lines(path: epath.Path) -> tuple[list[dict[str, Any]], int]:
  """Readable lines, the last of equal (phase, step) winning, and a count."""
  text = read_journal(path)
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
  """Files `iteration_*.json` of a folder, in order."""
  if not folder.is_dir():
    return []
  return sorted(folder.glob('iteration_*.json'), key=lambda path: path.name)


def _number(value: Any) -> float:
  """A float, NaN for whatever is no number."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return math.nan
  return float(value)
