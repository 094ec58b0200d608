# SPDX-License-Identifier: Apache-2.0
"""Progress display on standard error, and the only printing besides results.

On a terminal: one bar per stage and a line with the latest metrics, updated in
place. Elsewhere (a file, a log collector): plain lines, one per stage, one per
note, and at most one every `interval` seconds while a stage advances.
"""

from __future__ import annotations

import datetime
import math
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Protocol, Self, TextIO, cast

import rich.console
import rich.progress
import rich.text

from covrl.run import streams

WARNING = 'warning: '
"""Beginning of a line that is a warning."""

# Metrics that are displayed: label and format.
_METRICS: Mapping[str, tuple[str, str]] = {
  'loss': ('loss', '{:.3f}'),
  'accuracy': ('accuracy', '{:.3f}'),
  'reward': ('reward', '{:.3f}'),
  'entropy': ('entropy', '{:.3f} nats'),
  'greedy': ('greedy', '{:.3f}'),
  'correct_samples': ('correct samples', '{:.3f}'),
  'mean@8': ('mean@8', '{:.3f}'),
  'pass@8': ('pass@8', '{:.3f}'),
  'tokens_per_second': ('', '{:,.0f} tokens/s'),
  'skipped_updates': ('', '{:,.0f} updates skipped'),
  'updates_without_tokens': ('', '{:,.0f} updates without tokens'),
  'updates_without_gradient': ('', '{:,.0f} updates with a gradient of 0'),
  'clamped_updates': ('', '{:,.0f} updates with a clamped fraction'),
}


class Counter(Protocol):
  """A function that displays the progress of a stage's parts."""

  def __call__(self, done: int, total: int, **metrics: float) -> None:
    """Displays that `done` of `total` parts are done, and the latest metrics."""


