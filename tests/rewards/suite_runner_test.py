# SPDX-License-Identifier: Apache-2.0
"""Assert suites: what pytest and unittest run is run, or no program is scored."""

import pytest

from covrl.rewards import Status, judge_code

PROGRAM = """
def double(x):
  if x < 0:
    raise ValueError('negative')
  return 2 * x
def identity(x):
  return x
def extend(values):
  values.append(1)
class Box:
  pass
"""
IMPORTS = 'import pytest\nimport unittest\n'

# Suites that a right program passes; with 3 in place of 2 it fails them.
SUITES = {
  'raises as a call': """
def test_error():
  assert double(1) == 2
  pytest.raises(ValueError, double, -1)
  pytest.raises(ValueError, double, x=-1)
""",
  'information on an exception': """
def test_error():
  assert double(1) == 2
  with pytest.raises(ValueError) as info:
    double(-1)
  assert 'negative' in str(info) and info.typename == 'ValueError'
""",
  'parameters by keyword': """
@pytest.mark.parametrize(argnames='x,y', argvalues=[(0, 0), (1, 2)], ids=str)
def test_double(x, y):
  assert double(x) == y
""",
  'parameters that are dictionaries': """
@pytest.mark.parametrize('x', [{'value': 1}, pytest.param({'value': 1}, id='b')])
def test_double(x):
  assert double(x['value']) == 2
""",
  'one parameter in a collection of names': """
@pytest.mark.parametrize(('x',), [(1,), [1], pytest.param(1)])
@pytest.mark.parametrize(['y'], [(2,)])
def test_double(x, y):
  assert double(x) == y
""",
  'sets of several parameters': """
@pytest.mark.parametrize('x, y,', [pytest.param(1, 2), (0, 0)])
def test_double(x, y):
  assert double(x) == y
""",
  'approximate infinity': """
def test_double():
  infinity = float('inf')
  assert double(infinity) == pytest.approx(infinity)
  assert double(1) == pytest.approx(2)
  assert double(1) != pytest.approx(infinity)
  assert double(1) != pytest.approx(-infinity)
""",
  'values of the standard library': """
import collections, pathlib, uuid
import numpy as np
from solution import identity
def test_identity():
  assert double(1) == 2
  for value in (
    collections.deque([1, 5], 3),
    collections.Counter('aab'),
    collections.OrderedDict(b=1, a=4),
    collections.defaultdict(int, a=1),
    pathlib.Path('/a/b'),
    uuid.UUID(int=5),
  ):
    result = identity(value)
    assert type(result) == type(value) and result == value
  assert identity(collections.deque([1], 3)).maxlen == 3
  assert identity(collections.Counter('aab')).most_common(1)[0][0] == 'a'
  assert identity(collections.defaultdict(list))['x'] == []
  assert (identity(np.array(['a', 'b'])) == ['a', 'b']).all()
def test_change():
  values = collections.deque([5])
  extend(values)
  assert values == collections.deque([5, 1])
""",
  'inherited tests': """
class Base:
  def test_double(self):
    assert double(1) == 2
class TestCase:
  def __init__(self, x):
    self.x = x
  def test_nothing(self):
    assert False
class TestBase(Base):
  __test__ = False
  def test_later(self):
    assert False
class TestDouble(Base):
  test_data = [1, 2]
  def test_zero(self, x=0, *, y=0):
    assert double(x) == y
""",
  'tests that a class of unittest inherits': """
class TestMixin:
  def test_double(self):
    self.assertEqual(double(self.x), 2)
class TestOne(TestMixin, unittest.TestCase):
  x = 1
""",
  'set-up of methods': """
class TestDouble:
  @classmethod
  def setup_class(cls):
    cls.x = 1
  def setup_method(self, method):
    self.y = 2
  def test_double(self):
    assert double(self.x) == self.y
""",
  'set-up of functions': """
calls = []
def setup_module():
  calls.append('module')
def setup_function(function):
  calls.append(function.__name__)
def teardown_function():
  calls.pop()
def test_first():
  assert calls == ['module', 'test_first'] and double(1) == 2
def test_second():
  assert calls == ['module', 'test_second']
""",
  'automatic fixtures, made once': """
made = []
@pytest.fixture(autouse=True)
def values():
  made.append(1)
  yield made
  made.clear()
@pytest.fixture
def other(values):
  return values
def test_first(values, other):
  assert values == other == [1] and double(1) == 2
def test_second(values):
  assert values == [1]
""",
  'set-up of a class of unittest': """
class TestDouble(unittest.TestCase):
  @classmethod
  def setUpClass(cls):
    cls.x = 1
  def test_double(self):
    self.assertEqual(double(self.x), 2)
""",
  'approximate arrays and NaN': """
import numpy as np
def test_double():
  assert np.array([double(1)]) == pytest.approx(np.array([2 + 1e-9]))
  assert np.float64(double(1)) == pytest.approx(2)
  assert [float('nan')] == pytest.approx([float('nan')], nan_ok=True)
  assert float('nan') != pytest.approx(float('nan'))
""",
}


