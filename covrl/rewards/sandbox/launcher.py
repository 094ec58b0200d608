# SPDX-License-Identifier: Apache-2.0
"""What a way to start sandboxes has to say for itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Launcher(Protocol):
  """A way to start sandboxes on this machine."""

  @property
  def level(self) -> str:
    """Its name, for the record."""
    ...

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories, as a program sees them, in which it may write."""
    ...

  @property
  def environment(self) -> Mapping[str, str]:
    """What to start it with, instead of the trainer's environment."""
    ...

  @property
  def has_namespaces(self) -> bool:
    """Whether processes cannot leave, and so may be many."""
    ...

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """What starts a sandbox's interpreter; its arguments are to follow.

    Args:
      filter_fd: where the system call filter can be read.
      info_fd: where to write which process is the sandbox's first.
    """
    ...

  def settings(self) -> Mapping[str, Any]:
    """What the first process is to do to itself."""
    ...
