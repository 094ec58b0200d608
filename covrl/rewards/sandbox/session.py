# SPDX-License-Identifier: Apache-2.0
"""Runs one program's tests in sandboxes and turns the results into outcomes."""

from __future__ import annotations

import contextlib
import os
import signal

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
from covrl.rewards.sandbox.seeds import call_seed, derive_seed
from covrl.rewards.sandbox.suites import (
  Verdict,
  agreed_outcome,
  load_suite,
  read_verdict,
  run_apart,
  run_together,
)
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
    """Runs an assert suite apart from the program, and together with it.

    Raises:
      SandboxError: the suite cannot be run, or only one of both runs passes.
    """
    source = test.source.encode('utf-8', 'surrogatepass')
    # Not from the suite, which the program must not know.
    program_seed = derive_seed(self._program)
    with self._open() as suite_sandbox:
      load_suite(suite_sandbox, source, self._seconds)
      program_result, suite_result = run_apart(
        (sandbox, program_seed),
        (suite_sandbox, derive_seed(self._program, source)),
        test.entry,
        self._seconds,
      )
      outcome = self._apart_outcome(
        self._record(program_result), self._record(suite_result)
      )
      if self._is_sigkill(outcome):
        return outcome
      with contextlib.ExitStack() as stack:
        if not suite_sandbox.is_reusable:
          suite_sandbox = stack.enter_context(self._open())
          load_suite(suite_sandbox, source, self._seconds)
        result = self._record(
          run_together(
            (suite_sandbox, program_seed),
            self._program,
            test.entry,
            self._seconds,
          )
        )
    if result.is_sigkill:
      return self._outcome_when_killed(result)
    return agreed_outcome(outcome, result)

  def _apart_outcome(
    self, program_result: JobResult, suite_result: JobResult
  ) -> Outcome:
    """Returns the outcome of a suite that ran apart from the program.

    Raises:
      SandboxError: the suite cannot be run.
    """
    for result in (program_result, suite_result):
      if result.end_reason is not EndReason.ENDED:
        return self._outcome_when_killed(result)
    verdict, reason = read_verdict(suite_result)
    if verdict is Verdict.BROKEN:
      raise SandboxError(f'the suite cannot be run: {reason}')
    if verdict is Verdict.PASSED:
      return _PASSED
    error = program_result.result
    # If the program exited early, its own error explains more.
    if error and not error.startswith(b'EOFError'):
      return Outcome(0.0, Status.CRASH, one_line(error))
    return Outcome(0.0, Status.WRONG, reason)

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
