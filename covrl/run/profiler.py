# SPDX-License-Identifier: Apache-2.0
"""Traces of some steps, for a profiler's viewer."""

from __future__ import annotations

import pathlib
import re

import jax
from etils import epath

from covrl import storage


class Profiler:
  """Traces steps `first` up to `last` of a run, both included.

  Args:
    steps: `FIRST:LAST`, optimiser updates counted from 0; empty for none.
    directory: where the trace goes; into a bucket when it is whole.

  Raises:
    ValueError: `steps` is no such range.
  """

  def __init__(self, steps: str, directory: epath.PathLike) -> None:
    match = re.fullmatch(r'(\d+):(\d+)', steps)
    if steps and (match is None or int(match[1]) > int(match[2])):
      raise ValueError(
        f'--profile_steps must be FIRST:LAST, such as 10:12, got {steps!r}'
      )
    self._first, self._last = (
      (int(match[1]), int(match[2])) if match else (-1, -1)
    )
    self._directory = storage.path_of(directory)
    self._here = pathlib.Path(self._directory)
    self._running = False

  def before(self, step: int) -> None:
    """Begins where it is time to, rollout included."""
    if not self._running and self._first <= step <= self._last:
      if storage.is_bucket(self._directory):
        self._here = storage.scratch()
      jax.profiler.start_trace(str(self._here))
      self._running = True

  def after(self, step: int) -> None:
    """Ends where it is time to."""
    if self._running and step >= self._last:
      self.close()

  def close(self) -> None:
    """Writes what has been traced."""
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      if storage.is_bucket(self._directory):
        storage.upload(self._here, self._directory)
