# SPDX-License-Identifier: Apache-2.0
"""Runs the study: tuning, all variants on all tasks, then the results.

A run that is finished is not repeated, so that the command may be stopped and
started again at any time. The protocol is in README.md.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from covrl.evaluation.reward_law import Fit, reward_law
from covrl.report.advice import Advice, advise, read_inputs
from covrl.report.inputs.run_data import load_run

from . import runner
from .runner import Setting
from .tasks import ALL_TASKS, TASKS, StudyTask
from .variants import VARIANTS, Variant, VariantOptions

TUNING_SEEDS = (100, 101)
SEEDS = tuple(range(10))
FEW_SEEDS = SEEDS[:5]  # of other learning rates, passes and sizes
LEARNING_RATE = 1e-3
# Task D5 of README.md: factors of the learning rate, and passes over a rollout.
RATE_FACTORS = (0.5, 1.0, 2.0, 4.0)
PASSES = (1, 2, 4)
RATES_AND_PASSES = 'rates_and_passes'
# Widths of policies of 0.02 to 3 million parameters, and the variants that are run.
BASE_WIDTH, WIDTHS = 32, (32, 64, 128, 256, 384)
SIZED_VARIANTS = ('grpo', 'kl_cov')
SIZED_TASKS = ('changed_rule', RATES_AND_PASSES)
TUNED_ON = {name: name for name in TASKS} | {RATES_AND_PASSES: 'many_solutions'}
"""The task whose tuning runs choose the values of the variants, by task."""

ADVISED = 'advised'
CHOSEN_FILE = pathlib.Path(__file__).with_name('chosen.json')
"""The values that tuning chose for the published results, by task and variant."""

_OLD_FOLDER = 'arms'  # name of earlier versions for the folder `variants`

Lines = list[dict[str, Any]]
"""Lines of a run's `metrics.jsonl`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One training run of the study.

  Attributes:
    task: name of the task.
    variant: the variant.
    seed: seed of the warm start, the prompts and the samples.
    setting: what the variants of a comparison share.
    group: name of the comparison, a part of the path; empty for the main one.
  """

  task: str
  variant: Variant
  seed: int
  setting: Setting = dataclasses.field(
    default_factory=lambda: Setting(learning_rate=LEARNING_RATE)
  )
  group: str = ''

  def path(self, runs: pathlib.Path) -> pathlib.Path:
    """The run's directory."""
    value = (
      getattr(self.variant.options, self.variant.tuned)
      if self.variant.tuned
      else None
    )
    name = (
      self.variant.name if value is None else f'{self.variant.name}_{value:g}'
    )
    return runs / self.task / (self.group or 'variants') / f'{name}_{self.seed}'


