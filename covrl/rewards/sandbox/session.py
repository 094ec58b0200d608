# SPDX-License-Identifier: Apache-2.0
"""Runs one program's tests in sandboxes and turns the results into outcomes."""

from __future__ import annotations

import os
import signal
from concurrent import futures

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.sandbox.compare_outputs import (
  one_line,
  output_difference,
  read_json,
  value_difference,
)
from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import EndReason, Limits
from covrl.rewards.sandbox.sandbox import JobResult, Sandbox, SandboxError
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.seeds import call_seed, derive_seed
from covrl.rewards.sandbox.test_formats import (
  CallTest,
  PrintTest,
  SuiteTest,
  Test,
)

# Bytes that a program may print or return beyond twice the expected size.
_MARGIN_BYTES = 1 << 20
_PASSED = Outcome(1.0, Status.SCORED)


class Session:
  """Runs a program's tests one after the other.

  Every test starts in a fresh process. The sandbox is replaced as soon as
  anything was left behind in it.

  Args:
    launcher: starts sandboxes.
    limits: resource limits of the program.
    program: source code.
    seconds: time limit of each test, without the time in which others use the
      processor.
    cpu: the processor to run on; any if `None`.

  Attributes:
    was_killed: whether the program had to be killed in a test.
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
    self.was_killed = False
    self._sandbox: Sandbox | None = None
    self._results: list[JobResult] = []

  def __enter__(self) -> Session:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Closes the sandbox."""
    if self._sandbox is not None:
      self._sandbox.close()

  def check(self, test: Test) -> Outcome:
    """Runs a test and returns its outcome.

    A failed test whose program was ended by SIGKILL is run once more, as the
    signal may have come from outside: the program is at fault only if it is killed
    again.

    Raises:
      SandboxError: if a sandbox cannot be started, is killed from outside or gets
        no processor, or the kernel's OOM killer may have ended the program.
    """
    outcome = self._check_once(test)
    if self._is_sigkill(outcome):
      self.was_killed = False
      outcome = self._check_once(test)
      self._is_sigkill(outcome)
    return outcome

  def _is_sigkill(self, outcome: Outcome) -> bool:
    """Returns whether SIGKILL may be the reason for which a test failed.

    Raises:
      SandboxError: if the kernel killed a process of the machine meanwhile for
        lack of memory.
    """
    killed = [result for result in self._results if result.is_sigkill]
    if outcome.status is Status.SCORED or not killed:
      return False
    if any(result.oom_kills for result in killed):
      raise SandboxError(
        "the program was killed while the kernel's OOM killer killed processes"
      )
    return True

  def _check_once(self, test: Test) -> Outcome:
    """Runs a test once and returns its outcome."""
    self._results = []
    sandbox = self._sandbox
    if sandbox is None or not sandbox.is_reusable:
      sandbox = self._sandbox = self._open()
      run = self._record(sandbox.load(self._program, self._seconds))
      if run.end_reason is not EndReason.ENDED:
        return self._outcome_when_killed(run)
      if run.report != b'.':
        reason = one_line(run.report[1:])
        return Outcome(0.0, Status.UNPARSABLE, f'it does not compile: {reason}')
    match test:
      case PrintTest():
        return self._check_output(sandbox, test)
      case CallTest():
        return self._check_result(sandbox, test)
      case SuiteTest():
        return self._check_suite(sandbox, test)

  def _record(self, result: JobResult) -> JobResult:
    """Records a result of the current test, and returns it."""
    self._results.append(result)
    return result

  def _open(self) -> Sandbox:
    """Starts a sandbox."""
    return Sandbox(self._launcher, self._limits, self._cpu)

  def _check_output(self, sandbox: Sandbox, test: PrintTest) -> Outcome:
    """Runs the program and compares its printed output."""
    run = self._record(
      sandbox.run(
        {'kind': 'run', 'seed': derive_seed(self._program, test.stdin)},
        test.stdin,
        seconds=self._seconds,
        max_output=2 * len(test.stdout) + _MARGIN_BYTES,
        max_result=_MARGIN_BYTES,
      )
    )
    if run.end_reason is not EndReason.ENDED:
      return self._outcome_when_killed(run)
    outcome = compare_output(run.output, test)
    # The empty output of a program that fails is not a correct answer.
    printed_correctly = outcome.score and test.stdout.strip()
    if printed_correctly or run.report.startswith(b'0 '):
      return outcome
    return Outcome(0.0, Status.CRASH, _describe_end(run, run.result))

  def _check_result(self, sandbox: Sandbox, test: CallTest) -> Outcome:
    """Calls a function of the program and compares its result."""
    seed = call_seed(self._program, test)
    run = self._record(
      sandbox.run(
        {'kind': 'call', 'name': test.name, 'seed': seed},
        test.arguments,
        seconds=self._seconds,
        max_output=0,
        max_result=2 * test.size + _MARGIN_BYTES,
      )
    )
    if run.end_reason is not EndReason.ENDED:
      return self._outcome_when_killed(run)
    outcome = compare_answer(run.result, test)
    if outcome is None:
      return Outcome(
        0.0, Status.CRASH, _describe_end(run, b'it returned nothing')
      )
    return outcome

  def _check_suite(self, sandbox: Sandbox, test: SuiteTest) -> Outcome:
    """Runs an assert suite in a sandbox apart from the program's."""
    source = test.source.encode('utf-8', 'surrogatepass')
    with self._open() as suite_sandbox:
      if suite_sandbox.load(source, self._seconds).report != b'.':
        raise SandboxError('the suite does not compile')
      requests_read_end, requests_write_end = os.pipe()
      replies_read_end, replies_write_end = os.pipe()
      with futures.ThreadPoolExecutor(1) as executor:
        program = executor.submit(
          sandbox.run,
          {
            'kind': 'script',
            'scripts': _compile_scripts('json_channel', 'object_server'),
            # Not from the suite, which the program must not know.
            'seed': derive_seed(self._program),
          },
          b'',
          seconds=self._seconds,
          max_output=0,
          max_result=_MARGIN_BYTES,
          pipes=(requests_read_end, replies_write_end),
          partner=suite_sandbox,
        )
        scripts = _compile_scripts(
          'json_channel',
          'proxies',
          'pytest_names',
          'suite_checks',
          'suite_runner',
        )
        suite = suite_sandbox.run(
          {
            'kind': 'script',
            'scripts': scripts,
            'entry': test.entry,
            'seed': derive_seed(self._program, source),
          },
          b'',
          seconds=self._seconds,
          max_output=0,
          max_result=_MARGIN_BYTES,
          pipes=(replies_read_end, requests_write_end),
          partner=sandbox,
        )
      return self._compare_suite(
        self._record(program.result()), self._record(suite)
      )

  def _compare_suite(
    self, program_result: JobResult, suite_result: JobResult
  ) -> Outcome:
    """Returns the outcome of a suite from the results of both sandboxes."""
    if program_result.end_reason is not EndReason.ENDED:
      return self._outcome_when_killed(program_result)
    if suite_result.end_reason is not EndReason.ENDED:
      return self._outcome_when_killed(suite_result)
    match read_json(suite_result.result or b'{}'):
      case {'passed': _}:
        return _PASSED
      case {'broken': str(reason)}:
        raise SandboxError(f'the suite cannot be run: {reason}')
      case {'failed': str(reason)}:
        failure = reason.encode(errors='replace')
      case _:
        failure = b'the suite exited before its end'
    # If the program exited early, its own error explains more.
    if program_result.result and not program_result.result.startswith(
      b'EOFError'
    ):
      return Outcome(0.0, Status.CRASH, one_line(program_result.result))
    return Outcome(0.0, Status.WRONG, one_line(failure))

  def _outcome_when_killed(self, run: JobResult) -> Outcome:
    """Returns the outcome of a program that was killed."""
    self.was_killed = True
    limits = self._limits
    match run.end_reason:
      case EndReason.TIMEOUT:
        detail = f'it took longer than {self._seconds:g} s'
        return Outcome(0.0, Status.TIMEOUT, detail)
      case EndReason.MEMORY:
        detail = f'it took more than {limits.memory >> 20} MiB of memory'
      case EndReason.TASKS:
        detail = f'it had more than {limits.processes} processes and threads'
      case EndReason.OUTPUT:
        detail = 'it printed or returned far more than expected'
      case _:
        detail = (
          f'its sandbox failed: {one_line(run.report) or "no reason given"}'
        )
    return Outcome(0.0, Status.CRASH, detail)


