# SPDX-License-Identifier: Apache-2.0
"""Rows of the battery, and the outcome expected of each kind."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards import Status

SUM = ({'stdin': '3 4\n', 'stdout': '7\n'},)
CALL = ({'call': 'add', 'args': [3, 4], 'result': 7},)
SUITE = ({'asserts': 'assert add(3, 4) == 7\nassert add(1, 1) == 2'},)
SEALED = ({'stdin': '', 'stdout': 'sealed\n'},)


@dataclasses.dataclass(frozen=True)
class Row:
  """A program, its tests and the expected score.

  Attributes:
    name: name of the row.
    kind: `forging` (an attack that tries to pass without solving the task),
      `taking` (one that exhausts a resource), `reaching` (one that reaches for
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


def forging(
  name: str,
  program: str,
  tests: Sequence[Mapping[str, Any]] = SUM,
  *,
  statuses: tuple[Status, ...] = (Status.WRONG, Status.CRASH),
  time_limit: float = 4.0,
) -> Row:
  """Returns a row for a program that tries to forge a score."""
  source = textwrap.dedent(program)
  return Row(name, 'forging', source, tests, 0.0, statuses, time_limit)


def taking(
  name: str,
  program: str,
  *statuses: Status,
  tests: Sequence[Mapping[str, Any]] = SUM,
  time_limit: float = 1.5,
) -> Row:
  """Returns a row for a program that exhausts a resource until it is killed."""
  source = textwrap.dedent(program)
  return Row(name, 'taking', source, tests, 0.0, statuses, time_limit)


def reaching(name: str, program: str) -> Row:
  """Returns a row for a program that lists what it could reach in `found`."""
  source = (
    'found = []\n'
    + textwrap.dedent(program)
    + "\nprint(('open', found) if found else 'sealed')\n"
  )
  return Row(name, 'reaching', source, SEALED, 1.0, (Status.SCORED,), 4.0)


def control(
  name: str, program: str, tests: Sequence[Mapping[str, Any]] = SUM
) -> Row:
  """Returns a row for a program that solves its task and must pass."""
  source = textwrap.dedent(program)
  return Row(name, 'control', source, tests, 1.0, (Status.SCORED,), 8.0)
