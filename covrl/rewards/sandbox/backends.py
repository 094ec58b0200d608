# SPDX-License-Identifier: Apache-2.0
"""How well this machine can hold a program, found out by holding one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from covrl.rewards.outcome import Status
from covrl.rewards.sandbox.bubblewrap import Bubblewrap, modes
from covrl.rewards.sandbox.fallbacks import Landlock, Unsandboxed
from covrl.rewards.sandbox.interpreter import find_interpreter
from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.sandbox import Sandbox, SandboxError
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import PrintTest

_PROGRAM = b'print(sum(map(int, input().split())))'
_TEST = PrintTest(b'1 2', b'3')
_SECONDS = 20.0


class JudgeError(RuntimeError):
  """There is no judge to be had; a sentence on what was tried."""


def find_launcher(
  level: str | None, limits: Limits, reasons: list[str]
) -> Launcher:
  """The best way to start sandboxes that works here.

  Args:
    level: the only one that will do; None is `bubblewrap`, else `landlock`.
    limits: what programs may take.
    reasons: to which to add why a better one does not.

  Raises:
    JudgeError: none works, and why.
  """
  if sys.platform != 'linux':
    raise JudgeError(f'Linux is required for sandboxes, got {sys.platform}')
  try:
    for launcher in _candidates(level, limits):
      reason = _try(launcher, limits)
      if reason is None:
        return launcher
      reasons.append(f'{launcher.level}: {reason}')
  except OSError as error:
    reasons.append(str(error))
  wanted = 'a sandbox for programs' if level is None else f'level {level}'
  raise JudgeError(f'{wanted} is required, got none: {"; ".join(reasons)}')


def _candidates(level: str | None, limits: Limits) -> Iterator[Launcher]:
  interpreter = find_interpreter()
  if level in (None, 'bubblewrap'):
    for mode in modes():
      yield Bubblewrap(
        interpreter=interpreter, mode=mode, scratch=limits.scratch
      )
  if level in (None, 'landlock'):
    yield Landlock(interpreter=interpreter)
  if level == 'unsandboxed':
    yield Unsandboxed(interpreter=interpreter)


def _try(launcher: Launcher, limits: Limits) -> str | None:
  """Why it does not work, or nothing: a program is judged, and weighed."""
  try:
    with Sandbox(launcher, limits) as sandbox:
      usage = sandbox.usage(exact=True)
    if not usage.memory or not usage.tasks:
      return 'what its processes take cannot be seen'
    with Session(launcher, limits, _PROGRAM, _SECONDS) as session:
      outcome = session.check(_TEST)
  except (OSError, SandboxError) as error:
    return str(error)
  return None if outcome.status is Status.SCORED else outcome.detail