class Progress:
  """Displays stages, their steps, the latest metrics and the time left.

  Args:
    console: console to write to; standard error by default.
    interval: seconds between plain lines.
    clock: returns the time in seconds; for tests.
    enabled: whether to display anything; of several processes only one should.
    on_progress: called at every report, displayed or not.

  >>> import io
  >>> console = rich.console.Console(file=io.StringIO(), width=80)
  >>> with Progress(console) as progress:
  ...   progress.stage('train', 60)
  ...   progress.update(1, reward=0.25, entropy=0.3)
  >>> print(console.file.getvalue())
  train 0/60
  train 1/60 · reward 0.250 · entropy 0.300 nats
  """

  def __init__(
    self,
    console: rich.console.Console | None = None,
    *,
    interval: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    enabled: bool = True,
    on_progress: Callable[[], None] = lambda: None,
  ) -> None:
    self._console = console or rich.console.Console(
      stderr=True, highlight=False
    )
    # A log on a full disk, a closed pipe (`covrl train 2>&1 | head`) or terminal
    # must not end the run.
    self._console.file = streams.without_write_errors(
      cast(TextIO, self._console.file)
    )
    self._interval = interval
    self._clock = clock
    self._enabled = enabled
    self._on_progress = on_progress
    self._is_live = enabled and self._console.is_terminal
    self._display = _Display(self._console, clock, disable=not self._is_live)
    self._stage: rich.progress.Task | None = None

  def __enter__(self) -> Self:
    if self._is_live:
      self._display.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if kind is None:
      self._end_stage()
    elif self._stage is not None:
      self._print_step(self._stage)
    if self._is_live:
      self._display.stop()

  def stage(self, name: str, total: int | None = None) -> None:
    """Begins a stage and ends the one before.

    Args:
      name: displayed name, such as `'warm start'`.
      total: number of steps; `None` for a stage that is not counted.
    """
    self._on_progress()
    self._end_stage()
    self._stage = self._add_task(name, total)
    if not self._is_live:
      self._print(f'{name} {self._stage.fields["count"]}'.strip())

  def update(self, step: int, **metrics: float) -> None:
    """Reports the number of finished steps of the current stage.

    Args:
      step: finished steps, out of the stage's total.
      **metrics: latest values by their names in `metrics.jsonl`; the most
        important ones are displayed.
    """
    self._on_progress()
    if self._stage is not None:
      self._advance(self._stage, step, metrics)

  def counter(self, name: str) -> Counter:
    """Returns a callback `(done, total)` for the parts of the current stage.

    On a terminal it displays a bar below the stage's until all is done,
    elsewhere a line every `interval` seconds.

    Args:
      name: displayed name of the parts, such as `'problems'`.
    """
    task: rich.progress.Task | None = None

    def report(done: int, total: int, **metrics: float) -> None:
      nonlocal task
      self._on_progress()
      task = task or self._add_task(name, total)
      self._advance(task, done, metrics)
      if done >= total:
        self._display.remove_task(task.id)
        task = None

    return report

  def note(self, text: str) -> None:
    """Prints a line that stays, such as the result of an evaluation."""
    self._on_progress()
    self._print(text)

  def finish(self, text: str) -> None:
    """Ends the current stage, then prints a line that stays."""
    self._on_progress()
    self._end_stage()
    self._print(text)

  def warn(self, text: str) -> None:
    """Prints a warning, a line that stays."""
    self.note(f'{WARNING}{text}')

  def _add_task(self, name: str, total: int | None) -> rich.progress.Task:
    task_id = self._display.add_task(
      name,
      total=total,
      count=_format_count(0, total) if total else '',
      metrics={},
      printed_at=self._clock(),
      is_printed=True,
    )
    return next(task for task in self._display.tasks if task.id == task_id)

  def _advance(
    self, task: rich.progress.Task, step: int, metrics: Mapping[str, float]
  ) -> None:
    self._display.update(
      task.id,
      completed=step,
      count=_format_count(step, task.total),
      metrics=task.fields['metrics'] | metrics,
      is_printed=False,
    )
    if self._clock() - task.fields['printed_at'] >= self._interval:
      self._print_step(task)

  def _end_stage(self) -> None:
    """Prints the last step; stops the bar, a full one if it was uncounted."""
    if self._stage is None:
      return
    self._print_step(self._stage)
    if self._stage.total is None:
      self._display.update(self._stage.id, total=1, completed=1)
    self._display.stop_task(self._stage.id)
    self._stage = None

  def _print_step(self, task: rich.progress.Task) -> None:
    """Prints a plain line about a task's latest step, unless already printed."""
    if self._is_live or task.fields['is_printed']:
      return
    task.fields |= {'is_printed': True, 'printed_at': self._clock()}
    parts = [f'{task.description} {task.fields["count"]}']
    parts += _format_metrics(task.fields['metrics'])
    if seconds := task.time_remaining:
      parts.append(f'{datetime.timedelta(seconds=seconds)} left')
    self._print(' · '.join(parts))

  def _print(self, text: str) -> None:
    if self._enabled:
      self._console.print(text, markup=False, highlight=False, soft_wrap=True)


class _Display(rich.progress.Progress):
  """A bar per task, and the latest task's metrics below them."""

  def __init__(
    self,
    console: rich.console.Console,
    clock: Callable[[], float],
    *,
    disable: bool,
  ) -> None:
    super().__init__(
      rich.progress.TextColumn('{task.description}', markup=False),
      rich.progress.BarColumn(bar_width=24),
      rich.progress.TextColumn('{task.fields[count]}', markup=False),
      rich.progress.TimeElapsedColumn(),
      rich.progress.TimeRemainingColumn(),
      console=console,
      refresh_per_second=4,
      # The mean pace of all steps; the first, which compiles, does not count.
      speed_estimate_period=math.inf,
      redirect_stdout=False,
      redirect_stderr=False,
      get_time=clock,
      disable=disable,
    )

  def get_renderables(self) -> Iterable[rich.console.RenderableType]:
    yield from super().get_renderables()
    metrics = [_format_metrics(task.fields['metrics']) for task in self.tasks]
    if latest := next(filter(None, reversed(metrics)), None):
      yield rich.text.Text('  ·  '.join(latest), style='dim')


def _format_count(step: int, total: float | None) -> str:
  return f'{step:,}' if total is None else f'{step:,}/{round(total):,}'


def _format_metrics(metrics: Mapping[str, float]) -> list[str]:
  """Returns the displayed metrics in a fixed order."""
  return [
    f'{label} {template.format(metrics[name])}'.strip()
    for name, (label, template) in _METRICS.items()
    if name in metrics
  ]
