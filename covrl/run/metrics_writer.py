# SPDX-License-Identifier: Apache-2.0
"""Where metrics go: `metrics.jsonl`, and TensorBoard and W&B if asked.

In a bucket the lines are in numbered parts (`covrl.storage.append_log`), and events are
copied there whenever the run is saved.
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
from covrl.storage.append_log import Journal, open_journal, read_journal


class MetricsWriter:
  """Appends metric lines, and cuts them back to a checkpoint on resume."""

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
      file: `metrics.jsonl`.
      logging: what else to write to.
      name: of the run.
      keep: bytes to keep of what is there; the rest was written after the
        checkpoint that is resumed.
      enabled: whether to write anything; of several processes one does.
    """
    self._extra: list[Any] = []
    self._journal: Journal | None = None
    if not enabled:
      return
    file = storage.path_of(file)
    self._journal = open_journal(file, keep)
    if logging.tensorboard:
      self._extra.append(_TensorBoard(file.parent / 'tb', _last_steps(file)))
    if logging.wandb_project:
      self._extra.append(_WeightsAndBiases(logging.wandb_project, name))

  @property
  def size(self) -> int:
    """Bytes written so far; all that was logged is where it belongs."""
    self.flush()
    return self._journal.size if self._journal else 0

  def flush(self) -> None:
    """Brings what was logged to where it belongs."""
    if self._journal is not None:
      self._journal.flush()
    for sink in self._extra:
      sink.flush()

  def write(
    self, *, step: int, iteration: int, phase: str, **values: Any
  ) -> None:
    """Writes one line; numbers that are not finite become null."""
    if self._journal is None:
      return
    line = {'step': step, 'iteration': iteration, 'phase': phase}
    line |= {name: _plain(value) for name, value in values.items()}
    self._journal.write(json.dumps(line))
    for sink in self._extra:
      sink.write(step, phase, line)

  def close(self) -> None:
    """Flushes everything."""
    if self._journal is not None:
      self._journal.close()
    for sink in self._extra:
      sink.close()
    self._journal, self._extra = None, []


class _TensorBoard:
  """Scalars, a directory for each phase: phases count their steps apart."""

  def __init__(
    self, directory: epath.Path, last_steps: Mapping[str, int]
  ) -> None:
    self._directory = directory
    # Where events are appended to, which a bucket does not do.
    distant = storage.is_bucket(directory)
    self._here = storage.scratch() if distant else pathlib.Path(directory)
    self._last_steps = last_steps
    self._writers: dict[str, Any] = {}

  def write(self, step: int, phase: str, line: Mapping[str, Any]) -> None:
    if phase not in self._writers:
      self._writers[phase] = self._open(phase)
    for name, value in line.items():
      if isinstance(value, float):
        self._writers[phase].add_scalar(name, value, step)

  def _open(self, phase: str) -> Any:
    """A writer; what an earlier attempt wrote beyond its checkpoint is void."""
    from tensorboardX import SummaryWriter

    earlier = len(list((self._directory / phase).glob('*')))
    return SummaryWriter(
      str(self._here / phase),
      purge_step=self._last_steps.get(phase, -1) + 1 if earlier else None,
      filename_suffix=f'.{earlier}',
    )

  def flush(self) -> None:
    if storage.is_bucket(self._directory):
      for writer in self._writers.values():
        writer.flush()
      storage.upload(self._here, self._directory)

  def close(self) -> None:
    for writer in self._writers.values():
      writer.close()
    if storage.is_bucket(self._directory):
      storage.upload(self._here, self._directory)


class _WeightsAndBiases:
  """Scalars by phase; the library is an extra."""

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
    """It is sent by the library, when it likes."""

  def close(self) -> None:
    self._run.finish()


def _last_steps(file: epath.Path) -> dict[str, int]:
  """The last step of each phase in a metrics file."""
  parsed = map(json.loads, (read_journal(file) or '').splitlines())
  return {line['phase']: line['step'] for line in parsed}


def _plain(value: Any) -> Any:
  """Numbers as JSON has them."""
  if isinstance(value, (str, int, bool)) or value is None:
    return value
  number = float(value)
  return number if math.isfinite(number) else None
