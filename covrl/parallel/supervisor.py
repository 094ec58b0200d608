# SPDX-License-Identifier: Apache-2.0
"""Supervision of one training process by its parent process.

JAX's coordination client ends a process that has lost a peer with pages of C++
output and SIGABRT, which Python cannot intercept. Therefore the run is a child
process; the parent reports its end in one line and one exit status.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from covrl.exit_codes import Exit

# Environment variable that is set in the child.
_VARIABLE = 'COVRL_SUPERVISED'
# Lines of JAX's messages about a lost peer.
_PEER_LOSS = re.compile(
  r'coordination_service|JAX distributed service|stopped sending heartbeats'
)
# Beginning of covrl's own message about it.
_PEER_LOST_SENTENCE = 'covrl: another process of the run is lost'
# Seconds after the last of these lines in which a lost peer ends a process.
_ABORT_SECONDS = 60.0
_PR_SET_PDEATHSIG = 1  # an option of `prctl`


def is_supervised() -> bool:
  """Returns whether this process is the supervised child."""
  return _VARIABLE in os.environ


def die_with_parent() -> None:
  """Lets the kernel kill this process when its parent ends (Linux)."""
  if sys.platform == 'linux':
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def supervise(command: Sequence[str]) -> int:
  """Runs a command as a child process and returns its exit status.

  SIGTERM, SIGINT and, unless it is ignored, SIGHUP are forwarded. So is standard
  error, except for JAX's messages about a lost peer, which are forwarded only if
  COVRL_TRACEBACK is set.
  """
  child = subprocess.Popen(
    command,
    env={**os.environ, _VARIABLE: str(os.getpid())},
    stderr=subprocess.PIPE,
    text=True,
    errors='replace',
  )
  signals = [signal.SIGTERM, signal.SIGINT]
  if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    signals.append(signal.SIGHUP)
  previous_handlers = {
    number: signal.signal(
      number, lambda received, _: child.send_signal(received)
    )
    for number in signals
  }
  try:
    return _watch(child)
  finally:
    for number, handler in previous_handlers.items():
      signal.signal(number, handler)


def _watch(child: subprocess.Popen[str]) -> int:
  """Forwards a child's standard error; returns the exit status to report.

  A process that goes on for some time after a message about a peer has not lost it.
  """
  lost_at, is_reported = -math.inf, False

  def peer_is_lost() -> bool:
    return time.monotonic() - lost_at < _ABORT_SECONDS

  forward_all = bool(os.environ.get('COVRL_TRACEBACK'))
  assert child.stderr is not None
  with child.stderr:
    for line in child.stderr:
      if _PEER_LOSS.search(line):
        lost_at = time.monotonic()
      is_reported = is_reported or line.startswith(_PEER_LOST_SENTENCE)
      if not peer_is_lost() or forward_all or line.startswith('covrl:'):
        sys.stderr.write(line)
        sys.stderr.flush()
  code = child.wait()
  if peer_is_lost() and code in (Exit.FAILED, -signal.SIGABRT):
    # The child may have reported the loss itself before JAX aborted it.
    if not is_reported:
      print(
        peer_lost_message('it stopped responding'), file=sys.stderr, flush=True
      )
    return Exit.PEER_LOST
  return 128 - code if code < 0 else code


def peer_lost_message(reason: str) -> str:
  """Returns the one-line message about a lost peer."""
  return (
    f'{_PEER_LOST_SENTENCE} ({reason}); start the run again and it goes on from its latest '
    'checkpoint'
  )
