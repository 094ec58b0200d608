# SPDX-License-Identifier: Apache-2.0
"""Script that lists a process's descendants, for scripts that kill them.

Executed before `_job_runner.py`, and by `_worker_supervisor.py`; never imported.
Linux only: elsewhere there is no /proc, and the list is empty.
"""

from __future__ import annotations

import os


def descendants() -> list[int]:
  """Returns all descendants of this process, the nearest first."""
  result, waiting = [], [os.getpid()]
  while waiting:
    pid = waiting.pop(0)
    try:
      for task in os.listdir(f'/proc/{pid}/task'):
        with open(
          f'/proc/{pid}/task/{task}/children', encoding='ascii'
        ) as file:
          children = [int(number) for number in file.read().split()]
        result += children
        waiting += children
    except OSError:
      continue
  return result
