# SPDX-License-Identifier: Apache-2.0
"""The judge: a program and its tests in, an outcome out."""

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
from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.remote import RemoteSession
from covrl.rewards.sandbox.sandbox import SandboxError
from covrl.rewards.sandbox.session import Session
from covrl.rewards.sandbox.test_formats import Test, find_program, parse_tests

LEVELS = ('bubblewrap', 'landlock', 'remote', 'unsandboxed')


class Judge:
  """Runs programs that nobody vouches for, and says what came of them.

  Threads may share one. It judges as many programs at a time as there are
  processors, each on one of them; who comes when all are busy waits, which is
  not on any program's time.

  Args:
    level: how programs are to be held: `bubblewrap`, `landlock`, `remote` (by
      whoever serves `url`) or `unsandboxed`; if None, the first of the first
      three that can be had. No program is run unsandboxed unless asked for.
    url: of a server of SandboxFusion's `run_code`.
    memory_limit: bytes that all processes of a program may take together, with
      the files that they write.
    processes: how many processes and threads a program may have at a time.
    workers: how many programs at a time; as many as there are processors if
      None.

  Attributes:
    level: how programs are held, for the record.
    reasons: why it is no better level, one for each that was tried.

  Raises:
    JudgeError: there is no such level to be had; in one sentence, why.
    ValueError: no such level exists, or a number is not positive.
  """

  def __init__(
    self,
    *,
    level: str | None = None,
    url: str | None = None,
    memory_limit: int = 1 << 30,
    processes: int = 64,
    workers: int | None = None,
  ) -> None:
    if level is not None and level not in LEVELS:
      raise ValueError(f'level must be one of {LEVELS}, got {level!r}.')
    processors = _processors()
    workers = len(processors) if workers is None else workers
    for name, value in (
      ('memory_limit', memory_limit),
      ('processes', processes),
      ('workers', workers),
    ):
      if value <= 0:
        raise ValueError(f'{name} must be positive, got {value}.')
    self._limits = Limits(memory=memory_limit, processes=processes)
    self._url = url
    self.reasons: list[str] = []
    self._launcher = self._choose(level, url)
    self.level = 'remote' if self._launcher is None else self._launcher.level
    # Judges of several processes do not all begin with the same one.
    random.shuffle(processors)
    self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index in range(workers):
      self._free.put(processors[index % len(processors)])

  def judge(
    self,
    program: str,
    tests: Sequence[Mapping[str, Any]],
    *,
    time_limit: float = 4.0,
    pass_rate: bool = False,
  ) -> Outcome:
    """What comes of a program at its tests; see `judge_code`."""
    forms = parse_tests(tests)
    if not (time_limit > 0 and math.isfinite(time_limit)):
      raise ValueError(f'time_limit must be positive, got {time_limit}.')
    source = find_program(program)
    if source is None:
      return Outcome(0.0, Status.UNPARSABLE, 'there is no program in it')
    with self._processor() as cpu:
      try:
        with self._open(source, time_limit, cpu) as session:
          return _put_to(session, forms, pass_rate)
      except (OSError, SandboxError) as error:
        return Outcome(math.nan, Status.INFRASTRUCTURE, str(error))

  def _choose(self, level: str | None, url: str | None) -> Launcher | None:
    """How to start sandboxes; None if another machine is to."""
    if level == 'remote' and url is None:
      raise ValueError('a url is required of level remote, got none.')
    if level == 'remote':
      return None
    try:
      return find_launcher(level, self._limits, self.reasons)
    except JudgeError:
      if level is None and url is not None:
        return None
      raise

  @contextlib.contextmanager
  def _processor(self) -> Iterator[int]:
    cpu = self._free.get()
    try:
      yield cpu
    finally:
      self._free.put(cpu)

  def _open(
    self, source: str, seconds: float, cpu: int
  ) -> Session | RemoteSession:
    program = source.encode('utf-8', 'surrogatepass')
    if self._launcher is None:
      return RemoteSession(str(self._url), program, seconds, self._limits)
    return Session(self._launcher, self._limits, program, seconds, cpu)


def _processors() -> list[int]:
  """Those that this process may use."""
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
  """Whether a program that nobody vouches for passes its tests.

  It runs in a sandbox that holds none of the results expected of it, so that
  it passes by producing them, whatever else it does: its exit code, what it
  claims and what it does to its own interpreter are worth nothing.

  A test is one of

  * `{'stdin': text, 'stdout': text}`: the program reads and prints.
    Whitespace at line ends, and empty lines at the end, do not count; a decimal
    fraction may be off by 1e-6.
  * `{'call': name, 'args': [...], 'result': value}`: a function of the program,
    or a method of its class `Solution` (or of `Class.method`), returns. Values
    are as JSON makes them, so tuples are lists; 1, True and 1.0 differ, but an
    integer may stand for a float, and floats may be off by 1e-6 of themselves.
  * `{'asserts': source}`: asserts, `test_*` functions or `unittest` cases hold;
    with `'entry': name`, `check` is called with that function. They run in a
    sandbox of their own, where the program's functions are stand-ins.

  Programs have the standard library, no other packages, `/tmp`, and one
  processor.

  >>> judge_code(
  ...   'print(int(input()) + 1)', [{'stdin': '41', 'stdout': '42'}]
  ... ).score
  1.0

  Args:
    program: its source, or a response with the source in a fenced block.
    tests: what it has to pass, in order.
    time_limit: seconds that each test may take.
    pass_rate: whether the score is the share of tests passed, not 1 for all.
      Those after one that ran out of time, or had to be killed, count as not
      passed, unseen.
    judge: who is to judge; one for the process, made at first need, if None.

  Returns:
    A score in [0, 1], and what stood in the way of 1; NaN where there is no
    judge to ask, or it failed.

  Raises:
    ValueError: there are no tests, one of them has none of these forms, or the
      time limit is not positive.
  """
  if judge is None:
    parse_tests(tests)
    try:
      judge = default_judge()
    except JudgeError as error:
      return Outcome(math.nan, Status.INFRASTRUCTURE, str(error))
  return judge.judge(program, tests, time_limit=time_limit, pass_rate=pass_rate)


def default_judge() -> Judge:
  """The judge of this process: the best sandbox that the machine has.

  Raises:
    JudgeError: it has none.
  """
  found = _find_judge()
  if isinstance(found, JudgeError):
    raise found
  return found


@functools.cache
def _find_judge() -> Judge | JudgeError:
  """What is looked for once, for it takes its time not to be found."""
  try:
    return Judge()
  except JudgeError as error:
    return error


def _put_to(
  session: Session | RemoteSession, tests: Sequence[Test], pass_rate: bool
) -> Outcome:
  """The outcome over all tests: the first failure's, where there is one."""
  first, passed = Outcome(1.0, Status.SCORED), 0
  for number, test in enumerate(tests, 1):
    outcome = session.check(test)
    if outcome.status is Status.SCORED:
      passed += 1
      continue
    if not outcome.is_judged or outcome.status is Status.UNPARSABLE:
      return outcome
    if first.status is Status.SCORED:
      detail = f'test {number} of {len(tests)}: {outcome.detail}'
      first = Outcome(0.0, outcome.status, detail)
    if not pass_rate or session.is_over:
      break
  if not pass_rate or not passed or first.status is Status.SCORED:
    return first
  return Outcome(passed / len(tests), Status.SCORED, first.detail)
