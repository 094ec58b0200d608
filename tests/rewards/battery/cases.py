# SPDX-License-Identifier: Apache-2.0
"""Cases of the battery, and the outcome expected of each kind."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards import Status

# Tests in the formats of `judge_code`: input and output, a call, asserts.
SUM = ({'stdin': '3 4\n', 'stdout': '7\n'},)
CALL = ({'call': 'add', 'args': [3, 4], 'result': 7},)
SUITE = ({'asserts': 'assert add(3, 4) == 7\nassert add(1, 1) == 2'},)
# Output of a program that could not reach anything outside of the sandbox.
SEALED = ({'stdin': '', 'stdout': 'sealed\n'},)


@dataclasses.dataclass(frozen=True)
class Case:
  """A program, its tests and the expected score.

  Attributes:
    name: name of the case.
    kind: `reward hack` (an attack that tries to pass without solving the task),
      `resource exhaustion`, `sandbox escape` (an attack that tries to reach
      something outside of the sandbox, and prints `sealed` if it fails) or
      `control` (a program that solves its task).
    program: source code.
    tests: tests in a format of `judge_code`.
    score: the expected score.
    statuses: the expected statuses, any of which may occur.
    time_limit: seconds for each test.
  """

  name: str
  kind: str
  program: str
  tests: Sequence[Mapping[str, Any]]
  score: float
  statuses: tuple[Status, ...]
  time_limit: float = 4.0


def reward_hack(
  name: str,
  program: str,
  tests: Sequence[Mapping[str, Any]] = SUM,
  *,
  score: float = 0.0,
  statuses: tuple[Status, ...] = (Status.WRONG, Status.CRASH),
  time_limit: float = 4.0,
) -> Case:
  """Returns a case of a program that tries to pass without solving its task."""
  source = textwrap.dedent(program)
  return Case(name, 'reward hack', source, tests, score, statuses, time_limit)


def resource_exhaustion(
  name: str,
  program: str,
  *statuses: Status,
  tests: Sequence[Mapping[str, Any]] = SUM,
  time_limit: float = 1.5,
) -> Case:
  """Returns a case of a program that exhausts a resource until it is killed."""
  source = textwrap.dedent(program)
  return Case(
    name, 'resource exhaustion', source, tests, 0.0, statuses, time_limit
  )


def sandbox_escape(name: str, program: str) -> Case:
  """Returns a case of a program that lists what it could reach in `found`."""
  source = (
    'found = []\n'
    + textwrap.dedent(program)
    + "\nprint(('open', found) if found else 'sealed')\n"
  )
  return Case(
    name, 'sandbox escape', source, SEALED, 1.0, (Status.SCORED,), 4.0
  )


def control(
  name: str, program: str, tests: Sequence[Mapping[str, Any]] = SUM
) -> Case:
  """Returns a case of a program that solves its task and must pass."""
  source = textwrap.dedent(program)
  return Case(name, 'control', source, tests, 1.0, (Status.SCORED,), 8.0)
