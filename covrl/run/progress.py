# SPDX-License-Identifier: Apache-2.0
"""What a person sees while a run goes on, and the only printing in covrl.

On a terminal, two lines that stay in place: where the run is, with a bar and
the time left, and its latest numbers. Anywhere else (a file, a log collector)
plain lines: one about every ten seconds, and one for each change of stage and
each note.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

import rich.console
import rich.live
import rich.progress_bar
import rich.table
import rich.text

# What is worth a reader's eye: how each metric is called, and its format.
_SHOWN: Mapping[str, tuple[str, str]] = {
  'loss': ('loss', '{:.3f}'),
  'accuracy': ('accuracy', '{:.3f}'),
  'reward': ('reward', '{:.3f}'),
  'entropy': ('entropy', '{:.3f} nats'),
  'greedy': ('greedy', '{:.3f}'),
  'mean@8': ('mean@8', '{:.3f}'),
  'pass@8': ('pass@8', '{:.3f}'),
  'tokens_per_second': ('', '{:,.0f} tokens/s'),
}


class Progress:
  """Shows the stage, its steps, the latest metrics and the time left.

  Args:
    console: where to write; standard output by default.
    interval: seconds between plain lines.
    clock: seconds, for tests.
    enabled: whether to show anything; in a program of many processes one
      speaks.
    moved: called whenever something is reported, shown or not.

  >>> import io
  >>> console = rich.console.Console(file=io.StringIO(), width=80)
  >>> with Progress(console=console) as progress:
  ...   progress.stage('train', 60)
  ...   progress.update(1, reward=0.25, entropy=0.3)
  >>> print(console.file.getvalue())
  train: 60 to do
  train 1/60 · reward 0.250 · entropy 0.300 nats
  """

  def __init__(
    self,
    console: rich.console.Console | None = None,
    *,
    interval: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    enabled: bool = True,
    moved: Callable[[], None] = lambda: None,
  ) -> None:
    self._console = console or rich.console.Console(highlight=False)
    self._interval = interval
    self._clock = clock
    self._enabled = enabled
    self._moved = moved
    self._live: rich.live.Live | None = None
    self._name = ''
    self._step = 0
    self._total: int | None = None
    self._began = clock()
    self._first_step: int | None = None
    self._first_time = self._last_line = clock()
    self._metrics: dict[str, float] = {}
    self._unsaid = False

  def __enter__(self) -> Self:
    if self._enabled and self._console.is_terminal:
      self._live = rich.live.Live(
        console=self._console,
        get_renderable=self._panel,
        refresh_per_second=4,
        redirect_stdout=False,
        redirect_stderr=False,
      )
      self._live.start()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    self._say_last()
    if self._live is not None:
      self._live.stop()
      self._live = None

  def stage(self, name: str, total: int | None) -> None:
    """Begins a stage, such as `'warm start'`.

    Args:
      name: as it is shown.
      total: what `update`'s step will reach; `None` for a stage that takes
        its time without steps.
    """
    self._moved()
    self._say_last()
    self._name, self._step, self._total = name, 0, total
    self._first_step, self._metrics = None, {}
    self._began = self._last_line = self._clock()
    if self._live is None:
      self._print(name if total is None else f'{name}: {total:,} to do')

  def update(self, step: int, **metrics: float) -> None:
    """Reports that so many steps of the stage are done.

    Args:
      step: steps or iterations done, out of the stage's total.
      **metrics: latest numbers, by their names in `metrics.jsonl`; those
        worth showing live are picked.
    """
    self._moved()
    now = self._clock()
    if self._first_step is None:
      # Compilation is behind the first step, not between steps.
      self._first_step, self._first_time = step, now
    self._step = step
    self._metrics |= {
      name: float(value) for name, value in metrics.items() if name in _SHOWN
    }
    self._unsaid = True
    if self._live is None and now - self._last_line >= self._interval:
      self._say_last()

  def note(self, text: str) -> None:
    """Prints a line that stays, such as an evaluation's result."""
    self._moved()
    self._print(text)

  def _say_last(self) -> None:
    """Prints the latest numbers, if they have not been printed."""
    if self._unsaid and self._name:
      self._unsaid = False
      self._last_line = self._clock()
      if self._live is None or self._step >= (self._total or 0):
        self._print(' · '.join(self._parts()))

  def _print(self, text: str) -> None:
    if self._enabled:
      # A closed pipe (`covrl train | head`) ends the reader, not the run.
      with contextlib.suppress(BrokenPipeError):
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

  def _parts(self) -> list[str]:
    """The stage with its count, the numbers, the time left."""
    parts = [f'{self._name} {self._count()}'.strip(), *self._numbers()]
    left = self._seconds_left()
    return parts if left is None else [*parts, f'{_clock_time(left)} left']

  def _count(self) -> str:
    """Steps done, of how many."""
    total = '' if self._total is None else f'/{self._total:,}'
    return f'{self._step:,}{total}' if self._step or total else ''

  def _numbers(self) -> list[str]:
    """The latest metrics, in a fixed order."""
    return [
      f'{label} {form.format(self._metrics[name])}'.strip()
      for name, (label, form) in _SHOWN.items()
      if name in self._metrics
    ]

  def _seconds_left(self) -> float | None:
    """Seconds to the stage's end at its mean pace so far."""
    first, total = self._first_step, self._total
    if first is None or total is None or not first < self._step < total:
      return None
    pace = (self._clock() - self._first_time) / (self._step - first)
    return pace * (total - self._step)

  def _panel(self) -> rich.console.RenderableType:
    """What the terminal shows: a bar's line, and a line of numbers."""
    left = self._seconds_left()
    spent = _clock_time(self._clock() - self._began)
    row = rich.table.Table.grid(padding=(0, 1))
    row.add_row(
      rich.text.Text(self._name, style='bold'),
      rich.progress_bar.ProgressBar(
        total=self._total,
        completed=self._step,
        width=32,
        pulse=self._total is None,
      ),
      rich.text.Text(self._count()),
      rich.text.Text(spent if left is None else f'{_clock_time(left)} left'),
    )
    numbers = rich.text.Text('  ·  '.join(self._numbers()), style='dim')
    return rich.console.Group(row, numbers)


def _clock_time(seconds: float) -> str:
  """Time as a clock shows it.

  >>> _clock_time(75), _clock_time(3675)
  ('1:15', '1:01:15')
  """
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
