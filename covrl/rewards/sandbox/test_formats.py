# SPDX-License-Identifier: Apache-2.0
"""Formats of tests of programs: printed output, function calls, asserts."""

from __future__ import annotations

import dataclasses
import json
import marshal
import math
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards.sandbox.compare_outputs import read_json, same_value

_FORMATS = (
  "{'stdin': text, 'stdout': text}, {'call': name, 'args': [...], 'result':"
  " value}, optionally with 'tolerance': number, or {'asserts': source},"
  " optionally with 'entry': name"
)


@dataclasses.dataclass(frozen=True)
class PrintTest:
  """The program, given `stdin`, must print `stdout`.

  Attributes:
    stdin: input, with line ends as a terminal sends them.
    stdout: the expected output.
    tolerance: difference that numbers may have; see `output_difference`.
  """

  stdin: bytes
  stdout: bytes
  tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class CallTest:
  """A function must return a value.

  Attributes:
    name: name of the function or method.
    arguments: marshalled arguments.
    arguments_json: the arguments as JSON.
    result: the expected value.
    size: length of the expected value as JSON.
    tolerance: difference that numbers may have; see `same_value`.
  """

  name: str
  arguments: bytes
  arguments_json: bytes
  result: Any
  size: int
  tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class SuiteTest:
  """A suite of asserts, test functions or test cases must pass.

  Attributes:
    source: source code of the suite.
    entry: name of the function that the suite's `check` is called with, if any.
  """

  source: str
  entry: str | None


Test = PrintTest | CallTest | SuiteTest


def parse_tests(tests: Sequence[Mapping[str, Any]]) -> list[Test]:
  """Parses tests in the formats of data sets.

  Raises:
    ValueError: if there are no tests, or one has an unknown format; the message
      names it.
  """
  if isinstance(tests, str) or not isinstance(tests, Sequence):
    raise ValueError(f'tests must be a list, got {tests!r:.200}')
  if not tests:
    raise ValueError('tests must hold at least one test, got none')
  return [_parse(index, test) for index, test in enumerate(tests)]


def _parse(index: int, test: Mapping[str, Any]) -> Test:
  """Parses one test; `index` is for errors."""
  match test:
    case {
      'stdin': str(stdin),
      'stdout': str(stdout),
      **rest,
    } if not set(rest) - {'tolerance'}:
      tolerance = _tolerance(index, rest)
      return PrintTest(_encode_input(stdin), _encode(stdout), tolerance)
    case {
      'call': str(name),
      'args': list() | tuple() as args,
      'result': result,
      **rest,
    } if not set(rest) - {'tolerance'}:
      tolerance = _tolerance(index, rest)
      try:
        arguments_json = json.dumps(list(args))
        result_json = json.dumps(result)
        value = read_json(result_json.encode())
        # Fails here if the value is nested too deeply to be compared.
        same_value(value, value)
        return CallTest(
          name,
          marshal.dumps(json.loads(arguments_json)),
          arguments_json.encode(),
          value,
          len(result_json),
          tolerance,
        )
      except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
          f'test {index}: args and result must be values of JSON, got: {error}'
        ) from None
    case {'asserts': str(source), **rest} if not set(rest) - {'entry'}:
      entry = rest.get('entry')
      if entry is None or isinstance(entry, str):
        return SuiteTest(source, entry)
  fields = dict(test) if isinstance(test, Mapping) else test
  raise ValueError(f'test {index} must be {_FORMATS}, got {fields!r:.200}')


def _tolerance(index: int, fields: Mapping[str, Any]) -> float | None:
  """Returns the tolerance of a test; `None` without one."""
  value = fields.get('tolerance')
  if value is None:
    return None
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not is_number or not (value >= 0 and math.isfinite(value)):
    raise ValueError(
      f'test {index}: tolerance must be a finite number of at least 0, got'
      f' {value!r:.100}'
    )
  return float(value)


def _encode_input(text: str) -> bytes:
  """Encodes input as contests give it: no byte order mark, LF at line ends.

  Programs may rely on the last one: `sys.stdin.readline()[:-1]`.
  """
  text = text.removeprefix('\ufeff').replace('\r\n', '\n')
  return _encode(text if not text or text.endswith('\n') else f'{text}\n')


def _encode(text: str) -> bytes:
  return text.encode('utf-8', 'surrogatepass')
