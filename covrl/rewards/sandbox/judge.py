# SPDX-License-Identifier: Apache-2.0
"""Judging of untrusted programs by their tests."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import queue
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.sandbox.backends import JudgeError, find_launcher
from covrl.rewards.sandbox.extraction import find_program
from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.packages import Package, find_packages
from covrl.rewards.sandbox.remote import RemoteSession
from covrl.rewards.sandbox.sandbox import SandboxError
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import Test, parse_tests

BACKENDS = ('bubblewrap', 'landlock', 'remote', 'unsandboxed')


class Judge:
  """Runs untrusted programs in sandboxes and compares their output with tests.

  A judge can be shared by threads. It runs one program per processor at a time;
  further calls wait, which does not count as a program's time. Nor does the time
  for which a program waits for a processor that other processes use, other judges'
  programs among them.

  Args:
    backend: the sandbox backend: `bubblewrap`, `landlock`, `remote` (the server at
      `url`) or `unsandboxed`; `None` takes the first of the first three that
      works. Programs run unsandboxed only on request.
    url: a server with SandboxFusion's `run_code` interface.
    memory_limit: bytes for all processes of a program and the files that they
      write, together.
    processes: maximal number of processes and threads of a program.
    workers: number of programs run at a time; the number of processors if
      `None`.
    packages: names of installed packages that programs may import; `None` for
      numpy if it is installed. A remote server has its own.

  Attributes:
    backend: the sandbox backend in use.
    reasons: errors of the backends that were tried before it and do not work.

  Raises:
    JudgeError: if the backend, or every backend, does not work on this machine.
    ValueError: if the backend is unknown, a number is not positive or a package is
      not installed.
  """

  def __init__(
    self,
    *,
    backend: str | None = None,
    url: str | None = None,
    memory_limit: int = 1 << 30,
    processes: int = 64,
    workers: int | None = None,
    packages: Sequence[str] | None = None,
  ) -> None:
    if backend is not None and backend not in BACKENDS:
      raise ValueError(f'backend must be one of {BACKENDS}, got {backend!r}')
    processors = _processors()
    workers = len(processors) if workers is None else workers
    for name, value in (
      ('memory_limit', memory_limit),
      ('processes', processes),
      ('workers', workers),
    ):
      if value <= 0:
        raise ValueError(f'{name} must be positive, got {value}')
    self._limits = Limits(memory=memory_limit, processes=processes)
    self._url = url
    self.reasons: list[str] = []
    self._launcher = self._choose_launcher(
      backend, url, find_packages(packages)
    )
    self.backend = (
      'remote' if self._launcher is None else self._launcher.backend
    )
    # Shuffled, so that the judges of several processes use different ones.
    random.shuffle(processors)
    self._free_processors: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(workers):
      self._free_processors.put(processors[index % len(processors)])

  def judge(
    self,
    program: str,
    tests: Sequence[Mapping[str, Any]],
    *,
    time_limit: float = 4.0,
    pass_rate: bool = False,
  ) -> Outcome:
    """Judges a program by its tests; see `judge_code`."""
    parsed_tests = parse_tests(tests)
    if not (time_limit > 0 and math.isfinite(time_limit)):
      raise ValueError(f'time_limit must be positive, got {time_limit}')
    source = find_program(program, parsed_tests)
    if source is None:
      return Outcome(0.0, Status.UNPARSABLE, 'the response contains no program')
    with self._acquire_processor() as cpu:
      try:
        with self._open_session(source, time_limit, cpu) as session:
          return _run_tests(session, parsed_tests, pass_rate)
      except (OSError, SandboxError) as error:
        return Outcome(math.nan, Status.INFRASTRUCTURE, str(error))

  def _choose_launcher(
    self, backend: str | None, url: str | None, packages: tuple[Package, ...]
  ) -> Launcher | None:
    """Returns the launcher of local sandboxes; `None` for a remote server."""
    if backend == 'remote' and url is None:
      raise ValueError("url must be an address with backend 'remote', got None")
    if backend == 'remote':
      return None
    try:
      return find_launcher(backend, self._limits, self.reasons, packages)
    except JudgeError:
      if backend is None and url is not None:
        return None
      raise

  @contextlib.contextmanager
  def _acquire_processor(self) -> Iterator[int]:
    """Context that waits for a free processor and reserves it for one program."""
    cpu = self._free_processors.get()
    try:
      yield cpu
    finally:
      self._free_processors.put(cpu)

  def _open_session(
    self, source: str, seconds: float, cpu: int
  ) -> Session | RemoteSession:
    """Opens a session that runs the tests of a program."""
    program = source.encode('utf-8', 'surrogatepass')
    if self._launcher is None:
      return RemoteSession(str(self._url), program, seconds, self._limits)
    return Session(self._launcher, self._limits, program, seconds, cpu)


def _processors() -> list[int]:
  """Returns the processors that this process may use."""
  if sys.platform == 'linux':
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def judge_code(
  program: str,
  tests: Sequence[Mapping[str, Any]],
  *,
  time_limit: float = 4.0,
  pass_rate: bool = False,
  judge: Judge | None = None,
) -> Outcome:
  """Judges whether an untrusted program passes its tests.

  The program runs in a sandbox that does not contain the expected results, so
  it can pass only by producing them: its exit code, its own claims and changes
  to its interpreter have no influence.

  A test is one of

  * `{'stdin': text, 'stdout': text}`: the program reads input and prints output.
    Words are compared, not blanks; numbers with a decimal point match numbers of
    the same value and may differ by 1e-6. Prompts of `input` are left out.
  * `{'call': name, 'args': [...], 'result': value}`: a function of the program,
    or a method of its class `Solution` (or `Class.method`), returns a value.
    Values are compared as JSON, so tuples are lists, and as in Python: 1, True
    and 1.0 are equal. Floats may differ by a relative 1e-6.
  * `{'asserts': source}`: asserts, `test_*` functions or `unittest` cases hold;
    with `'entry': name`, `check` is called with that function. They run in a
    second sandbox, where proxies stand for the program's functions.

  The first two take `'tolerance': number`, the absolute or relative difference
  that numbers may have.

  Programs have the standard library, numpy where it is installed (see `Judge`), a
  writable `/tmp` and one processor.

  >>> judge_code(
  ...   'print(int(input()) + 1)', [{'stdin': '41', 'stdout': '42'}]
  ... ).score
  1.0

  Args:
    program: source code, or a response with the source in a fenced block.
    tests: the tests, run in order.
    time_limit: seconds that each test may take: those in which the program runs or
      sleeps, not those in which other processes use its processor. All count if
      the program has child processes.
    pass_rate: whether the score is the share of passed tests instead of 1 if
      all pass. Tests after one that was killed (time, memory) count as failed
      without being run.
    judge: the judge to use; one per process, made at first use, if `None`.

  Returns:
    A score in [0, 1] with the reason if it is below 1; NaN if no sandbox works,
    one fails, or the program gets no processor for most of ten times its limit.

  Raises:
    ValueError: if there are no tests, one has an unknown format, or the time limit
      is not positive.
  """
  if judge is None:
    parse_tests(tests)
    try:
      judge = default_judge()
    except JudgeError as error:
      return Outcome(math.nan, Status.INFRASTRUCTURE, str(error))
  return judge.judge(program, tests, time_limit=time_limit, pass_rate=pass_rate)


def default_judge() -> Judge:
  """Returns this process's judge, with the best sandbox that works here.

  Raises:
    JudgeError: if no sandbox works.
  """
  judge = _find_judge()
  if isinstance(judge, JudgeError):
    raise judge
  return judge


@functools.cache
def _find_judge() -> Judge | JudgeError:
  """Returns the process's judge, or the error; cached."""
  try:
    return Judge()
  except JudgeError as error:
    return error


def _run_tests(
  session: Session | RemoteSession, tests: Sequence[Test], pass_rate: bool
) -> Outcome:
  """Returns the outcome over all tests: that of the first failure, if any."""
  summary, passed = Outcome(1.0, Status.SCORED), 0
  for number, test in enumerate(tests, 1):
    outcome = session.check(test)
    if outcome.status is Status.SCORED:
      passed += 1
      continue
    if not outcome.has_score or outcome.status is Status.UNPARSABLE:
      return outcome
    if summary.status is Status.SCORED:
      detail = f'test {number} of {len(tests)}: {outcome.detail}'
      summary = Outcome(0.0, outcome.status, detail)
    if not pass_rate or session.was_killed:
      break
  if not pass_rate or not passed or summary.status is Status.SCORED:
    return summary
  return Outcome(passed / len(tests), Status.SCORED, summary.detail)
