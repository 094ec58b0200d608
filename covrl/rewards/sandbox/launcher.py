# SPDX-License-Identifier: Apache-2.0
"""Base class of the sandbox backends, and the backend without containment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from covrl.rewards.sandbox.interpreter import Interpreter
from covrl.rewards.sandbox.packages import Package


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launcher:
  """A sandbox backend of this machine; the defaults are without containment.

  Attributes:
    backend: name of the backend.
    writable: directories inside the sandbox that programs can write to.
    environment: environment variables of the sandbox, instead of the trainer's.
    has_namespaces: whether a pid namespace contains all processes of the sandbox.
    confines_signals: whether programs cannot end the sandbox's first process.
    interpreter: files of the Python interpreter.
    packages: installed packages that programs may import.
  """

  backend: ClassVar[str]
  writable: ClassVar[tuple[str, ...]] = ()
  # Makes the order of sets reproducible.
  environment: ClassVar[Mapping[str, str]] = {'PYTHONHASHSEED': '0'}
  has_namespaces: ClassVar[bool] = False
  confines_signals: ClassVar[bool] = False

  interpreter: Interpreter
  packages: tuple[Package, ...] = ()

  def package_path(self, path: str) -> str:
    """Returns the path inside the sandbox of a package's file."""
    return path

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """Returns the command that starts a sandbox's interpreter.

    Args:
      filter_fd: descriptor to read the seccomp filter from.
      info_fd: descriptor to write the id of the sandbox's first process to.
    """
    del filter_fd, info_fd
    return [self.interpreter.executable]

  def settings(self) -> Mapping[str, Any]:
    """Returns settings that the first process applies to itself."""
    return {'uid': None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unsandboxed(Launcher):
  """No containment: processes with time and resource limits only."""

  backend: ClassVar[str] = 'unsandboxed'

  def settings(self) -> Mapping[str, Any]:
    """Returns settings: orphans of a program become children of the runner."""
    return {**super().settings(), 'adopts_orphans': True}
