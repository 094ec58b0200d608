# SPDX-License-Identifier: Apache-2.0
"""Formats of tests, and extraction of the program from a response."""

from __future__ import annotations

import dataclasses
import json
import marshal
import re
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards.sandbox.compare_outputs import read_json, same_value

_FENCE = re.compile(
  r'^[ \t]*```[ \t]*([^\n`]*)\n(.*?)(?:^[ \t]*```|\Z)', re.DOTALL | re.MULTILINE
)
_PYTHON = ('', 'py', 'python', 'python3')
_FORMATS = (
  "{'stdin': text, 'stdout': text}, {'call': name, 'args': [...], 'result':"
  " value} or {'asserts': source}, optionally with 'entry': name"
)


@dataclasses.dataclass(frozen=True)
class PrintTest:
  """The program, given `stdin`, must print `stdout`."""

  stdin: bytes
  stdout: bytes


@dataclasses.dataclass(frozen=True)
class CallTest:
  """A function must return a value.

  Attributes:
    name: name of the function or method.
    arguments: marshalled arguments.
    result: the expected value.
    size: length of the expected value as JSON.
  """

  name: str
  arguments: bytes
  result: Any
  size: int


@dataclasses.dataclass(frozen=True)
class SuiteTest:
  """A suite of asserts, test functions or test cases must pass."""

  source: str
  entry: str | None


Test = PrintTest | CallTest | SuiteTest


def parse_tests(tests: Sequence[Mapping[str, Any]]) -> list[Test]:
  """Parses tests in the formats of data sets.

  Raises:
    ValueError: if there are no tests, or one has an unknown format; the message
      says which.
  """
  if not tests:
    raise ValueError('At least one test is required, got none.')
  return [_parse(index, test) for index, test in enumerate(tests)]


def find_program(response: str) -> str | None:
  """Returns the last fenced Python block of a response, or all of it.

  >>> find_program('Here it is:\\n```python\\nprint(1)\\n```')
  'print(1)\\n'
  >>> find_program(' ') is None
  True
  """
  blocks = _FENCE.findall(response)
  python = [text for tag, text in blocks if tag.strip().lower() in _PYTHON]
  program = [response, *(text for _, text in blocks), *python][-1]
  return program if program.strip() else None


def _parse(index: int, test: Mapping[str, Any]) -> Test:
  match test:
    case {'stdin': str(stdin), 'stdout': str(stdout), **rest} if not rest:
      return PrintTest(_encode(stdin), _encode(stdout))
    case {
      'call': str(name),
      'args': list() | tuple() as args,
      'result': result,
      **rest,
    } if not rest:
      try:
        arguments = json.loads(json.dumps(list(args)))
        text = json.dumps(result)
        value = read_json(text.encode())
        # Fails here if the value is nested too deeply to be compared.
        same_value(value, value)
        return CallTest(name, marshal.dumps(arguments), value, len(text))
      except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
          f'Test {index}: args and result that JSON can hold are required,'
          f' got some that it cannot: {error}.'
        ) from None
    case {'asserts': str(source), **rest} if not set(rest) - {'entry'}:
      entry = rest.get('entry')
      if entry is None or isinstance(entry, str):
        return SuiteTest(source, entry)
  given = dict(test) if isinstance(test, Mapping) else test
  raise ValueError(f'Test {index}: {_FORMATS} is required, got {given!r:.200}.')


def _encode(text: str) -> bytes:
  return text.encode('utf-8', 'surrogatepass')
