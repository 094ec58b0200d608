# SPDX-License-Identifier: Apache-2.0
"""A process that watches over one of a run's processes.

JAX ends a process that has lost another with a page of C++ and SIGABRT, which
Python cannot prevent. So the run is a child, and its end is put into one line
and an exit status here.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence

from covrl.exit_codes import Exit

_VARIABLE = 'COVRL_SUPERVISED'
_LOST = re.compile(
  r'coordination_service|JAX distributed service|stopped sending heartbeats'
)
_SENTENCE = 'covrl: another process of the run is lost'
_PR_SET_PDEATHSIG = 1


def is_supervised() -> bool:
  """Whether this is the child already."""
  return _VARIABLE in os.environ


def die_with_parent() -> None:
  """A child does not outlive its supervisor (on Linux)."""
  if sys.platform == 'linux':
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def supervise(command: Sequence[str]) -> int:
  """Runs a command as a child; its exit status.

  Signals are handed on; what it writes to standard error is passed on, but for
  what JAX says about its end (all of it with COVRL_TRACEBACK set).
  """
  child = subprocess.Popen(
    command,
    env={**os.environ, _VARIABLE: str(os.getpid())},
    stderr=subprocess.PIPE,
    text=True,
    errors='replace',
  )
  kinds = (signal.SIGTERM, signal.SIGINT)
  before = {
    kind: signal.signal(kind, lambda number, _: child.send_signal(number))
    for kind in kinds
  }
  try:
    return _watch(child)
  finally:
    for kind, handler in before.items():
      signal.signal(kind, handler)


def _watch(child: subprocess.Popen[str]) -> int:
  lost, told = False, False
  everything = bool(os.environ.get('COVRL_TRACEBACK'))
  assert child.stderr is not None
  with child.stderr:
    for line in child.stderr:
      lost = lost or bool(_LOST.search(line))
      told = told or line.startswith(_SENTENCE)
      if not lost or everything or line.startswith('covrl:'):
        sys.stderr.write(line)
        sys.stderr.flush()
  code = child.wait()
  if lost and code in (Exit.FAILED, -signal.SIGABRT):
    # JAX may end the child when it has just said so itself.
    if not told:
      print(lost_line('it stopped answering'), file=sys.stderr, flush=True)
    return Exit.PEER_LOST
  return 128 - code if code < 0 else code


def lost_line(reason: str) -> str:
  """The one line about a lost process."""
  return (
    f'{_SENTENCE} ({reason}); start the run again and it goes on from its latest '
    'checkpoint'
  )
