# SPDX-License-Identifier: Apache-2.0
"""Memory and process count of a sandbox, measured from outside."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator

_PAGE_BYTES = os.sysconf('SC_PAGE_SIZE')
# An empty file on a tmpfs takes no block but kernel memory for its inode.
_INODE_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class Usage:
  """Current resource usage of a sandbox.

  Attributes:
    memory: bytes of its processes and of the files that they have written.
    tasks: number of processes and threads.
  """

  memory: int
  tasks: int


def measure(pid: int, writable: Iterable[str], limit: int) -> Usage:
  """Measures a process and all its descendants.

  Shared pages count once. Finding them is slow, so it is done only if the sum of
  resident sizes exceeds the limit.

  Args:
    pid: the sandbox's process 1.
    writable: in-memory directories, as paths inside the sandbox.
    limit: bytes above which an exact measurement is needed.
  """
  processes, tasks = [], 0
  for process, threads in _process_tree(pid):
    processes.append(process)
    tasks += threads
  file_bytes = sum(_written_bytes(pid, path) for path in writable)
  memory = sum(_resident_bytes(process) for process in processes)
  if memory + file_bytes > limit:
    memory = sum(_proportional_bytes(process) for process in processes)
  return Usage(memory + file_bytes, tasks)


def list_processes(pid: int) -> list[int]:
  """Returns a process and all its descendants."""
  return [process for process, _ in _process_tree(pid)]


def descendants(pid: int) -> list[int]:
  """Returns all descendants of a process."""
  return list_processes(pid)[1:]


def count_oom_kills() -> int:
  """Returns how many processes the kernel has killed for lack of memory.

  Of the machine since its start, those of full containers included.
  """
  for line in read_proc('/proc/vmstat').splitlines():
    if line.startswith('oom_kill '):
      return int(line.split()[1])
  return 0


def _process_tree(pid: int) -> Iterator[tuple[int, int]]:
  """Yields a process and its descendants with their numbers of threads."""
  waiting = [pid]
  while waiting:
    process = waiting.pop()
    threads = 0
    try:
      for thread in os.listdir(f'/proc/{process}/task'):
        threads += 1
        children = read_proc(f'/proc/{process}/task/{thread}/children')
        waiting += [int(child) for child in children.split()]
    except FileNotFoundError:
      pass
    yield process, threads


def _resident_bytes(process: int) -> int:
  """Resident set size of a process, in bytes."""
  fields = read_proc(f'/proc/{process}/statm').split()
  return int(fields[1]) * _PAGE_BYTES if fields else 0


def _proportional_bytes(process: int) -> int:
  """Proportional set size, in bytes: pages divided by the processes that share."""
  for line in read_proc(f'/proc/{process}/smaps_rollup').splitlines():
    if line.startswith('Pss:'):
      return int(line.split()[1]) * 1024
  return 0


def _written_bytes(pid: int, path: str) -> int:
  """Bytes of the files in an in-memory directory, their inodes included."""
  try:
    usage = os.statvfs(f'/proc/{pid}/root{path}')
  except FileNotFoundError:
    return 0
  block_bytes = (usage.f_blocks - usage.f_bfree) * usage.f_frsize
  return block_bytes + (usage.f_files - usage.f_ffree) * _INODE_BYTES


def read_proc(path: str) -> str:
  """Reads a file in /proc; empty if the process has ended.

  A program can give its process a name of any bytes, which some files have.
  """
  try:
    return pathlib.Path(path).read_text(encoding='ascii', errors='replace')
  except (FileNotFoundError, ProcessLookupError):
    return ''
