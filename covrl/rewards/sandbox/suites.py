# SPDX-License-Identifier: Apache-2.0
"""Runs of assert suites: apart from the program, and in its process.

Apart, the suite is in a sandbox of its own and the program cannot change its
verdict. But it sees copies of the program's values, and not what the program does to
the modules, files and streams of its process. In one process it sees all, and the
program can pretend anything. A verdict counts if both runs agree.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping, Sequence
from concurrent import futures
from typing import Any

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.sandbox.compare_outputs import one_line, read_json
from covrl.rewards.sandbox.limits import EndReason
from covrl.rewards.sandbox.sandbox import JobResult, Sandbox, SandboxError
from covrl.rewards.sandbox.scripts import compile_script

_MAX_RESULT_BYTES = 1 << 20
# Names of the scripts that run a suite, without `_` and `.py`.
SUITE_SCRIPTS = (
  'json_channel',
  'proxies',
  'local_program',
  'pytest_names',
  'fixtures',
  'suite_checks',
  'suite_runner',
)


class Verdict(enum.StrEnum):
  """Verdict of a suite.

  Attributes:
    PASSED: all its tests hold.
    FAILED: one does not, or the program failed.
    BROKEN: the suite is invalid or needs something unavailable.
  """

  PASSED = 'passed'
  FAILED = 'failed'
  BROKEN = 'broken'


def load_suite(sandbox: Sandbox, suite: bytes, seconds: float) -> None:
  """Loads a suite into its sandbox.

  Raises:
    SandboxError: the suite does not compile.
  """
  if sandbox.load(suite, seconds).report != b'.':
    raise SandboxError('the suite does not compile')


def run_apart(
  program: tuple[Sandbox, int],
  suite: tuple[Sandbox, int],
  entry: str | None,
  seconds: float,
) -> tuple[JobResult, JobResult]:
  """Runs a suite in another sandbox than its program.

  Args:
    program: sandbox into which the program is loaded, and seed.
    suite: sandbox into which the suite is loaded, and seed.
    entry: the function with which `check` of the suite is called, if any.
    seconds: time limit of each of both.

  Returns:
    Results of the program and of the suite.
  """
  program_sandbox, program_seed = program
  suite_sandbox, suite_seed = suite
  requests_read_end, requests_write_end = os.pipe()
  replies_read_end, replies_write_end = os.pipe()
  with futures.ThreadPoolExecutor(1) as executor:
    program_result = executor.submit(
      _run_scripts,
      program_sandbox,
      ('json_channel', 'object_server'),
      {'seed': program_seed},
      seconds,
      pipes=(requests_read_end, replies_write_end),
      partner=suite_sandbox,
    )
    suite_result = _run_scripts(
      suite_sandbox,
      SUITE_SCRIPTS,
      {'seed': suite_seed, 'entry': entry, 'program': None},
      seconds,
      pipes=(replies_read_end, requests_write_end),
      partner=program_sandbox,
    )
  return program_result.result(), suite_result


def run_together(
  suite: tuple[Sandbox, int], program: bytes, entry: str | None, seconds: float
) -> JobResult:
  """Runs a suite and its program in one process.

  Args:
    suite: sandbox into which the suite is loaded, and seed.
    program: source code of the program.
    entry: the function with which `check` of the suite is called, if any.
    seconds: time limit of both together.

  Returns:
    The result, which the program may have forged.
  """
  sandbox, seed = suite
  job = {'seed': seed, 'entry': entry, 'program': program}
  return _run_scripts(sandbox, SUITE_SCRIPTS, job, seconds)


def read_verdict(result: JobResult) -> tuple[Verdict, str]:
  """Returns the verdict that a run of a suite has written, and its reason."""
  try:
    match read_json(result.result or b'{}'):
      case {'verdict': str(verdict), 'reason': str(reason)}:
        return Verdict(verdict), one_line(reason.encode(errors='replace'))
  except ValueError:
    # An exception of the program, which ended before the suite began.
    return Verdict.FAILED, one_line(result.result)
  return Verdict.FAILED, 'the suite exited before its end'


def agreed_outcome(apart: Outcome, together: JobResult) -> Outcome:
  """Returns the outcome of a suite on which both of its runs agree.

  Args:
    apart: outcome of the run in two sandboxes.
    together: result of the run in one process.

  Raises:
    SandboxError: only one of them passes, or the suite cannot be run.
  """
  verdict, reason = Verdict.FAILED, together.end_reason.value
  if together.end_reason is EndReason.ENDED:
    verdict, reason = read_verdict(together)
  if verdict is Verdict.BROKEN:
    raise SandboxError(f'the suite cannot be run: {reason}')
  if (apart.status is Status.SCORED) == (verdict is Verdict.PASSED):
    return apart
  if verdict is Verdict.PASSED:
    raise SandboxError(
      'the program passes the suite in its process, but not in another one:'
      f' {apart.detail}'
    )
  raise SandboxError(
    f'the program passes the suite, but not in its process: {reason}'
  )


def _run_scripts(
  sandbox: Sandbox,
  names: Sequence[str],
  job: Mapping[str, Any],
  seconds: float,
  *,
  pipes: Sequence[int] = (),
  partner: Sandbox | None = None,
) -> JobResult:
  """Runs sandbox scripts one after the other in a process without output.

  Args:
    sandbox: the sandbox.
    names: names of the scripts, without `_` and `.py`.
    job: what the scripts read in `job`, with a seed.
    seconds: time limit.
    pipes: see `Sandbox.run`.
    partner: see `Sandbox.run`.
  """
  scripts = [compile_script(f'_{name}.py') for name in names]
  return sandbox.run(
    {'kind': 'script', 'scripts': scripts, **job},
    b'',
    seconds=seconds,
    max_output=0,
    max_result=_MAX_RESULT_BYTES,
    pipes=pipes,
    partner=partner,
  )
