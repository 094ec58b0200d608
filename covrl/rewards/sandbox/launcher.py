# SPDX-License-Identifier: Apache-2.0
"""Interface of the sandbox backends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Launcher(Protocol):
  """A sandbox backend of this machine."""

  @property
  def level(self) -> str:
    """Name of the backend."""
    ...

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories inside the sandbox that programs can write to."""
    ...

  @property
  def environment(self) -> Mapping[str, str]:
    """Environment variables of the sandbox, instead of the trainer's."""
    ...

  @property
  def has_namespaces(self) -> bool:
    """Whether a pid namespace contains all processes of the sandbox."""
    ...

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """Returns the command that starts a sandbox's interpreter.

    Args:
      filter_fd: descriptor to read the seccomp filter from.
      info_fd: descriptor to write the id of the sandbox's first process to.
    """
    ...

  def settings(self) -> Mapping[str, Any]:
    """Returns settings that the first process applies to itself."""
    ...
