# SPDX-License-Identifier: Apache-2.0
"""Profiler traces of some updates of a run."""

from __future__ import annotations

import pathlib
import re

import jax
from etils import epath

from covrl import storage


class Profiler:
  """Traces updates `FIRST` to `LAST` of a run, both included.

  Args:
    steps: `FIRST:LAST`, optimiser updates counted from 0; empty for none.
    directory: directory of the trace; in a bucket, the trace is uploaded when it
      is complete.

  Raises:
    ValueError: `steps` is not such a range.
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
    self._directory = storage.as_path(directory)
    self._local_directory = pathlib.Path(self._directory)
    self._steps = steps
    self._tracing = self._has_traced = False

  def warning(self) -> str:
    """A warning if updates were to be traced and none was; else empty."""
    if not self._steps or self._has_traced:
      return ''
    return (
      f'--profile_steps = {self._steps} has traced nothing: this process made none'
      ' of these updates'
    )

  def before_step(self, step: int) -> None:
    """Starts the trace if an update, or the rollout before it, is in range."""
    if not self._tracing and self._first <= step <= self._last:
      if storage.is_bucket(self._directory):
        self._local_directory = storage.temporary_directory()
      jax.profiler.start_trace(str(self._local_directory))
      self._tracing = self._has_traced = True

  def after_step(self, step: int) -> None:
    """Ends the trace after the last update of the range."""
    if self._tracing and step >= self._last:
      self.close()

  def close(self) -> None:
    """Ends a running trace and writes it."""
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
      if storage.is_bucket(self._directory):
        storage.upload(self._local_directory, self._directory)
