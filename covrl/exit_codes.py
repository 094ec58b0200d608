# SPDX-License-Identifier: Apache-2.0
"""Exit statuses of covrl's processes.

They are part of the interface, for schedulers, and do not change. A launcher
restarts a run where `means_restart` is true, and the run resumes from its
latest checkpoint.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Exit(enum.IntEnum):
  """Exit statuses.

  Attributes:
    FINISHED: success.
    FAILED: an unexpected error; its traceback was printed.
    REFUSED: invalid input, described in one sentence on standard error; or a
      run directory that is in use by another run, which includes one in a bucket
      whose lease another run has taken over.
    RESTART: a signal stopped the run; it has a checkpoint and is to be
      restarted.
    PEER_LOST: another process of the run ended or cannot be reached.
    STALLED: the watchdog saw no progress; the stacks of all threads were
      printed.
    STORAGE: a file could not be written, because the disk is full or read-only,
      or the bucket refused, or not be read, because the device fails; one
      sentence on standard error names it. The last checkpoint is whole, and the
      run resumes from it.
    DIVERGED: too many updates in a row were skipped because gradients or
      parameters were not finite; one sentence on standard error.
    INTERRUPTED: Ctrl-C ended a command that has nothing to save, such as a run
      before its first checkpoint.
    TERMINATED: SIGTERM or SIGHUP ended such a command.
  """

  FINISHED = 0
  FAILED = 1
  REFUSED = 2
  RESTART = 42
  PEER_LOST = 43
  STALLED = 44
  STORAGE = 45
  DIVERGED = 46
  INTERRUPTED = 130
  TERMINATED = 143


RESTARTED = (Exit.RESTART, Exit.PEER_LOST, Exit.STALLED)


def means_restart(code: int) -> bool:
  """Returns whether a run that ended with `code` is to be restarted.

  That includes processes killed by a signal (below 0 in Python, from 128 on in
  shells), which is taken for a fault of the machine.

  >>> means_restart(42), means_restart(137), means_restart(1)
  (True, True, False)
  """
  return code in RESTARTED or code < 0 or 128 <= code <= 255


def combined_status(codes: Sequence[int]) -> int:
  """Returns one exit status for the processes of a run.

  An error of one process outweighs the restarts that it causes in the others.

  >>> combined_status([0, 0]), combined_status([43, 1]), combined_status([43, 137])
  (0, 1, 42)
  """
  errors = [code for code in codes if code and not means_restart(code)]
  if errors:
    return errors[0]
  return int(Exit.RESTART) if any(codes) else 0
