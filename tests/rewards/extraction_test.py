# SPDX-License-Identifier: Apache-2.0
"""`find_program` finds the program among the fenced blocks of a response."""

import random
import string

import pytest

from covrl.rewards import find_program
from covrl.rewards.sandbox.test_formats import parse_tests

# Tests of printed output, of calls and by asserts; programs that read and that do not.
PRINT = [{'stdin': '41', 'stdout': '42'}]
CALL = [{'call': 'f', 'args': [1], 'result': 2}]
SUITE = [
  {'asserts': 'from solution import f\ndef test_f():\n  assert f(1) == 2'}
]
READ = 'print(int(input()) + 1)\n'
DEF = 'def f(x):\n  return x + 1\n'


def _fence(text: str, tag: str = 'python') -> str:
  """A fenced block; a vertical bar in the text stands for a line end."""
  text = text.rstrip('\n').replace('|', '\n')
  return f'```{tag}\n{text}\n```\n'


PROGRAM = _fence(READ)
FUNCTION = _fence(DEF)


@pytest.mark.parametrize(
  ('response', 'program'),
  [
    ('print(1)', 'print(1)'),
    ('\ufeffprint(1)', 'print(1)'),
    ('', None),
    (' \n\t', None),
    ('```python\n```', None),
    ('Inline `x` only', 'Inline `x` only'),
    ('So:\n```python\na\n```\nor\n```python\nb\n```', 'b\n'),
    ('```py\na\n```\nwhich prints\n```text\n7\n```', 'a\n'),
    ('```\na\n```', 'a\n'),
    ('```cpp\na\n```', 'a\n'),
    ('```python\ncut off', 'cut off'),
    # Output, usage, tests and commands after the program.
    (f'{PROGRAM}Output:\n{_fence("42", "")}', READ),
    (f'{PROGRAM}Output:\n{_fence("42", "output")}', READ),
    (f'{PROGRAM}It prints\n{_fence("42", "python")}', READ),
    (f'{PROGRAM}Run it:\n{_fence("python a.py < in", "bash")}', READ),
    (f'{FUNCTION}Usage:\n{_fence("print(f(1))")}', DEF),
    (f'{FUNCTION}Usage:\n{_fence("result = f(1)|print(result)")}', DEF),
    (f'{FUNCTION}Usage:\n{_fence(">>> f(1)|2")}', DEF),
    (f'{FUNCTION}Usage:\n{_fence(">>> f(1)|2", "")}', DEF),
    (f'{FUNCTION}Usage:\n{_fence(">>> f(1)|2", "pycon")}', DEF),
    (f'{FUNCTION}Tests:\n{_fence("assert f(1) == 2")}', DEF),
    (f'{_fence("print(42)")}Output:\n{_fence("42", "")}', 'print(42)\n'),
    (f'{_fence("print(42)", "")}Output:\n{_fence("42", "")}', 'print(42)\n'),
    (f'{_fence(DEF, "")}Usage:\n{_fence("print(f(1))")}', DEF),
    (
      f'{_fence("print(42)")}{_fence("read input() then add", "")}',
      'print(42)\n',
    ),
    # A program in several blocks.
    (
      f'{FUNCTION}Then:\n{_fence("print(f(int(input())))")}',
      f'{DEF}\nprint(f(int(input())))\n',
    ),
    (
      f'{FUNCTION}{_fence("def g(x): return f(x)")}',
      f'{DEF}\ndef g(x): return f(x)\n',
    ),
    (
      f'{_fence("import math")}Then:\n{_fence("def g(x): return math.sqrt(x)")}',
      'import math\n\ndef g(x): return math.sqrt(x)\n',
    ),
    (
      f'{_fence("MOD = 7|N, M = 1, 2")}{_fence("MOD = 7")}{_fence("def g(x): return x % MOD")}',
      'MOD = 7\n\ndef g(x): return x % MOD\n',
    ),
    (
      f'{_fence("from math import *")}{_fence("def g(x): return sqrt(x)")}',
      'from math import *\n\ndef g(x): return sqrt(x)\n',
    ),
    (f'{_fence("import math")}{FUNCTION}', DEF),
    (f'{_fence("x = 3")}{FUNCTION}', DEF),
    (
      f'{_fence("import math")}{_fence("from __future__ import annotations|math")}',
      'from __future__ import annotations\nmath\n',
    ),
    # Several programs: the last one.
    (f'{_fence("def f(x): ...")}Better:\n{FUNCTION}', DEF),
    # Other ways to write a fence.
    (_fence(READ, 'Python3'), READ),
    (_fence(READ, ' python title="a.py"'), READ),
    (_fence(READ, '{.python .numbers}'), READ),
    (_fence(READ, 'code') + _fence('42\n', 'text'), READ),
    (f'~~~python\n{READ}~~~\n', READ),
    (f'````python\n{READ}````\n', READ),
    (f'```python\n{READ.strip()}```', READ.strip()),
    (f'The answer: ```python\n{READ}```', READ),
    (f'1. First:\n   ```python\n   {READ}   ```\n', READ),
    (f'- ```python\n  {READ}  ```\n', READ),
    (f'> ```python\n> {READ}> ```\n', READ),
    (PROGRAM.replace('\n', '\r\n'), READ),
    (f'```python\n{READ}```python\n{DEF}```\n', DEF),
    (f'Thinking: {FUNCTION}</think>\n{PROGRAM}', READ),
    (f'{PROGRAM}</think>\nThat was it.', READ),
    ('<think>hm</think>\nprint(1)', '\nprint(1)'),
  ],
)
def test_finds_the_program_without_tests(response, program):
  assert find_program(response) == program


