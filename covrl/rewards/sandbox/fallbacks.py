# SPDX-License-Identifier: Apache-2.0
"""Backends without namespaces: Landlock with a stricter seccomp filter, or none.

Landlock is the only containment where namespaces are forbidden, as by Docker's
default seccomp profile and in restricted Kubernetes pods. Under it a program can
read the interpreter's files, write no files and start no processes, so that
killing it ends everything. It is weaker than namespaces: the program sees the
machine's clock, process ids and file names (not contents), and a program that
needs to write a file or start a process fails. It needs Linux 5.13.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import stat
from typing import Any

from covrl.rewards.sandbox.bubblewrap import unused_uid
from covrl.rewards.sandbox.interpreter import Interpreter
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.seccomp import make_filter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landlock:
  """Sandboxes by Landlock and a seccomp filter that forbids processes.

  Attributes:
    interpreter: files of the Python interpreter.
    give_up_root: whether programs started by root run as an unused user, which
      needs an interpreter that every user can read.
  """

  interpreter: Interpreter
  give_up_root: bool = True

  @property
  def level(self) -> str:
    """Name of the backend."""
    return 'landlock'

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories that programs can write to: none."""
    return ()

  @property
  def environment(self) -> dict[str, str]:
    """Environment that makes the order of sets reproducible."""
    return {'PYTHONHASHSEED': '0'}

  @property
  def has_namespaces(self) -> bool:
    """Whether a pid namespace contains all processes: no."""
    return False

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """Returns the command that starts an interpreter."""
    del filter_fd, info_fd
    return [self.interpreter.executable]

  def settings(self) -> dict[str, Any]:
    """Returns the confinement of the runner and of its children."""
    give_up = self.give_up_root and os.geteuid() == 0
    if give_up:
      _check_readable(self.interpreter.executable)
    return {
      'uid': unused_uid() if give_up else None,
      'script': compile_script('_landlock.py'),
      'readable': self.interpreter.files,
      'filter': make_filter(processes=False),
    }


def _check_readable(path: str) -> None:
  """Refuses an interpreter that only root can read."""
  for parent in pathlib.PurePath(path).parents:
    if not os.stat(parent).st_mode & stat.S_IXOTH:
      raise OSError(
        f'an interpreter that every user can read is required, got {path},'
        f' since only its owner can enter {parent}'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsandboxed:
  """No containment: processes with time and resource limits only."""

  interpreter: Interpreter

  @property
  def level(self) -> str:
    """Name of the backend."""
    return 'unsandboxed'

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories made for programs: none."""
    return ()

  @property
  def environment(self) -> dict[str, str]:
    """Environment that makes the order of sets reproducible."""
    return {'PYTHONHASHSEED': '0'}

  @property
  def has_namespaces(self) -> bool:
    """Whether a pid namespace contains all processes: no."""
    return False

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """Returns the command that starts an interpreter."""
    del filter_fd, info_fd
    return [self.interpreter.executable]

  def settings(self) -> dict[str, Any]:
    """Returns settings without any confinement."""
    return {'uid': None}