def _compile_scripts(*names: str) -> list[bytes]:
  """Returns compiled sandbox scripts, by names without `_` and `.py`."""
  return [compile_script(f'_{name}.py') for name in names]


def compare_output(printed: bytes, test: PrintTest) -> Outcome:
  """Compares printed output with the expected one."""
  detail = output_difference(printed, test.stdout, test.tolerance)
  return _PASSED if detail is None else Outcome(0.0, Status.WRONG, detail)


def compare_answer(text: bytes, test: CallTest) -> Outcome | None:
  """Compares a returned value; `None` if the text is not a valid reply."""
  try:
    answer = read_json(text)
  except ValueError:
    return None
  match answer:
    case {'result': result, **rest} if not rest:
      try:
        detail = value_difference(result, test.result, test.tolerance)
      except RecursionError:
        detail = 'a value that is nested less deeply was expected'
      if detail is None:
        return _PASSED
      detail = one_line(detail.encode(errors='replace'))
      return Outcome(0.0, Status.WRONG, detail)
    case {'error': str(error), **rest} if not rest:
      return Outcome(
        0.0, Status.CRASH, one_line(error.encode(errors='replace'))
      )
  return None


def _describe_end(run: JobResult, message: bytes) -> str:
  """Describes how a program ended without a correct result."""
  status = int(run.report.split()[0])
  if os.WIFSIGNALED(status):
    signal_number = os.WTERMSIG(status)
    names = {item.value: item.name for item in signal.Signals}
    return (
      f'it was killed by {names.get(signal_number, f"signal {signal_number}")}'
    )
  return (
    one_line(message) or f'it exited with {os.waitstatus_to_exitcode(status)}'
  )