class Study:
  """Trains runs that are missing, and reads and caches their metrics.

  Attributes:
    runs: directory of all runs.
    log: receives a line for each run that is made.
    quick: whether variants take their first value instead of the best one.

  Raises:
    ValueError: the directory has runs of an earlier version.
  """

  def __init__(
    self,
    runs: pathlib.Path,
    log: Callable[[str], object] = print,
    *,
    quick: bool = False,
  ) -> None:
    for folder in runs.glob(f'*/{_OLD_FOLDER}'):
      raise ValueError(
        f'--runs must have runs of this version, got {folder}; runs of earlier'
        ' versions have other names of metrics'
      )
    self.runs = runs
    self.log = log
    self.quick = quick
    self._tasks: dict[str, StudyTask] = {}
    self._cached_lines: dict[pathlib.Path, Lines] = {}
    self._warm_start: tuple[object, Any] = (None, None)

  def task(self, name: str) -> StudyTask:
    """A task by name."""
    if name not in self._tasks:
      self._tasks[name] = ALL_TASKS[name]()
    return self._tasks[name]

  def train_if_missing(self, run: Run) -> Lines:
    """Trains a run that is missing; returns the metrics of the run."""
    folder = run.path(self.runs)
    file = folder / 'metrics.jsonl'
    if not file.is_file():
      started = time.process_time()
      lines = self._train(run)
      folder.mkdir(parents=True, exist_ok=True)
      config = {
        'task': run.task,
        'variant': run.variant.name,
        'seed': run.seed,
        'options': run.variant.options._asdict(),
        'setting': dataclasses.asdict(run.setting),
        'core_seconds': time.process_time() - started,
      }
      (folder / 'config.json').write_text(json.dumps(config))
      partial = file.with_suffix('.partial')
      partial.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
      partial.rename(file)
      self.log(
        f'{time.strftime("%H:%M:%S")} {folder.relative_to(self.runs)}:'
        f' {config["core_seconds"]:.1f} core seconds'
      )
    return read_lines(folder)

  def _train(self, run: Run) -> Lines:
    task, width = self.task(run.task), run.setting.width
    key = run.task, run.seed, width
    if self._warm_start[0] != key:
      self._warm_start = key, runner.warm_start(task, run.seed, width)
    return runner.train(
      task, run.variant, run.seed, run.setting, self._warm_start[1]
    )

  def finished_lines(self, run: Run) -> Lines | None:
    """The metrics of a finished run, else `None`."""
    folder = run.path(self.runs)
    if (
      folder not in self._cached_lines and (folder / 'metrics.jsonl').is_file()
    ):
      self._cached_lines[folder] = read_lines(folder)
    return self._cached_lines.get(folder)

  def core_seconds(self, run: Run) -> float:
    """Processor time of a finished run."""
    config = (run.path(self.runs) / 'config.json').read_text()
    return float(json.loads(config)['core_seconds'])

  def chosen_values(self, task_name: str) -> dict[str, float]:
    """The value of each tuned variant: the best of the finished tuning runs.

    Variants whose tuning is not finished have the value of the published results,
    so that a part of the study can be run without the tuning.
    """
    if self.quick:
      return {
        variant.name: variant.choices[0]
        for variant in VARIANTS.values()
        if variant.tuned
      }
    published = json.loads(CHOSEN_FILE.read_text())[TUNED_ON[task_name]]
    return published | self.best_values(task_name)

  def best_values(self, task_name: str) -> dict[str, float]:
    """The best value of each variant whose tuning is finished."""
    task_name = TUNED_ON[task_name]
    task, best = self.task(task_name), {}
    for variant in VARIANTS.values():
      scores = []
      for choice in variant.choices:
        runs = [
          self.finished_lines(
            Run(
              task=task_name,
              variant=variant.with_value(choice),
              seed=s,
              group='tuning',
            )
          )
          for s in TUNING_SEEDS
        ]
        values = [tuning_score(task, lines) for lines in runs if lines]
        if len(values) == len(TUNING_SEEDS):
          scores.append((float(np.mean(values)), choice))
      if variant.tuned and len(scores) == len(variant.choices):
        best[variant.name] = max(scores)[1]
    return best

  def advised(self, task_name: str) -> Variant | None:
    """The variant that `covrl advise` recommends after a tuning seed's GRPO run."""
    folder = advice_source(task_name).path(self.runs)
    if not (folder / 'metrics.jsonl').is_file():
      return None
    return variant_of(advise(read_inputs(load_run(folder))))

  def variants(self, task_name: str) -> list[Variant]:
    """All variants with their chosen values, and the advised one.

    The advised variant is missing until the run that it depends on is finished, and if
    it equals another variant.
    """
    values = self.chosen_values(task_name)
    variants = [
      variant.with_value(values[variant.name]) if variant.tuned else variant
      for variant in VARIANTS.values()
    ]
    advised = self.advised(task_name)
    is_new = advised and advised.options not in [
      variant.options for variant in variants
    ]
    return [*variants, advised] if advised and is_new else variants


def read_lines(folder: pathlib.Path) -> Lines:
  """Lines of a run's metrics."""
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def advice_source(task_name: str) -> Run:
  """The run from whose metrics the advice for a task is made."""
  return Run(
    task=task_name,
    variant=VARIANTS['grpo'],
    seed=TUNING_SEEDS[0],
    group='tuning',
  )


def variant_of(advice: Advice) -> Variant:
  """The variant that follows an advice.

  Raises:
    ValueError: Clip-Cov is advised, whose bounds the variants have fixed; it is
      advised for runs of one update per rollout only, unlike those of the study.
  """
  match advice.method:
    case 'none':
      options = VARIANTS['grpo'].options
    case 'controlled_bonus':  # the study's controller is target_entropy
      options = VariantOptions(target=advice.target)
    case 'kl_cov':
      options = VARIANTS['kl_cov_beta0'].options._replace(
        penalty=advice.coefficient,
        fraction=advice.fraction,
        annealed=float(advice.annealed),
      )
    case 'clip_cov':
      raise ValueError(
        f'advice.method must be one whose settings a variant has, got {advice.method}'
      )
  return Variant(name=ADVISED, options=options)


