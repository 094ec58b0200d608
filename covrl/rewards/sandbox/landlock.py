# SPDX-License-Identifier: Apache-2.0
"""Sandboxes by Landlock, with a stricter seccomp filter and without namespaces.

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
from collections.abc import Iterable
from typing import Any, ClassVar

from covrl.rewards.sandbox.bubblewrap import unused_uid
from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.seccomp import make_filter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landlock(Launcher):
  """Sandboxes by Landlock and a seccomp filter that forbids processes.

  Attributes:
    give_up_root: whether programs started by root run as an unused user, which
      needs an interpreter that every user can read.
  """

  backend: ClassVar[str] = 'landlock'
  confines_signals: ClassVar[bool] = True

  give_up_root: bool = True

  def settings(self) -> dict[str, Any]:
    """Returns the confinement of the runner and of its children."""
    gives_up_root = self.give_up_root and os.geteuid() == 0
    if gives_up_root:
      _check_readable(self._files())
    return {
      'uid': unused_uid() if gives_up_root else None,
      'script': compile_script('_landlock.py'),
      'readable': self._files(),
      'filter': make_filter(processes=False),
    }

  def _files(self) -> tuple[str, ...]:
    """Returns the files that the sandbox may read."""
    package_files = (
      file for package in self.packages for file in package.files
    )
    return (*self.interpreter.files, *package_files)


def _check_readable(paths: Iterable[str]) -> None:
  """Refuses files of the interpreter that only root can read."""
  for path in paths:
    for parent in pathlib.PurePath(path).parents:
      if not os.stat(parent).st_mode & stat.S_IXOTH:
        raise OSError(
          'interpreter and packages must be readable by every user,'
          f' got {path}, since only its owner can enter {parent}'
        )
