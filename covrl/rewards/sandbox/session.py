# SPDX-License-Identifier: Apache-2.0
"""One program before its tests: a sandbox, or as many as it spoils."""

from __future__ import annotations

import os
import signal
from concurrent import futures

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.sandbox.compare_outputs import (
  read_json,
  same_output,
  same_value,
)
from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import End, Limits
from covrl.rewards.sandbox.sandbox import Run, Sandbox, SandboxError
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.test_formats import (
  CallTest,
  PrintTest,
  SuiteTest,
  Test,
)

# What a program may print or return beyond twice what was expected of it.
_SPARE = 1 << 20
_PASSED = Outcome(1.0, Status.SCORED)


class Session:
  """A program that is put to one test after the other.

  Every test begins in a process that has run nothing of the program. The
  sandbox is another one as soon as anything was left in it.

  Args:
    launcher: how to start a sandbox.
    limits: what the program may take.
    program: its source.
    seconds: that each test may take.
    cpu: the one processor that it may use; any if none is given.

  Attributes:
    is_over: whether it has had to be killed, which may be slow to do again.
  """

  def __init__(
    self,
    launcher: Launcher,
    limits: Limits,
    program: bytes,
    seconds: float,
    cpu: int | None = None,
  ) -> None:
    self._launcher = launcher
    self._limits = limits
    self._program = program
    self._seconds = seconds
    self._cpu = cpu
    self.is_over = False
    self._sandbox: Sandbox | None = None

  def __enter__(self) -> Session:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Ends the sandbox."""
    if self._sandbox is not None:
      self._sandbox.close()

  def check(self, test: Test) -> Outcome:
    """What comes of the program at a test.

    Raises:
      SandboxError: there is no sandbox to be had.
    """
    sandbox = self._sandbox
    if sandbox is None or not sandbox.is_fit:
      sandbox = self._sandbox = self._open()
      run = sandbox.load(self._program, self._seconds)
      if run.end is not End.ENDED:
        return self._failure(run)
      if run.said != b'.':
        reason = in_a_line(run.said[1:])
        return Outcome(0.0, Status.UNPARSABLE, f'it does not compile: {reason}')
    match test:
      case PrintTest():
        return self._check_output(sandbox, test)
      case CallTest():
        return self._check_result(sandbox, test)
      case SuiteTest():
        return self._check_suite(sandbox, test)

  def _open(self) -> Sandbox:
    return Sandbox(self._launcher, self._limits, self._cpu)

  def _check_output(self, sandbox: Sandbox, test: PrintTest) -> Outcome:
    run = sandbox.run(
      {'kind': 'run'},
      test.stdin,
      seconds=self._seconds,
      most_output=2 * len(test.stdout) + _SPARE,
      most_result=_SPARE,
    )
    if run.end is not End.ENDED:
      return self._failure(run)
    outcome = compare_output(run.output, test)
    if outcome.score or run.said.startswith(b'0 '):
      return outcome
    return Outcome(0.0, Status.CRASH, _reason(run, run.result))

  def _check_result(self, sandbox: Sandbox, test: CallTest) -> Outcome:
    run = sandbox.run(
      {'kind': 'call', 'name': test.name},
      test.arguments,
      seconds=self._seconds,
      most_output=0,
      most_result=2 * test.size + _SPARE,
    )
    if run.end is not End.ENDED:
      return self._failure(run)
    outcome = compare_answer(run.result, test)
    if outcome is None:
      return Outcome(0.0, Status.CRASH, _reason(run, b'it returned nothing'))
    return outcome

  def _check_suite(self, sandbox: Sandbox, test: SuiteTest) -> Outcome:
    """The suite's verdict, which it reaches where the program is not."""
    source = test.source.encode('utf-8', 'surrogatepass')
    with self._open() as other:
      if other.load(source, self._seconds).said != b'.':
        raise SandboxError('the suite does not compile')
      asked, asks = os.pipe()
      told, tells = os.pipe()
      with futures.ThreadPoolExecutor(1) as executor:
        program = executor.submit(
          sandbox.run,
          {'kind': 'script', 'scripts': _scripts('values', 'objects')},
          b'',
          seconds=self._seconds,
          most_output=0,
          most_result=_SPARE,
          pipes=(asked, tells),
        )
        scripts = _scripts('values', 'suite', 'checks')
        suite = other.run(
          {'kind': 'script', 'scripts': scripts, 'entry': test.entry},
          b'',
          seconds=self._seconds,
          most_output=0,
          most_result=_SPARE,
          pipes=(told, asks),
        )
      return self._compare_suite(program.result(), suite)

  def _compare_suite(self, program: Run, suite: Run) -> Outcome:
    if program.end is not End.ENDED:
      return self._failure(program)
    if suite.end is not End.ENDED:
      return self._failure(suite)
    match read_json(suite.result or b'{}'):
      case {'passed': _}:
        return _PASSED
      case {'broken': str(reason)}:
        raise SandboxError(f'the suite cannot be run: {reason}')
      case {'failed': str(reason)}:
        said = reason.encode(errors='replace')
      case _:
        said = b'the suite ended before its end'
    # A program that ended early says more of it than the suite does.
    if program.result and not program.result.startswith(b'EOFError'):
      return Outcome(0.0, Status.CRASH, in_a_line(program.result))
    return Outcome(0.0, Status.WRONG, in_a_line(said))

  def _failure(self, run: Run) -> Outcome:
    """What a program is killed for."""
    self.is_over = True
    limits = self._limits
    match run.end:
      case End.TIMEOUT:
        detail = f'it took longer than {self._seconds:g} s'
        return Outcome(0.0, Status.TIMEOUT, detail)
      case End.MEMORY:
        detail = f'it took more than {limits.memory >> 20} MiB of memory'
      case End.TASKS:
        detail = f'it had more than {limits.processes} processes and threads'
      case End.OUTPUT:
        detail = 'it printed or returned far more than was asked for'
      case _:
        detail = (
          f'its sandbox broke: {in_a_line(run.said) or "no reason given"}'
        )
    return Outcome(0.0, Status.CRASH, detail)