@pytest.mark.parametrize('name', SUITES)
def test_features_of_pytest_and_unittest_are_run(judge, name):
  suite = SUITES[name]
  for value, status in (('2', Status.SCORED), ('3', Status.WRONG)):
    source = IMPORTS + suite.replace('2', value)
    outcome = judge_code(PROGRAM, [{'asserts': source}], judge=judge)
    assert outcome.status is status, outcome
    assert outcome.score == (value == '2')


@pytest.mark.parametrize(
  'test',
  [
    'import io, contextlib\n'
    'with contextlib.redirect_stdout(io.StringIO()) as out:\n  double(1)\n'
    'assert out.getvalue() == ""',
    'from contextlib import redirect_stderr\nassert double(1) == 2',
    'import io, sys\nsys.stdout = io.StringIO()\nassert double(1) == 2',
    'from unittest.mock import patch\nwith patch("solution.double"):\n  double(1)',
    'from unittest import mock\nwith mock.patch("builtins.print"):\n  double(1)',
    'import unittest.mock\n@unittest.mock.patch("builtins.print")\n'
    'def test_x(m):\n  double(1)',
    'def test_x():\n  with open("/tmp/x", "w") as file:\n    file.write("1")\n'
    '  assert double(1) == 2',
    'import pathlib\npathlib.Path("/tmp/x").write_text("1")\n'
    'assert double(1) == 2',
    'import tempfile\nassert double(1) == 2',
    'import os\nos.environ["X"] = "1"\nassert double(1) == 2',
    'import asyncio\nassert asyncio.run(double(1)) == 2',
    'x = [1]\nassert identity(x) is x',
    'x = [1]\nassert identity(x) is not x',
    'assert double(1) == 2 and type(Box()) is Box',
    'import solution\nsolution.identity = len\nassert double(1) == 2',
    'class TestX(unittest.TestCase):\n  @unittest.expectedFailure\n'
    '  def test_x(self):\n    self.assertEqual(double(1), 3)',
  ],
)
def test_suites_that_need_the_program_in_their_process_score_none(judge, test):
  outcome = judge_code(PROGRAM, [{'asserts': IMPORTS + test}], judge=judge)
  assert outcome.status is Status.INFRASTRUCTURE, outcome


def test_identity_with_constants_and_classes_is_judged(judge):
  suite = (
    'assert double(1) is not None and type(double(1)) is int\n'
    'assert type(identity([])) is list and identity(True) is True\n'
    'def open(x):\n  return x\nassert open(double(1)) == 2'
  )
  assert judge_code(PROGRAM, [{'asserts': suite}], judge=judge).score == 1


@pytest.mark.parametrize(
  'suite',
  [
    'def test_x():\n  with pytest.warns(UserWarning):\n    double(1)',
    'from pytest import importorskip\nassert double(1) == 2',
    '@pytest.fixture(params=[1, 2])\ndef x():\n  return 1\n'
    'def test_x(x):\n  assert double(x) == 2',
    '@pytest.mark.parametrize("x", [1], indirect=True)\n'
    'def test_x(x):\n  assert double(x) == 2',
    '@pytest.fixture\ndef x():\n  return 1\n'
    '@pytest.mark.usefixtures("x")\ndef test_x():\n  assert double(1) == 2',
    '@pytest.mark.parametrize("x,", [(1,)])\n'
    'def test_x(x):\n  assert double(1) == 2',
    '@pytest.mark.parametrize("x, y", [(1, 2, 3)])\n'
    'def test_x(x, y):\n  assert double(x) == y',
    'def setup_module(module):\n  module.x = 1\n'
    'def test_x():\n  assert double(x) == 2',
    'def test_x():\n  pytest.raises(ValueError, message="none")',
  ],
)
def test_suites_that_need_other_features_score_no_program(judge, suite):
  outcome = judge_code(PROGRAM, [{'asserts': IMPORTS + suite}], judge=judge)
  assert outcome.status is Status.INFRASTRUCTURE, outcome


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


def test_an_object_of_the_program_equals_no_value_of_the_suite(judge):
  # In one process its class would decide.
  program = (
    'class Any:\n  def __eq__(self, x): return True\ndef f(): return Any()'
  )
  outcome = judge_code(program, [{'asserts': 'assert f() == 3'}], judge=judge)
  assert (outcome.score, outcome.status) == (0.0, Status.WRONG)
