# SPDX-License-Identifier: Apache-2.0
"""Execution of external commands, with a dry-run mode."""

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

# Seconds after which `gcloud` or `kubectl` is killed.
_TIMEOUT = 300.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shell:
  """Runs external commands, or only prints them.

  Attributes:
    dry_run: whether commands are printed instead of executed.
    output: stream that messages are printed to.
    sleep: function that waits a number of seconds.
  """

  dry_run: bool = False
  output: IO[str] = dataclasses.field(default_factory=lambda: sys.stdout)
  sleep: Callable[[float], None] = time.sleep

  def print(self, text: str) -> None:
    """Prints a message to the user."""
    print(text, file=self.output, flush=True)

  def show(self, title: str, content: str) -> None:
    """Prints the content of a generated file, in a dry run."""
    if self.dry_run:
      self.print(f'# {title}\n{content.rstrip()}\n')

  def run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a short command and returns its result."""
    if self.dry_run:
      self.print(shlex.join(command))
      return subprocess.CompletedProcess(command, 0, '', '')
    try:
      return subprocess.run(
        command,
        check=False,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=_TIMEOUT,
      )
    except FileNotFoundError:
      raise LaunchError(f'{command[0]} must be installed, got none') from None
    except subprocess.TimeoutExpired:
      return subprocess.CompletedProcess(
        command, 124, '', f'no answer within {_TIMEOUT:g} s'
      )

  def check_output(self, command: Sequence[str]) -> str:
    """Runs a command and returns its output.

    Raises:
      LaunchError: if the command failed.
    """
    completed = self.run(command)
    if completed.returncode:
      raise command_error(command, completed)
    return completed.stdout

  def follow(self, commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    """Runs commands in parallel and relays their output as it comes.

    There is no time limit: the programs that they start have their own.

    Returns:
      Exit status and standard output of each.
    """
    if self.dry_run:
      for command in commands:
        self.print(shlex.join(command))
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
    outputs: list[list[str]] = [[] for _ in processes]
    threads = [
      threading.Thread(target=self._relay, args=(process, lines), daemon=True)
      for process, lines in zip(processes, outputs, strict=True)
    ]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    return [
      (process.wait(), ''.join(lines))
      for process, lines in zip(processes, outputs, strict=True)
    ]

  def _relay(self, process: subprocess.Popen[str], lines: list[str]) -> None:
    """Prints a process's output line by line and collects it."""
    with contextlib.closing(process.stdout or io.StringIO()) as output:
      for line in output:
        lines.append(line)
        self.print(line.rstrip('\n'))


def command_error(
  command: Sequence[str], completed: subprocess.CompletedProcess[str]
) -> LaunchError:
  """Returns the error for a command that failed, as one sentence."""
  message = (completed.stderr or completed.stdout).strip() or 'no message'
  return LaunchError(
    f'{" ".join(command[:4])} ended with {completed.returncode}: '
    f'{" ".join(message.split())}',
    status=1,
  )
