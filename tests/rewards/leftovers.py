# SPDX-License-Identifier: Apache-2.0
"""Counts of processes, descriptors, mounts and other leftovers of judging."""

from __future__ import annotations

import os
import pathlib
import time

# Users of root's sandboxes have ids from here on, above all assigned ones.
_FIRST_UID = 1_900_000_000


def leftovers() -> dict[str, int]:
  """Counts everything that judging must not leave behind.

  Children, zombies among them; processes of sandboxes' users; descriptors;
  threads; segments and files of shared memory.
  """
  children = sandboxed = 0
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rsplit(')', 1)[1].split()
      owner = stat.stat().st_uid
    except OSError:
      continue
    children += int(fields[1]) == os.getpid()
    sandboxed += owner >= _FIRST_UID
  return {
    'children': children,
    'sandboxed': sandboxed,
    'descriptors': len(os.listdir('/proc/self/fd')),
    'threads': len(os.listdir('/proc/self/task')),
    'segments': len(pathlib.Path('/proc/sysvipc/shm').read_text().splitlines()),
    'shared files': len(os.listdir('/dev/shm')),
    'mounts': len(pathlib.Path('/proc/mounts').read_text().splitlines()),
  }


def leftovers_once_ended(expected: dict[str, int]) -> dict[str, int]:
  """Counts again once they are as expected, or after five seconds.

  A thread that was joined is a task of its process until the kernel has ended
  it, which is a moment later.
  """
  deadline = time.monotonic() + 5.0
  while (counts := leftovers()) != expected and time.monotonic() < deadline:
    time.sleep(0.02)
  return counts


def descendants(pid: int) -> list[int]:
  """Returns the child processes of a process, and theirs."""
  found, pending = [], [pid]
  while pending:
    current = pending.pop()
    for task in pathlib.Path(f'/proc/{current}/task').iterdir():
      children = (task / 'children').read_text().split()
      pending += map(int, children)
      found += map(int, children)
  return found
