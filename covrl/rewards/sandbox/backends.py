# SPDX-License-Identifier: Apache-2.0
"""Choice of the sandbox backend, by judging a trial program."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from covrl.rewards.outcome import Status
from covrl.rewards.sandbox.bubblewrap import Bubblewrap, candidate_modes
from covrl.rewards.sandbox.interpreter import find_interpreter
from covrl.rewards.sandbox.landlock import Landlock
from covrl.rewards.sandbox.launcher import Launcher, Unsandboxed
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.packages import Package
from covrl.rewards.sandbox.sandbox import Sandbox, SandboxError
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import PrintTest

# Program, test and time limit of the trial run of a backend.
_TRIAL_PROGRAM = b'print(sum(map(int, input().split())))'
_TRIAL_TEST = PrintTest(b'1 2', b'3')
_TRIAL_SECONDS = 20.0


class JudgeError(RuntimeError):
  """No sandbox backend works; the message lists those tried."""


def find_launcher(
  backend: str | None,
  limits: Limits,
  reasons: list[str],
  packages: tuple[Package, ...] = (),
) -> Launcher:
  """Returns the best backend that works on this machine.

  Args:
    backend: the required backend; `None` tries `bubblewrap`, then `landlock`.
    limits: resource limits of programs.
    reasons: list to which the error of every failed backend is appended.
    packages: installed packages that programs may import.

  Raises:
    JudgeError: if no backend works; the message lists the errors.
  """
  if sys.platform != 'linux':
    raise JudgeError(
      f'the platform must be Linux for sandboxes, got {sys.platform}'
    )
  try:
    for launcher in _candidates(backend, limits, packages):
      reason = _failure(launcher, limits)
      if reason is None:
        return launcher
      reasons.append(f'{launcher.backend}: {reason}')
  except OSError as error:
    reasons.append(str(error))
  required = 'a sandbox backend' if backend is None else f'backend {backend!r}'
  raise JudgeError(
    f'{required} must work here, got errors: {"; ".join(reasons)}'
  )


def _candidates(
  backend: str | None, limits: Limits, packages: tuple[Package, ...]
) -> Iterator[Launcher]:
  """Yields the backends to try, in the order of preference."""
  interpreter = find_interpreter()
  if backend in (None, 'bubblewrap'):
    for mode in candidate_modes():
      yield Bubblewrap(
        interpreter=interpreter,
        packages=packages,
        mode=mode,
        scratch_size=limits.scratch_size,
      )
  if backend in (None, 'landlock'):
    yield Landlock(interpreter=interpreter, packages=packages)
  if backend == 'unsandboxed':
    yield Unsandboxed(interpreter=interpreter, packages=packages)


def _failure(launcher: Launcher, limits: Limits) -> str | None:
  """Returns the error of a backend on a trial program; `None` if it works."""
  try:
    with Sandbox(launcher, limits) as sandbox:
      usage = sandbox.usage(exact=True)
    if not usage.memory or not usage.tasks:
      return 'the memory of its processes cannot be measured'
    imports = ''.join(f'import {p.name}\n' for p in launcher.packages)
    program = imports.encode() + _TRIAL_PROGRAM
    with Session(launcher, limits, program, _TRIAL_SECONDS) as session:
      outcome = session.check(_TRIAL_TEST)
  except (OSError, SandboxError) as error:
    return str(error)
  return None if outcome.status is Status.SCORED else outcome.detail
