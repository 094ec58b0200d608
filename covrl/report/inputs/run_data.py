# SPDX-License-Identifier: Apache-2.0
"""Reads the metrics, configuration and results in a run directory.

Everything may be missing or incomplete, because the run may just have started
or may have been killed during a write, and files may be damaged. A missing file
reads as empty. What is unreadable is skipped and counted, see `run_json`; the
page states the counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from covrl import storage
from covrl.evaluation.result_files import HELD_OUT
from covrl.report.inputs.phase_metrics import PhaseMetrics, read_metrics
from covrl.report.inputs.problem_results import ResultsByProblem, read_results
from covrl.report.inputs.run_json import (
  FOREIGN_FILE,
  MISSING_SEED,
  Unreadable,
  is_count,
  read_json,
  read_objects,
  short_text,
)

# Suffix with the seed in the name of a run directory.
_SEED_SUFFIX = re.compile(r'(^|[-_.])(seed|s)?[-_=]?\d+$')

# Names of files of samples and results of an iteration; sync tools add copies.
_ITERATION_FILE = re.compile(r'iteration_[0-9]{6,}\.jsonl?')

# Warnings of a run on its page, at most.
_MAX_NOTICES = 20

# Files and directories by which a run directory is recognised. A pretrained
# model also has a config.json, with other fields.
_RUN_FILES = ('recipe', 'metrics.jsonl', 'metrics', 'rollouts', 'evaluation')
_MODEL_FIELDS = ('model_type', 'architectures')


@dataclasses.dataclass(frozen=True)
class RunData:
  """The contents of a run directory.

  Attributes:
    path: the directory.
    settings: contents of `config.json`, empty if it is missing.
    warm_start: metrics of the warm start.
    train: metrics of training iterations.
    evals: metrics of evaluations after the warm start.
    unreadable: counts of unreadable parts of the files read so far.
  """

  path: epath.Path
  settings: Mapping[str, Any]
  warm_start: PhaseMetrics
  train: PhaseMetrics
  evals: PhaseMetrics
  unreadable: Unreadable

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
      return short_text(name, 80)
    source = self.settings.get('source')
    source = source if isinstance(source, str) else ''
    if source.endswith('.py') and '\n' not in source:
      return epath.Path(source).stem
    stem = _SEED_SUFFIX.sub('', self.path.name)
    return stem or self.path.parent.name

  @property
  def accuracies(self) -> tuple[str, ...]:
    """Accuracies that the evaluations have, of greedy, mean@k and pass@k.

    Without samples there is greedy accuracy alone; empty without an evaluation.
    """
    names = ['greedy']
    for field in self.evals.names('mean@'):
      if re.fullmatch(r'mean@\d{1,6}', field, re.ASCII):
        names += [field, f'pass@{field.removeprefix("mean@")}']
        break
    return tuple(name for name in names if self.evals.has(name))

  @property
  def main_accuracy(self) -> str:
    """The accuracy to compare: mean@k, or greedy where there are no samples."""
    means = [name for name in self.accuracies if name.startswith('mean@')]
    return means[0] if means else 'greedy'

  @property
  def finished_iterations(self) -> int:
    """Number of finished iterations.

    An evaluation has the number of iterations before it, an update the index of its
    own, which is finished if all of its updates have a line.
    """
    iterations = self.train.column('iteration')
    latest = np.nanmax(iterations, initial=0)
    updates = self.updates_per_iteration
    if updates and np.count_nonzero(iterations == latest) >= updates:
      latest += 1
    evaluated = self.evals.column('iteration')
    return int(max(latest, np.nanmax(evaluated, initial=0)))

  @property
  def updates_per_iteration(self) -> int | None:
    """The configured updates per iteration; `None` if a field is missing or invalid."""
    prompts, responses, size = (
      self.config_value(name)
      for name in (
        'rollout.prompts_per_iteration',
        'rollout.responses_per_prompt',
        'train.sequences_per_update',
      )
    )
    if not (is_count(prompts) and is_count(responses) and is_count(size)):
      return None
    return int(prompts * responses // size) if size else None

  @property
  def planned_iterations(self) -> int | None:
    """The configured number of iterations; `None` if it is missing or invalid."""
    planned = self.config_value('train.iterations')
    return int(planned) if is_count(planned) else None

  @property
  def finished(self) -> bool:
    """Whether all configured iterations are finished."""
    planned = self.planned_iterations
    return planned is None or self.finished_iterations >= planned

  @property
  def seed(self) -> int:
    """The configured seed; 0 if it is missing or not an integer."""
    seed = self.config_value('seed')
    return int(seed) if is_count(seed) else 0

  @functools.cached_property
  def rollout_files(self) -> list[epath.Path]:
    """Files of saved samples, oldest first."""
    files = _sorted_files(self.path / 'rollouts', 'iteration_*.json')
    return self._named_by_covrl(files)

  @functools.cached_property
  def recipe_files(self) -> tuple[tuple[str, bytes], ...]:
    """Names and contents of the recipe's files, sorted, without unreadable ones."""
    files = []
    for file in _sorted_files(self.path / 'recipe', '*.py'):
      with contextlib.suppress(OSError):
        files.append((file.name, file.read_bytes()))
    return tuple(files)

  @functools.cached_property
  def notices(self) -> list[str]:
    """Warnings of the run about damaged files, oldest first.

    With more than 20 these are the newest, after a sentence about the others.
    """
    name = 'notices.jsonl'
    lines = list(read_objects(self.path / name, name, self.unreadable))
    texts = [
      short_text(line.get('text') or '', 500)
      for _, line in lines[-_MAX_NOTICES:]
    ]
    num_older = len(lines) - len(texts)
    if not num_older:
      return texts
    return [
      f'Older warnings that are left out here: {num_older:,}; {name} in the run'
      ' directory has all of them.',
      *texts,
    ]

  @functools.cached_property
  def task_description(self) -> str:
    """Description of the task; empty if the run has none."""
    content = read_json(self.path / 'task.json', 'task.json', self.unreadable)
    return short_text(content.get('description') or '', 2_000)

  def examples_at(self, iteration: float | None) -> dict[str, dict[str, Any]]:
    """Results of one evaluation that have a greedy response, by prompt.

    Unreadable lines are counted by `results_at`.
    """
    if iteration is None:
      return {}
    name = f'iteration_{int(iteration):06d}.jsonl'
    path = self.path / 'evaluation' / name
    records = {}
    for _, record in read_objects(path, f'evaluation/{name}', self.unreadable):
      prompt, response = record.get('prompt'), record.get('response')
      if isinstance(prompt, str) and isinstance(response, str):
        records.setdefault(prompt, record)
    return records

  def samples(self, file: epath.Path) -> dict[str, Any]:
    """Content of a file of saved samples, without unreadable samples."""
    name = f'rollouts/{file.name}'
    content = read_json(file, name, self.unreadable)
    entries = content.get('samples')
    entries = entries if isinstance(entries, list) else []
    samples = [sample for sample in entries if _is_sample(sample)]
    self.unreadable.set_count(name, 'response', len(entries) - len(samples))
    return {**content, 'samples': samples}

  def results_at(self, iteration: float | None) -> ResultsByProblem:
    """Results of one evaluation by problem; empty if they were not saved."""
    if iteration is None:
      return {}
    name = f'iteration_{int(iteration):06d}.jsonl'
    return read_results([self.path / 'evaluation' / name], self.unreadable)

  @property
  def latest_results(self) -> ResultsByProblem:
    """Latest results by problem, of `covrl evaluate` or the run, for each set."""
    return self._latest_results[0]

  @property
  def sets_of_command(self) -> frozenset[str]:
    """Sets whose latest results are those of `covrl evaluate`, not of the run."""
    return self._latest_results[1]

  @functools.cached_property
  def _latest_results(self) -> tuple[ResultsByProblem, frozenset[str]]:
    """See `latest_results` and `sets_of_command`."""
    files = _sorted_files(self.path / 'evaluation', '*.jsonl')
    own_files = self._named_by_covrl(
      [file for file in files if file.name.startswith('iteration_')]
    )
    results = read_results(own_files[-1:], self.unreadable)
    own_sets = {name for name, _ in results}
    sets = set[str]()
    for file in files:
      name = '' if file.stem == HELD_OUT else file.stem
      is_own = file.name.startswith('iteration_')
      if is_own or (name in own_sets and self._is_old(name, own_files[-1])):
        continue
      if newer := read_results([file], self.unreadable):
        sets.add(name)
        results = {p: r for p, r in results.items() if p[0] != name} | newer
    return results, frozenset(sets)

  @functools.cached_property
  def evaluation_summary(self) -> Mapping[str, Any]:
    """Settings of the results of `covrl evaluate` by evaluation set."""
    name = 'evaluation/summary.json'
    return read_json(self.path / name, name, self.unreadable)

  def _named_by_covrl(self, files: Sequence[epath.Path]) -> list[epath.Path]:
    """Files with names as covrl gives them; others, such as copies, are counted."""
    for file in files:
      if not _ITERATION_FILE.fullmatch(file.name):
        name = f'{file.parent.name}/{file.name}'
        self.unreadable.set_count(name, FOREIGN_FILE)
    return [file for file in files if _ITERATION_FILE.fullmatch(file.name)]

  def _is_old(self, name: str, own_file: epath.Path) -> bool:
    """Whether results of `covrl evaluate` on a set are older than the run's own."""
    entry = self.evaluation_summary.get(name or HELD_OUT)
    iteration = entry.get('iteration') if isinstance(entry, dict) else None
    own_iteration = int(own_file.stem.removeprefix('iteration_'))
    return not isinstance(iteration, int) or iteration < own_iteration


