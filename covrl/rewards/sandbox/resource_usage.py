# SPDX-License-Identifier: Apache-2.0
"""What all processes of a sandbox take together, seen from outside."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator

_PAGE = os.sysconf('SC_PAGE_SIZE')
# An empty file takes no block of a tmpfs, but an inode of the kernel's memory.
_INODE = 1024


@dataclasses.dataclass(frozen=True)
class Usage:
  """What a sandbox takes at a moment.

  Attributes:
    memory: bytes of its processes and of the files they have written.
    tasks: its processes and their threads.
  """

  memory: int
  tasks: int


def measure(pid: int, writable: Iterable[str], limit: int) -> Usage:
  """The usage of a process and all its descendants.

  Pages that processes share are counted once, which is slow to find out: so
  only where they would be over the limit if counted for each.

  Args:
    pid: the sandbox's process 1.
    writable: directories, as the sandbox sees them, that are in memory.
    limit: bytes of memory that are of interest.
  """
  processes, tasks = [], 0
  for process, threads in _tree(pid):
    processes.append(process)
    tasks += threads
  files = sum(_written(pid, path) for path in writable)
  memory = sum(_resident(process) for process in processes)
  if memory + files > limit:
    memory = sum(_proportional(process) for process in processes)
  return Usage(memory + files, tasks)


def descendants(pid: int) -> list[int]:
  """Every process below one."""
  return [process for process, _ in _tree(pid) if process != pid]


def _tree(pid: int) -> Iterator[tuple[int, int]]:
  """Every process from one down, with its number of threads."""
  waiting = [pid]
  while waiting:
    process = waiting.pop()
    threads = 0
    try:
      for thread in os.listdir(f'/proc/{process}/task'):
        threads += 1
        children = _text(f'/proc/{process}/task/{thread}/children')
        waiting += [int(child) for child in children.split()]
    except FileNotFoundError:
      pass
    yield process, threads


def _resident(process: int) -> int:
  fields = _text(f'/proc/{process}/statm').split()
  return int(fields[1]) * _PAGE if fields else 0


def _proportional(process: int) -> int:
  for line in _text(f'/proc/{process}/smaps_rollup').splitlines():
    if line.startswith('Pss:'):
      return int(line.split()[1]) * 1024
  return 0


def _written(pid: int, path: str) -> int:
  try:
    found = os.statvfs(f'/proc/{pid}/root{path}')
  except FileNotFoundError:
    return 0
  blocks = (found.f_blocks - found.f_bfree) * found.f_frsize
  return blocks + (found.f_files - found.f_ffree) * _INODE


def _text(path: str) -> str:
  """A file of a process; empty where the process has ended."""
  try:
    return pathlib.Path(path).read_text(encoding='ascii')
  except (FileNotFoundError, ProcessLookupError):
    return ''