def _scripts(*names: str) -> list[bytes]:
  return [compile_script(f'_{name}.py') for name in names]


def compare_output(printed: bytes, test: PrintTest) -> Outcome:
  """What comes of a program that printed this."""
  if same_output(printed, test.stdout):
    return _PASSED
  expected, got = in_a_line(test.stdout), in_a_line(printed)
  detail = f"'{expected}' was expected, got '{got}'"
  return Outcome(0.0, Status.WRONG, detail)


def compare_answer(text: bytes, test: CallTest) -> Outcome | None:
  """What comes of a call that left this; nothing if it is no answer at all."""
  try:
    answer = read_json(text)
  except ValueError:
    return None
  match answer:
    case {'result': result, **rest} if not rest:
      if same_value(result, test.result):
        return _PASSED
      expected, got = (
        in_a_line(f'{value!r:.400}'.encode(errors='replace'))
        for value in (test.result, result)
      )
      return Outcome(0.0, Status.WRONG, f'{expected} was expected, got {got}')
    case {'error': str(error), **rest} if not rest:
      return Outcome(
        0.0, Status.CRASH, in_a_line(error.encode(errors='replace'))
      )
  return None


def _reason(run: Run, said: bytes) -> str:
  """Why a program ended without what was asked for."""
  status = int(run.said.split()[0])
  if os.WIFSIGNALED(status):
    number = os.WTERMSIG(status)
    names = {item.value: item.name for item in signal.Signals}
    return f'it was killed by {names.get(number, f"signal {number}")}'
  return (
    in_a_line(said) or f'it exited with {os.waitstatus_to_exitcode(status)}'
  )


def in_a_line(text: bytes) -> str:
  """Something to be shown that a program has made."""
  line = text[:400].decode(errors='replace').strip()
  return ascii(line)[1:-1][:200]
