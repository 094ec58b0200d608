# SPDX-License-Identifier: Apache-2.0
"""Writes metrics to `metrics.jsonl`, TensorBoard and Weights & Biases.

In a bucket the lines are stored in numbered parts (`covrl.storage.append_log`);
TensorBoard's events are uploaded whenever the run is saved.
"""

from __future__ import annotations

import importlib
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.config import LoggingConfig
from covrl.storage.append_log import AppendLog, open_log, read_log


class MetricsWriter:
  """Appends metric lines; truncates them to a checkpoint on resume."""

  def __init__(
    self,
    file: epath.PathLike,
    logging: LoggingConfig,
    *,
    name: str,
    keep: int,
    enabled: bool = True,
  ) -> None:
    """Opens the file.

    Args:
      file: path of `metrics.jsonl`.
      logging: selects TensorBoard and Weights & Biases.
      name: the run's name in Weights & Biases.
      keep: bytes of an existing file to keep; the rest was written after the
        checkpoint that is resumed.
      enabled: whether to write anything; only process 0 does.
    """
    self._sinks: list[Any] = []
    self._log: AppendLog | None = None
    if not enabled:
      return
    file = storage.as_path(file)
    self._log = open_log(file, keep)
    if logging.tensorboard:
      self._sinks.append(_TensorBoard(file.parent / 'tb', _last_steps(file)))
    if logging.wandb_project:
      self._sinks.append(_WeightsAndBiases(logging.wandb_project, name))

  @property
  def size(self) -> int:
    """Bytes written so far, after a flush."""
    self.flush()
    return self._log.size if self._log else 0

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
    self._log.write(json.dumps(line))
    for sink in self._sinks:
      sink.write(step, phase, line)

  def close(self) -> None:
    """Flushes and closes all files."""
    if self._log is not None:
      self._log.close()
    for sink in self._sinks:
      sink.close()
    self._log, self._sinks = None, []


class _TensorBoard:
  """TensorBoard scalars, one directory per phase: each counts its own steps."""

  def __init__(
    self, directory: epath.Path, last_steps: Mapping[str, int]
  ) -> None:
    self._directory = directory
    # Events are appended to local files, because a bucket cannot append.
    self._local_directory = (
      storage.temporary_directory()
      if storage.is_bucket(directory)
      else pathlib.Path(directory)
    )
    self._last_steps = last_steps
    self._writers: dict[str, Any] = {}

  def write(self, step: int, phase: str, line: Mapping[str, Any]) -> None:
    if phase not in self._writers:
      self._writers[phase] = self._open(phase)
    for name, value in line.items():
      if isinstance(value, float):
        self._writers[phase].add_scalar(name, value, step)

  def _open(self, phase: str) -> Any:
    """Opens a writer; purges events that are later than the checkpoint."""
    from tensorboardX import SummaryWriter

    earlier = len(list((self._directory / phase).glob('*')))
    return SummaryWriter(
      str(self._local_directory / phase),
      purge_step=self._last_steps.get(phase, -1) + 1 if earlier else None,
      filename_suffix=f'.{earlier}',
    )

  def flush(self) -> None:
    if storage.is_bucket(self._directory):
      for writer in self._writers.values():
        writer.flush()
      storage.upload(self._local_directory, self._directory)

  def close(self) -> None:
    for writer in self._writers.values():
      writer.close()
    if storage.is_bucket(self._directory):
      storage.upload(self._local_directory, self._directory)


class _WeightsAndBiases:
  """Weights & Biases scalars, named `PHASE/METRIC`."""

  def __init__(self, project: str, name: str) -> None:
    try:
      wandb = importlib.import_module('wandb')
    except ImportError:
      raise ModuleNotFoundError(
        'logging.wandb_project needs wandb: pip install covrl[wandb]'
      ) from None
    self._run = wandb.init(project=project, name=name)

  def write(self, step: int, phase: str, line: Mapping[str, Any]) -> None:
    del step
    self._run.log({f'{phase}/{name}': value for name, value in line.items()})

  def flush(self) -> None:
    """No-op: wandb flushes by itself."""

  def close(self) -> None:
    self._run.finish()


def _last_steps(file: epath.Path) -> dict[str, int]:
  """Returns the last step of each phase in a metrics file."""
  parsed = map(json.loads, (read_log(file) or '').splitlines())
  return {line['phase']: line['step'] for line in parsed}


def _to_json(value: Any) -> Any:
  """Converts a scalar to a JSON value."""
  if isinstance(value, (str, int, bool)) or value is None:
    return value
  number = float(value)
  return number if math.isfinite(number) else None
