# SPDX-License-Identifier: Apache-2.0
"""Runs the study: tuning, all arms on all tasks, then the results.

A run that is finished is not repeated, so that the command may be stopped and
started again at any time. The protocol is in README.md.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from covrl.report.advice import Advice, advise, read
from covrl.report.run_data import load_run

from . import runner
from .arms import ARMS, Arm, Knobs
from .runner import Setting
from .tasks import TASKS, StudyTask

TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)
LEARNING_RATE = 1e-3
# D5: factors of the learning rate, and passes over a rollout.
RATES = (0.5, 1.0, 2.0, 4.0)
PASSES = (1, 2, 4)
PUSHED = 'many_solutions'
TUNED_FIRST = 'changed_rule'

ADVISED = 'advised'

Lines = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run.

  Attributes:
    task: name of the task.
    arm: the arm.
    seed: seed of the warm start, the prompts and the samples.
    setting: what the arms of a comparison share.
    group: name of the comparison, a part of the path; empty for the main one.
  """

  task: str
  arm: Arm
  seed: int
  setting: Setting = dataclasses.field(
    default_factory=lambda: Setting(learning_rate=LEARNING_RATE)
  )
  group: str = ''

  def path(self, runs: pathlib.Path) -> pathlib.Path:
    """The run's directory."""
    value = getattr(self.arm.knobs, self.arm.tuned) if self.arm.tuned else None
    name = self.arm.name if value is None else f'{self.arm.name}_{value:g}'
    return runs / self.task / (self.group or 'arms') / f'{name}_{self.seed}'


class Study:
  """Makes runs and keeps their results.

  Attributes:
    runs: directory of all runs.
    note: receives a line for each run that is made.
    quick: whether arms take their first value instead of the best one.
  """

  def __init__(
    self,
    runs: pathlib.Path,
    note: Callable[[str], object] = print,
    *,
    quick: bool = False,
  ) -> None:
    self.runs = runs
    self.note = note
    self.quick = quick
    self._tasks: dict[str, StudyTask] = {}
    self._read: dict[pathlib.Path, Lines] = {}
    self._warm: tuple[object, Any] = (None, None)

  def task(self, name: str) -> StudyTask:
    """A task by name."""
    if name not in self._tasks:
      self._tasks[name] = TASKS[name]()
    return self._tasks[name]

  def make(self, run: Run) -> Lines:
    """The metrics of a run, which is made if it is missing."""
    folder = run.path(self.runs)
    file = folder / 'metrics.jsonl'
    if not file.is_file():
      started = time.process_time()
      lines = self._train(run)
      folder.mkdir(parents=True, exist_ok=True)
      config = {
        'task': run.task,
        'arm': run.arm.name,
        'seed': run.seed,
        'knobs': run.arm.knobs._asdict(),
        'setting': dataclasses.asdict(run.setting),
        'core_seconds': time.process_time() - started,
      }
      (folder / 'config.json').write_text(json.dumps(config))
      partial = file.with_suffix('.partial')
      partial.write_text(''.join(f'{json.dumps(line)}\n' for line in lines))
      partial.rename(file)
      self.note(
        f'{time.strftime("%H:%M:%S")} {folder.relative_to(self.runs)}:'
        f' {config["core_seconds"]:.1f} core seconds'
      )
    return read_lines(folder)

  def _train(self, run: Run) -> Lines:
    task, width = self.task(run.task), run.setting.width
    key = run.task, run.seed, width
    if self._warm[0] != key:
      self._warm = key, runner.warm_start(task, run.seed, width)
    return runner.train(task, run.arm, run.seed, run.setting, self._warm[1])

  def finished(self, run: Run) -> Lines | None:
    """The metrics of a finished run, else `None`."""
    folder = run.path(self.runs)
    if folder not in self._read and (folder / 'metrics.jsonl').is_file():
      self._read[folder] = read_lines(folder)
    return self._read.get(folder)

  def chosen(self, name: str) -> dict[str, float]:
    """The best value of each tuned arm on the tuning seeds.

    Where runs of the task's own tuning are missing, the value chosen on the first
    task; none without either.
    """
    if self.quick:
      return {arm.name: arm.choices[0] for arm in ARMS.values() if arm.tuned}
    task = self.task(name)
    best = {} if name == TUNED_FIRST else self.chosen(TUNED_FIRST)
    for arm in ARMS.values():
      scores = []
      for choice in arm.choices:
        found = [
          self.finished(
            Run(task=name, arm=arm.with_value(choice), seed=s, group='tuning')
          )
          for s in TUNING_SEEDS
        ]
        values = [primary(task, lines) for lines in found if lines]
        if len(values) == len(TUNING_SEEDS):
          sign = 1 if task.higher_is_better else -1
          scores.append((sign * float(np.mean(values)), choice))
      if arm.tuned and len(scores) == len(arm.choices):
        best[arm.name] = max(scores)[1]
    return best

  def advised(self, name: str) -> Arm | None:
    """The arm that `covrl advise` recommends after a tuning seed's GRPO run."""
    folder = advised_from(name).path(self.runs)
    if not (folder / 'metrics.jsonl').is_file():
      return None
    return arm_of(advise(read(load_run(folder))))

  def arms(self, name: str) -> list[Arm]:
    """All arms with their chosen values, and the advised one.

    Arms that are not tuned yet lack, and the advised one before the run that it
    is from, or if it is one of the others.
    """
    best = self.chosen(name)
    arms = [
      arm.with_value(best[arm.name]) if arm.tuned else arm
      for arm in ARMS.values()
      if not arm.tuned or arm.name in best
    ]
    advised = self.advised(name)
    is_new = advised and advised.knobs not in [arm.knobs for arm in arms]
    return [*arms, advised] if advised and is_new else arms


