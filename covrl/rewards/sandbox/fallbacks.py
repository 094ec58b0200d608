# SPDX-License-Identifier: Apache-2.0
"""Where there are no namespaces: Landlock and a stricter filter, or nothing.

Under Landlock a program reads the interpreter's files and writes none, and it
has no child processes, so that killing it ends all of it. It is weaker than
namespaces: it shares the machine's clock, process numbers and file names (not
contents) with everybody, and a program that needs to write a file or start a
process fails. It needs Linux 5.13, and containers usually allow it.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import stat
from typing import Any

from covrl.rewards.sandbox.bubblewrap import free_uid
from covrl.rewards.sandbox.interpreter import Interpreter
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.seccomp import make_filter


@dataclasses.dataclass(frozen=True, kw_only=True)
class Landlock:
  """Sandboxes by Landlock and a filter that allows no processes.

  Attributes:
    give_up_root: whether root's programs are somebody else's, which takes an
      interpreter that everybody may read.
  """

  interpreter: Interpreter
  give_up_root: bool = True

  @property
  def level(self) -> str:
    """Its name, for the record."""
    return 'landlock'

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories in which a program may write."""
    return ()

  @property
  def environment(self) -> dict[str, str]:
    """What the interpreter needs to order sets alike in every run."""
    return {'PYTHONHASHSEED': '0'}

  @property
  def has_namespaces(self) -> bool:
    """Whether processes cannot leave, and so may be many."""
    return False

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """What starts an interpreter."""
    del filter_fd, info_fd
    return [self.interpreter.executable]

  def settings(self) -> dict[str, Any]:
    """How the runner confines itself, and its children further."""
    give_up = self.give_up_root and os.geteuid() == 0
    if give_up:
      _check_readable(self.interpreter.executable)
    return {
      'uid': free_uid() if give_up else None,
      'script': compile_script('_landlock.py'),
      'readable': self.interpreter.files,
      'filter': make_filter(processes=False),
    }


def _check_readable(path: str) -> None:
  """Refuses an interpreter that only root can get at."""
  for parent in pathlib.PurePath(path).parents:
    if not os.stat(parent).st_mode & stat.S_IXOTH:
      raise OSError(
        f'an interpreter that everybody may read is required, got {path},'
        f' for {parent} is closed to all but its owner'
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsandboxed:
  """No sandbox at all: processes with a clock and limits, for who asks for it."""

  interpreter: Interpreter

  @property
  def level(self) -> str:
    """Its name, for the record."""
    return 'unsandboxed'

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories that are made for a program, none."""
    return ()

  @property
  def environment(self) -> dict[str, str]:
    """What the interpreter needs to order sets alike in every run."""
    return {'PYTHONHASHSEED': '0'}

  @property
  def has_namespaces(self) -> bool:
    """Whether processes cannot leave: they can."""
    return False

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """What starts an interpreter."""
    del filter_fd, info_fd
    return [self.interpreter.executable]

  def settings(self) -> dict[str, Any]:
    """Nothing beyond limits."""
    return {'uid': None}
