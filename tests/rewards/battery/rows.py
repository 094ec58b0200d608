# SPDX-License-Identifier: Apache-2.0
"""What a row of the battery is, and the outcome that each kind must have."""

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
  """A program, its tests and the score that it deserves.

  Attributes:
    name: of the row.
    kind: `forging` (to pass without solving), `taking` (more than its share),
      `reaching` (for what is not its own; it prints `sealed` if that is
      nowhere to be had) or `control` (honest).
    program: its source.
    tests: as `judge_code` takes them.
    score: what it deserves.
    statuses: those that describe what befalls it.
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
  """A program that wants a score that it has not earned."""
  source = textwrap.dedent(program)
  return Row(name, 'forging', source, tests, 0.0, statuses, time_limit)


def taking(
  name: str,
  program: str,
  *statuses: Status,
  tests: Sequence[Mapping[str, Any]] = SUM,
  time_limit: float = 1.5,
) -> Row:
  """A program that takes what it can get until it is stopped."""
  source = textwrap.dedent(program)
  return Row(name, 'taking', source, tests, 0.0, statuses, time_limit)


def reaching(name: str, program: str) -> Row:
  """A program that appends to `found` whatever it can get hold of."""
  source = (
    'found = []\n'
    + textwrap.dedent(program)
    + "\nprint(('open', found) if found else 'sealed')\n"
  )
  return Row(name, 'reaching', source, SEALED, 1.0, (Status.SCORED,), 4.0)


def control(
  name: str, program: str, tests: Sequence[Mapping[str, Any]] = SUM
) -> Row:
  """An honest program, which has to pass."""
  source = textwrap.dedent(program)
  return Row(name, 'control', source, tests, 1.0, (Status.SCORED,), 8.0)