def read_lines(folder: pathlib.Path) -> Lines:
  """Lines of a run's metrics."""
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def advised_from(name: str) -> Run:
  """The run that the advice for a task is from."""
  return Run(task=name, arm=ARMS['grpo'], seed=TUNING_SEEDS[0], group='tuning')


def arm_of(advice: Advice) -> Arm:
  """The arm that follows an advice.

  Raises:
    ValueError: Clip-Cov is advised, whose bounds the arms have fixed; it is
      advised for runs of one update per rollout, which the study has none of.
  """
  match advice.method:
    case 'none':
      knobs = ARMS['grpo'].knobs
    case 'controlled_bonus':  # the study's controller is target_entropy
      knobs = Knobs(target=advice.target)
    case 'kl_cov':
      knobs = ARMS['kl_cov_beta0'].knobs._replace(
        penalty=advice.coefficient,
        fraction=advice.fraction,
        annealed=float(advice.annealed),
      )
    case 'clip_cov':
      raise ValueError('an arm cannot take the bounds of an advised Clip-Cov')
  return Arm(name=ADVISED, knobs=knobs)


def tuning_runs(name: str) -> Iterator[Run]:
  """Runs that choose each arm's own setting: three values, two seeds."""
  for seed in TUNING_SEEDS:
    for arm in ARMS.values():
      for choice in arm.choices:
        yield Run(
          task=name, arm=arm.with_value(choice), seed=seed, group='tuning'
        )


def pushed_runs(
  arms: Sequence[Arm], seeds: Sequence[int], *, quick: bool = False
) -> Iterator[Run]:
  """D5: learning rates and passes over a rollout.

  Args:
    arms: the arms.
    seeds: the seeds.
    quick: whether to take only every other learning rate, with two passes.
  """
  for seed in seeds:
    for rate in RATES[1::2] if quick else RATES:
      for passes in PASSES[1:2] if quick else PASSES:
        setting = Setting(learning_rate=LEARNING_RATE * rate, passes=passes)
        for arm in arms:
          yield Run(
            task=PUSHED,
            arm=arm,
            seed=seed,
            setting=setting,
            group=f'rate_{rate:g}_passes_{passes}',
          )


def evaluations(lines: Lines) -> Lines:
  """The exact measurements of a run."""
  return [line for line in lines if line['phase'] == 'eval']


def updates(lines: Lines) -> Lines:
  """The metrics of a run's updates."""
  return [line for line in lines if line['phase'] == 'train']


def primary(task: StudyTask, lines: Lines) -> float:
  """The primary metric of a run."""
  found = evaluations(lines)
  if task.metric == 'updates_to_half':
    return updates_to_half(lines)
  return found[-1][task.metric]


def updates_to_half(lines: Lines) -> float:
  """Updates after the rule's change until half is right, at most all of them."""
  after = [line for line in evaluations(lines) if line['rule'] == 1]
  first = after[0]['iteration']
  per_iteration = len(updates(lines)) // after[-1]['iteration']
  reached = [x['iteration'] for x in after if x['new_rule'] >= 0.5]
  end = reached[0] if reached else after[-1]['iteration']
  return float((end - first) * per_iteration)
