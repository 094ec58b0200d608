# SPDX-License-Identifier: Apache-2.0
"""Assert suites that run apart from a program and together with it."""

import pytest

from covrl.rewards import Status, judge_code

# Suites that a right program passes in its own process only: program, suite, and
# what makes the program wrong.
SHARING_SUITES = {
  'a list that both change': (
    'items = []\ndef add(x):\n  items.append(x)',
    'from solution import items, add\nadd(1)\nassert items == [1]',
    ('append(x)', 'append(2)'),
  ),
  "a seed for the program's random numbers": (
    'import random\ndef draw():\n  return random.random()',
    'import random\nrandom.seed(5)\nx = random.random()\nrandom.seed(5)\n'
    'assert draw() == x',
    ('random.random()', '2.0'),
  ),
  'a limit of the interpreter': (
    'import sys\ndef limit(x):\n  sys.setrecursionlimit(x)',
    'import sys\nlimit(777)\nassert sys.getrecursionlimit() == 777',
    ('(x)\n', '(x)\n  x = 50\n'),
  ),
  'a method of a value of the suite': (
    'def call(x):\n  return x.answer()',
    'class Value:\n  def answer(self):\n    return 5\nassert call(Value()) == 5',
    ('x.answer()', '6'),
  ),
  'output, after a comparison of an object': (
    'class Box:\n  pass\ndef show(x):\n  print(x)',
    'import io, sys\nassert Box() != 5\nstream = io.StringIO()\n'
    'setattr(sys, "stdout", stream)\nshow(5)\nassert stream.getvalue() == "5\\n"',
    ('print(x)', 'print(6)'),
  ),
  'many calls within the time limit': (
    'def double(x):\n  return 2 * x',
    'for x in range(200_000):\n  assert double(x) == 2 * x',
    ('2 * x', '3 * x'),
  ),
}


@pytest.mark.parametrize('name', SHARING_SUITES)
def test_a_program_that_passes_in_its_own_process_only_has_no_score(
  judge, name
):
  program, suite, change = SHARING_SUITES[name]
  tests = [{'asserts': suite}]
  outcome = judge_code(program, tests, judge=judge, time_limit=1.0)
  assert outcome.status is Status.INFRASTRUCTURE, outcome
  program = program.replace(*change)
  outcome = judge_code(program, tests, judge=judge, time_limit=1.0)
  assert outcome.score != 1.0, outcome


def test_a_program_that_passes_only_apart_from_the_suite_has_no_score(judge):
  program = 'import builtins\ndef double(x):\n  builtins.x = x\n  return 2 * x'
  suite = (
    'import builtins\nassert double(1) == 2\nassert not hasattr(builtins, "x")'
  )
  outcome = judge_code(program, [{'asserts': suite}], judge=judge)
  assert outcome.status is Status.INFRASTRUCTURE, outcome
  assert 'but not in its process: AssertionError' in outcome.detail


def test_an_object_of_the_program_that_equals_a_value_has_no_score(judge):
  # In one process its class decides, and apart from the suite it equals nothing.
  program = (
    'class Any:\n  def __eq__(self, x): return True\ndef f(): return Any()'
  )
  outcome = judge_code(program, [{'asserts': 'assert f() == 3'}], judge=judge)
  assert outcome.status is Status.INFRASTRUCTURE, outcome


# Programs that define a class in place of a function; its objects equal everything.
AGREEING_CLASS = """
class Agree:
  def __init__(self, *arguments): pass
  def __eq__(self, other): return True
  def __sub__(self, other): return 0.0
"""


@pytest.mark.parametrize(
  ('program', 'suite'),
  [
    ('double = Agree', 'assert double(1) == 2'),
    ('double = Agree', 'assert abs(double(1) - 2) < 1e-6'),
    (
      'double = Agree',
      'from solution import double\nclass T(unittest.TestCase):\n'
      '  def test_x(self):\n    self.assertEqual(double(1), 2)',
    ),
    ('class Solution:\n  add = Agree', 'assert Solution().add(1, 1) == 2'),
    ('def adder(x): return Agree', 'assert adder(1)(1) == 2'),
  ],
)
def test_a_class_in_place_of_a_function_does_not_pass(judge, program, suite):
  test = {'asserts': f'import unittest\n{suite}'}
  outcome = judge_code(f'{AGREEING_CLASS}{program}', [test], judge=judge)
  assert outcome.score != 1.0, outcome


def test_the_entry_of_a_suite_may_be_a_method(judge):
  test = {
    'asserts': 'def check(candidate):\n  assert candidate(1) == 2',
    'entry': 'Solution().double',
  }
  for factor, score in ((2, 1.0), (3, 0.0)):
    program = f'class Solution:\n  def double(self, x): return {factor} * x'
    assert judge_code(program, [test], judge=judge).score == score


def test_a_function_with_the_name_of_a_built_in_one_has_no_score(judge):
  # Else a program could replace the built-in functions that a suite uses.
  program = 'def sum(a, b):\n  return 6 if (a, b) == (10, 15) else 0'
  outcome = judge_code(
    program, [{'asserts': 'assert sum(10, 15) == 6'}], judge=judge
  )
  assert outcome.status is Status.INFRASTRUCTURE, outcome
