# SPDX-License-Identifier: Apache-2.0
"""The forms that a test of a program can take, and the program in a response."""

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
_FORMS = (
  "{'stdin': text, 'stdout': text}, {'call': name, 'args': [...], 'result':"
  " value} or {'asserts': source}, optionally with 'entry': name"
)


@dataclasses.dataclass(frozen=True)
class PrintTest:
  """A program that reads `stdin` prints `stdout`."""

  stdin: bytes
  stdout: bytes


@dataclasses.dataclass(frozen=True)
class CallTest:
  """A function returns `result`, of a `size` in JSON, for marshalled arguments."""

  name: str
  arguments: bytes
  result: Any
  size: int


@dataclasses.dataclass(frozen=True)
class SuiteTest:
  """A source of asserts, test functions or test cases holds of the program."""

  source: str
  entry: str | None


Test = PrintTest | CallTest | SuiteTest


def parse_tests(tests: Sequence[Mapping[str, Any]]) -> list[Test]:
  """Tests as a data set has them.

  Raises:
    ValueError: there is none, or one has no known form; which, and how so.
  """
  if not tests:
    raise ValueError('At least one test is required, got none.')
  return [_parse(index, test) for index, test in enumerate(tests)]


def find_program(response: str) -> str | None:
  """The program of a response: its last fenced block of Python, or all of it.

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
        # Neither is nested too deeply for what is to be done with it.
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
  raise ValueError(f'Test {index}: {_FORMS} is required, got {given!r:.200}.')


def _encode(text: str) -> bytes:
  return text.encode('utf-8', 'surrogatepass')
