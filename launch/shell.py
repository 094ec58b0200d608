# SPDX-License-Identifier: Apache-2.0
"""Commands of other programs: run, or only shown."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO

from launch.job import LaunchError

# `gcloud` and `kubectl` answer within seconds, or not at all.
_PATIENCE = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shell:
  """Runs commands.

  Attributes:
    dry_run: whether to show only.
    output: where to show.
    sleep: waits so many seconds.
  """

  dry_run: bool = False
  output: IO[str] = dataclasses.field(default_factory=lambda: sys.stdout)
  sleep: Callable[[float], None] = time.sleep

  def say(self, text: str) -> None:
    """Tells the user."""
    print(text, file=self.output, flush=True)

  def show(self, title: str, content: str) -> None:
    """Shows a file as it is used, in a dry run."""
    if self.dry_run:
      self.say(f'# {title}\n{content.rstrip()}\n')

  def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command that answers soon; its answer."""
    if self.dry_run:
      self.say(shlex.join(command))
      return subprocess.CompletedProcess(command, 0, '', '')
    try:
      return subprocess.run(
        command,
        check=False,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=_PATIENCE,
      )
    except FileNotFoundError:
      raise LaunchError(
        f'{command[0]} is required, and not installed'
      ) from None
    except subprocess.TimeoutExpired:
      return subprocess.CompletedProcess(
        command, 124, '', f'no answer within {_PATIENCE:g} s'
      )

  def demand(self, command: Sequence[str]) -> str:
    """Runs a command that must succeed; what it printed.

    Raises:
      LaunchError: it did not.
    """
    done = self.run(command)
    if done.returncode:
      raise failed(command, done)
    return done.stdout

  def follow(self, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Runs commands side by side, showing what they print as they do.

    They take as long as they take: what they start watches over itself.

    Returns:
      Exit status and standard output of each.
    """
    if self.dry_run:
      for command in commands:
        self.say(shlex.join(command))
      return [(0, '')] * len(commands)
    processes = [
      subprocess.Popen(
        command,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        errors='replace',
      )
      for command in commands
    ]
    heard: list[list[str]] = [[] for _ in processes]
    threads = [
      threading.Thread(target=self._relay, args=(process, lines), daemon=True)
      for process, lines in zip(processes, heard, strict=True)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return [
      (process.wait(), ''.join(lines))
      for process, lines in zip(processes, heard, strict=True)
    ]

  def _relay(self, process: subprocess.Popen[str], lines: list[str]) -> None:
    with contextlib.closing(process.stdout or io.StringIO()) as output:
      for line in output:
        lines.append(line)
        self.say(line.rstrip('\n'))


def failed(
  command: Sequence[str], done: subprocess.CompletedProcess[str]
) -> LaunchError:
  """The one sentence about a command that failed."""
  said = (done.stderr or done.stdout).strip() or 'no message'
  return LaunchError(
    f'{" ".join(command[:4])} ended with {done.returncode}: '
    f'{" ".join(said.split())}',
    status=1,
  )
