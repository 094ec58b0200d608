# SPDX-License-Identifier: Apache-2.0
"""What a process of covrl ends with; schedulers rely on these numbers.

They are part of the interface and do not change. A launcher starts a run again
where `means_restart` says so, and the run resumes from its latest checkpoint.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class Exit(enum.IntEnum):
  """Exit statuses.

  Attributes:
    FINISHED: all that was asked for is done.
    FAILED: an error nobody foresaw; its traceback was printed.
    REFUSED: bad input, said in one sentence.
    RESTART: the run was told to stop, has saved itself and shall be restarted.
    PEER_LOST: another process of the run ended or cannot be reached.
    STALLED: nothing moved for too long; the stacks of all threads were printed.
  """

  FINISHED = 0
  FAILED = 1
  REFUSED = 2
  RESTART = 42
  PEER_LOST = 43
  STALLED = 44


RESTARTED = (Exit.RESTART, Exit.PEER_LOST, Exit.STALLED)


def means_restart(code: int) -> bool:
  """Whether a run that ended so may go on from its latest checkpoint.

  Deaths by a signal, which shells count from 128 on and Python below 0, are
  the machine's doing.

  >>> means_restart(42), means_restart(137), means_restart(1)
  (True, True, False)
  """
  return code in RESTARTED or code < 0 or 128 <= code <= 255


def verdict(codes: Sequence[int]) -> int:
  """One exit status for a run of several processes.

  An error of the program's own is worth more than what its death did to the
  others.

  >>> verdict([0, 0]), verdict([43, 1]), verdict([43, 137])
  (0, 1, 42)
  """
  own = [code for code in codes if code and not means_restart(code)]
  if own:
    return own[0]
  return int(Exit.RESTART) if any(codes) else 0