@pytest.mark.parametrize(
  ('tests', 'response', 'program'),
  [
    # A program for printed output reads; a helper beside it does not.
    (PRINT, f'{PROGRAM}A test:\n{_fence("def test(): assert run() == 1")}', READ),
    (PRINT, f'{PROGRAM}{_fence("import sys, io|sys.stdin = io.StringIO()")}', READ),
    # A program for calls defines what they call.
    (CALL, f'{FUNCTION}To try it:\n{_fence("print(f(int(input())))")}', DEF),
    (CALL, f'{FUNCTION}Tests:\n{_fence("def test_f(): assert f(1) == 2")}', DEF),
    (CALL, f'{_fence("f = lambda x: x + 1")}\n{_fence("y = f(1)")}', 'f = lambda x: x + 1\n'),
    (
      CALL,
      f'{_fence("class Solution:|  def f(self, x): return x + 1")}'
      f'{_fence("class Test: pass")}',
      'class Solution:\n  def f(self, x): return x + 1\n',
    ),
    (SUITE, f'{FUNCTION}Tests:\n{_fence("def test_f():|  assert f(1) == 2")}', DEF),
  ],
)  # fmt: skip
def test_finds_the_program_that_the_tests_need(tests, response, program):
  assert find_program(response, parse_tests(tests)) == program


def test_fences_inside_of_strings_are_part_of_the_program():
  documented = f'def f(x):\n  """Adds.\n\n```\nf(1)\n```\n  """\n{DEF}'
  assert find_program(_fence(documented)) == documented
  assert find_program(documented) == documented
  # A string is not left open if another block follows.
  quotes = f'{DEF}q = \'"""\'\n'
  assert find_program(f'{_fence(quotes)}Or:\n{PROGRAM}') == READ
  assert find_program(f'{_fence(quotes)}That is all.') == quotes


def test_any_text_gives_a_program_or_none():
  generator = random.Random(0)
  fragments = [
    '```',
    '```python',
    '~~~',
    '\n',
    '"""',
    "'''",
    '>',
    '- ',
    'def f',
    ' ',
  ]
  tests = parse_tests([*PRINT, *CALL, *SUITE])
  for _ in range(1000):
    if generator.random() < 0.5:
      text = generator.randbytes(200).decode(errors='surrogateescape')
    else:
      text = ''.join(
        generator.choice([*fragments, *string.printable])
        for _ in range(generator.randrange(100))
      )
    program = find_program(text, tests)
    assert program is None or program.strip()


def test_long_repetitive_responses_do_not_take_quadratic_time():
  for pattern in (
    '```\n',
    '```python\n',
    '"""\n```\n',
    '>',
    '- ',
    '```python\n"""\n',
    ' ',
  ):
    find_program(pattern * (400_000 // len(pattern)))
