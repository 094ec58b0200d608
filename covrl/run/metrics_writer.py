# SPDX-License-Identifier: Apache-2.0
"""Writes metrics to `metrics.jsonl`, TensorBoard and Weights & Biases.

In a bucket the lines are stored in numbered parts (`covrl.storage.append_log`);
TensorBoard's events are uploaded whenever the run is saved. All starts of a run send
to one run of Weights & Biases, whose id is in `wandb_id.txt` beside the metrics; a
step there is the number of a line, and a start begins with the lines that it lacks.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

from etils import epath

from covrl import storage
from covrl.config import ConfigError, LoggingConfig
from covrl.run.event_files import EventFiles, check_event_files
from covrl.storage.append_log import AppendLog, LogPosition, open_log

_WANDB_ID = 'wandb_id.txt'  # file with the id of the run in Weights & Biases


class MetricsState(TypedDict):
  """The state of the metrics that a checkpoint stores.

  Attributes:
    log: position in `metrics.jsonl`.
    last_steps: last step of each phase.
    events: size and digest of each of TensorBoard's files.
  """

  log: LogPosition
  last_steps: dict[str, int]
  events: dict[str, str]


class MetricsWriter:
  """Appends metric lines; truncates them to a checkpoint on resume."""

  def __init__(
    self,
    file: epath.PathLike,
    logging: LoggingConfig,
    *,
    name: str,
    saved: MetricsState | None = None,
    warn: Callable[[str], object] = lambda text: None,
    enabled: bool = True,
    before_write: Callable[[], object] = lambda: None,
  ) -> None:
    """Opens the file.

    Args:
      file: path of `metrics.jsonl`.
      logging: selects TensorBoard and Weights & Biases.
      name: the run's name in Weights & Biases.
      saved: the metrics at the checkpoint that is resumed; later lines and events
        are discarded. Files that differ are set aside.
      warn: receives a sentence for each such file, and one if sending to Weights
        & Biases has failed and ended.
      enabled: whether to write anything; only process 0 does.
      before_write: called before lines are written or stored; raises an error if
        the run must not write.

    Raises:
      RuntimeError: Weights & Biases refuses the run, or cannot be reached.
      StorageError: the id of the run there cannot be read or written.
    """
    self._before_write = before_write
    self._sinks: list[Any] = []
    self._log: AppendLog | None = None
    self._events: EventFiles | None = None
    self._last_steps = dict(saved['last_steps']) if saved else {}
    if not enabled:
      return
    file = storage.as_path(file)
    self._log = open_log(
      file,
      saved and saved['log'],
      is_usable=lambda line: _is_saved_line(line, self._last_steps),
      note=warn,
    )
    if logging.tensorboard:
      directory = file.parent / 'tb'
      events = saved['events'] if saved else {}
      events = check_event_files(directory, events, warn)
      self._events = EventFiles(directory, dict(self._last_steps), events, warn)
      self._sinks.append(self._events)
    if logging.wandb_project:
      try:
        run_id, is_new = _wandb_run_id(file.parent / _WANDB_ID)
        sink = _WeightsAndBiases(
          logging.wandb_project,
          name,
          run_id,
          self._log.content().splitlines(),
          warn,
          is_new=is_new,
        )
      except (RuntimeError, OSError):
        self.close()
        raise
      self._sinks.append(sink)

  def sync(self) -> MetricsState:
    """Forces lines and events to the disk, so that a power cut loses none.

    Returns:
      The state to resume the metrics at.
    """
    position: LogPosition = {'size': 0, 'lines': 0, 'sha256': ''}
    if self._log is not None:
      self._before_write()
      position = self._log.sync()
    for sink in self._sinks:
      sink.sync()
    return {
      'log': position,
      'last_steps': dict(self._last_steps),
      'events': self._events.states() if self._events else {},
    }

  def flush(self) -> None:
    """Writes all buffered lines and events."""
    if self._log is not None:
      self._log.flush()
    for sink in self._sinks:
      sink.flush()

  def write(
    self, *, step: int, iteration: int, phase: str, **values: Any
  ) -> None:
    """Writes one line; numbers that are not finite become null."""
    if self._log is None:
      return
    line = {'step': step, 'iteration': iteration, 'phase': phase}
    line |= {name: _to_json(value) for name, value in values.items()}
    self._before_write()
    self._log.write(json.dumps(line))
    self._last_steps[phase] = step
    for sink in self._sinks:
      sink.write(step, phase, line)

  def close(self) -> None:
    """Flushes and closes all files, also if one of them cannot be written."""
    with contextlib.ExitStack() as stack:
      for output in (*reversed(self._sinks), self._log):
        if output is not None:
          stack.callback(output.close)
      if self._log is not None:
        stack.callback(self._before_write)
      self._log, self._sinks = None, []


def check_wandb(logging: LoggingConfig) -> None:
  """Checks that Weights & Biases is installed if metrics are to be sent there.

  Raises:
    ConfigError: it is not installed.
  """
  if logging.wandb_project and importlib.util.find_spec('wandb') is None:
    raise ConfigError(
      'logging.wandb_project needs wandb, which is not installed: pip install'
      ' "covrl[wandb]"'
    )


def _wandb_run_id(file: epath.Path) -> tuple[str, bool]:
  """Returns the id of a run in Weights & Biases, and whether it is a new one.

  It is read from a file, or drawn and written to it. A file that has no id is
  written again.

  Raises:
    StorageError: the file cannot be read or written.
  """
  if storage.is_regular_file(file):
    run_id = storage.read_bytes(file).decode(errors='replace').strip()
    if re.fullmatch(r'[0-9A-Za-z_-]{1,64}', run_id):
      return run_id, False
  # The generators that `seed` seeds would give equal ids to runs of one recipe.
  run_id = uuid.uuid4().hex[:16]
  storage.write_atomically(file, f'{run_id}\n')
  return run_id, True


class _WeightsAndBiases:
  """Weights & Biases scalars, named `PHASE/METRIC`.

  A step is the number of a line of `metrics.jsonl`, from 0. Lines that the service
  has, those of updates that are repeated after a kill among them, are not sent again.
  Errors after the start end the sending of metrics and not the run.

  Args:
    project: the project.
    name: the displayed name of the run.
    run_id: id of the run in the project; one that exists is continued.
    lines: the lines of `metrics.jsonl` so far. Those that the service lacks are
      sent.
    warn: receives a sentence if the service fails after the start.
    is_new: whether no earlier start has used the id.

  Raises:
    RuntimeError: the service refuses the run, or cannot be reached.
  """

  def __init__(
    self,
    project: str,
    name: str,
    run_id: str,
    lines: Sequence[bytes],
    warn: Callable[[str], object],
    *,
    is_new: bool,
  ) -> None:
    wandb = importlib.import_module('wandb')
    self._warn = warn
    self._lines_written = 0
    try:
      self._run: Any = wandb.init(
        project=project, name=name, id=run_id, resume='allow'
      )
    except Exception as error:
      # An id whose run has been deleted there is refused for ever.
      advice = f'; without {_WANDB_ID} a new run is opened there'
      raise RuntimeError(
        f'Weights & Biases must accept the project {project!r} of'
        f' logging.wandb_project, got: {_one_line(error)}'
        f'{"" if is_new else advice}'
      ) from error
    self._first_missing: int = self._run.step
    for line in lines:
      values = json.loads(line)
      self.write(values['step'], values['phase'], values)

  def write(self, step: int, phase: str, line: Mapping[str, Any]) -> None:
    del step
    number = self._lines_written
    self._lines_written += 1
    if number >= self._first_missing:
      values = {f'{phase}/{name}': value for name, value in line.items()}
      self._call(lambda run: run.log(values, step=number))

  def flush(self) -> None:
    """No-op: wandb flushes by itself."""

  def sync(self) -> None:
    """No-op: wandb flushes by itself."""

  def close(self) -> None:
    self._call(lambda run: run.finish())

  def _call(self, send: Callable[[Any], object]) -> None:
    if self._run is None:
      return
    try:
      send(self._run)
    except Exception as error:
      self._run = None
      self._warn(
        'Weights & Biases receives no further metrics, metrics.jsonl has all:'
        f' {_one_line(error)}'
      )


def _one_line(error: Exception) -> str:
  return ' '.join(str(error).split())[:200] or type(error).__name__


def _is_saved_line(line: bytes, last_steps: Mapping[str, int]) -> bool:
  """Returns whether a line is a metric line, not later than a checkpoint."""
  try:
    values = json.loads(line)
  except ValueError:
    return False
  if not isinstance(values, dict) or type(values.get('step')) is not int:
    return False
  phase = values.get('phase')
  return isinstance(phase, str) and values['step'] <= last_steps.get(phase, -1)


def _to_json(value: Any) -> Any:
  """Converts a scalar to a JSON value."""
  if isinstance(value, (str, int, bool)) or value is None:
    return value
  number = float(value)
  return number if math.isfinite(number) else None