def tuning_runs(task_name: str) -> Iterator[Run]:
  """Runs that choose each variant's own setting: three values, two seeds."""
  for seed in TUNING_SEEDS:
    for variant in VARIANTS.values():
      for choice in variant.choices:
        yield Run(
          task=task_name,
          variant=variant.with_value(choice),
          seed=seed,
          group='tuning',
        )


def rates_and_passes_runs(
  variants: Sequence[Variant], seeds: Sequence[int], *, quick: bool = False
) -> Iterator[Run]:
  """D5: learning rates and passes over a rollout.

  Args:
    variants: the variants.
    seeds: the seeds.
    quick: whether to take only every other learning rate, with two passes.
  """
  for seed in sorted(set(seeds) & set(FEW_SEEDS)):
    for rate_factor in RATE_FACTORS[1::2] if quick else RATE_FACTORS:
      for passes in PASSES[1:2] if quick else PASSES:
        setting = Setting(
          learning_rate=LEARNING_RATE * rate_factor, passes=passes
        )
        for variant in variants:
          yield Run(
            task=RATES_AND_PASSES,
            variant=variant,
            seed=seed,
            setting=setting,
            group=f'rate_{rate_factor:g}_passes_{passes}',
          )


def sized_runs(
  variants: Sequence[Variant], seeds: Sequence[int]
) -> Iterator[Run]:
  """Policies of several sizes; the learning rate falls as 1 / width.

  Args:
    variants: the variants, of which two are run.
    seeds: the seeds.
  """
  for width in WIDTHS:
    for seed in sorted(set(seeds) & set(FEW_SEEDS)):
      for task in SIZED_TASKS:
        for variant in variants:
          if variant.name in SIZED_VARIANTS:
            rate = LEARNING_RATE * BASE_WIDTH / width
            yield Run(
              task=task,
              variant=variant,
              seed=seed,
              setting=Setting(width=width, learning_rate=rate),
              group=f'width_{width}',
            )


def evaluations(lines: Lines) -> Lines:
  """The lines of a run's evaluations."""
  return [line for line in lines if line['phase'] == 'eval']


def updates(lines: Lines) -> Lines:
  """The lines of a run's updates."""
  return [line for line in lines if line['phase'] == 'train']


def by_iteration(lines: Lines, field: str) -> np.ndarray:
  """Mean of a field over the updates of each iteration, before a rule changes."""
  changes = [x['iteration'] for x in evaluations(lines) if x['rule'] > 0]
  end = min(changes, default=math.inf)
  lines_before_end = [
    line for line in updates(lines) if line['iteration'] < end
  ]
  number = np.array([line['iteration'] for line in lines_before_end])
  values = np.array([line[field] for line in lines_before_end], float)
  return np.array([np.nanmean(values[number == i]) for i in np.unique(number)])


def fit_law(lines: Lines) -> Fit:
  """Fits the law R = −a e^H + b between entropy and reward to a run."""
  entropy = by_iteration(lines, 'rollout_entropy')
  law = reward_law(entropy, by_iteration(lines, 'reward'), resamples=20)
  return law.exponential


def primary_metric(task: StudyTask, lines: Lines) -> float:
  """The primary metric of a run."""
  evaluated = evaluations(lines)
  if task.metric == 'updates_to_half':
    return updates_to_half(lines)
  return evaluated[-1][task.metric]


def tuning_score(task: StudyTask, lines: Lines) -> float:
  """The number that tuning maximises: the task's metric for it, or the primary one."""
  if task.tuned_by:
    return evaluations(lines)[-1][task.tuned_by]
  return primary_metric(task, lines) * (1 if task.higher_is_better else -1)


def updates_to_half(lines: Lines) -> float:
  """Updates from the change of the rule until half of the prompts are answered by it.

  All updates after the change if that is never reached.
  """
  after_change = [line for line in evaluations(lines) if line['rule'] == 1]
  change = after_change[0]['iteration']
  updates_per_iteration = len(updates(lines)) // after_change[-1]['iteration']
  reached = [x['iteration'] for x in after_change if x['new_rule'] >= 0.5]
  end = reached[0] if reached else after_change[-1]['iteration']
  return float((end - change) * updates_per_iteration)