def load_run(workdir: epath.PathLike) -> RunData:
  """Reads a run directory.

  Args:
    workdir: the run directory.

  Raises:
    FileNotFoundError: the path is not a directory, or no run's directory.
  """
  path = storage.as_path(workdir)
  unreadable = Unreadable()
  settings: dict[str, Any] = {}
  if storage.is_directory(path):
    settings = read_json(path / 'config.json', 'config.json', unreadable)
  if not _holds_run(path, settings):
    reason = (
      'which holds none of the files of a run'
      if storage.is_directory(path)
      else 'which is a file'
      if path.exists()
      else 'which does not exist'
    )
    raise FileNotFoundError(
      f'DIRECTORY must be a run directory, got {str(workdir)!r}, {reason}'
    )
  records = read_metrics(path / 'metrics.jsonl', unreadable)
  run_config = settings.get('config')
  has_seed = isinstance(run_config, dict) and is_count(run_config.get('seed'))
  if records and not has_seed:
    unreadable.set_count('config.json', MISSING_SEED)
  phases = [record.get('phase') for record in records]
  warm_start = [i for i, phase in enumerate(phases) if phase == 'warm_start']
  warm_end = warm_start[-1] if warm_start else -1
  return RunData(
    path=path,
    settings=settings,
    warm_start=PhaseMetrics([records[i] for i in warm_start]),
    train=PhaseMetrics([r for r in records if r.get('phase') == 'train']),
    evals=PhaseMetrics(
      [r for r in records[warm_end + 1 :] if r.get('phase') == 'eval']
    ),
    unreadable=unreadable,
  )


def is_run_directory(workdir: epath.PathLike) -> bool:
  """Whether a directory holds files of a run."""
  path = storage.as_path(workdir)
  settings = {}
  if storage.is_directory(path):
    settings = read_json(path / 'config.json', 'config.json', Unreadable())
  return _holds_run(path, settings)


def _holds_run(path: epath.Path, settings: Mapping[str, Any]) -> bool:
  """Whether a directory holds a run, given the contents of its `config.json`."""
  if not storage.is_directory(path):
    return False
  has_config = storage.is_regular_file(path / 'config.json') and not any(
    field in settings for field in _MODEL_FIELDS
  )
  return has_config or any((path / name).exists() for name in _RUN_FILES)


def _is_sample(sample: Any) -> bool:
  """Whether a saved sample has tokens."""
  tokens = sample.get('tokens') if isinstance(sample, Mapping) else None
  return isinstance(tokens, list) and bool(tokens)


def _sorted_files(folder: epath.Path, pattern: str) -> list[epath.Path]:
  """Sorted files of a folder whose names match a pattern."""
  if not storage.is_directory(folder):
    return []
  with storage.reading(folder):
    return sorted(folder.glob(pattern), key=lambda path: path.name)
