# SPDX-License-Identifier: Apache-2.0
"""Assert suites: what pytest and unittest run is run, or no program is scored."""

import ast
import collections
import pathlib

import pytest

from covrl.rewards import Status, judge_code, sandbox
from covrl.rewards.sandbox.suites import SUITE_SCRIPTS

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
  assert identity(np.zeros((0, 3))).shape == (0, 3)
  values = {'a': 1, 'b': [5]}
  assert identity(values.keys()) == {'b', 'a'}
  assert [*identity(values.items())] == [('a', 1), ('b', [5])]
  assert [*identity(values.values())] == [1, [5]]
  items = np.empty(2, object)
  items[:] = [[1], None]
  assert (identity(items) == items).all()
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
  'classes in classes': """
class TestOuter:
  class TestInner:
    def test_double(self):
      assert double(1) == 2
""",
  'clean-up of a class of unittest': """
def check():
  assert double(1) == 2
class TestDouble(unittest.TestCase):
  @classmethod
  def setUpClass(cls):
    cls.addClassCleanup(check)
  def test_zero(self):
    self.assertEqual(double(0), 0)
""",
  'dataclasses with annotations as text': """
from __future__ import annotations
import dataclasses, os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
@dataclasses.dataclass
class Case:
  x: int
def test_double():
  assert double(Case(1).x) == 2
""",
  'asserts of the end of a module': """
def test_nothing():
  pass
def teardown_module():
  assert double(1) == 2
""",
  'failures other than exceptions': """
def test_double():
  try:
    if double(1) != 2:
      pytest.fail('wrong')
  except Exception:
    pass
def test_error():
  try:
    with pytest.raises(expected_exception=ValueError) as info:
      double(-1)
    assert info.errisinstance(ValueError)
  except Exception:
    assert False
""",
  'fixtures of a class': """
class TestDouble:
  @pytest.fixture(autouse=True)
  def set_up(self, x):
    self.y = 2 * x
  @pytest.fixture
  def x(self):
    return 1
  def test_double(self, x):
    assert double(x) == 2 == self.y
""",
  'fixtures that tests share': """
@pytest.fixture(scope='module')
def values():
  values = []
  yield values
  assert len(values) == 2
def test_first(values):
  values.append(double(1))
def test_second(values):
  values.append(double(1))
  assert values == [2, 2]
""",
  'decorated tests': """
import functools
def noted(test):
  @functools.wraps(test)
  def run(*args, **kwargs):
    return test(*args, **kwargs)
  return run
@pytest.fixture
def x():
  return 1
@noted
def test_double(x):
  assert double(x) == 2
""",
  'approximate numbers and arrays': """
import numpy as np
def test_double():
  assert np.array([double(1), 2]) == pytest.approx(2)
  assert double(1) == pytest.approx(np.array([2.0, 2.0]))
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
    source = suite.replace('2', value)
    if 'from __future__' not in source:
      source = IMPORTS + source
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
    'import tempfile\nassert tempfile.gettempdir() and double(1) == 2',
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
    'def open(x):\n  return x\nassert open(double(1)) == 2\n'
    'import tempfile\nos = [2]\nos.remove(double(1))\nassert os == []'
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
    'from decimal import Decimal\n'
    'assert Decimal(double(1)) == pytest.approx(2)',
    'from decimal import Decimal\n'
    'assert Decimal(double(1)) == pytest.approx(Decimal(2))',
    '@pytest.fixture(scope="class")\ndef x():\n  return 1\n'
    'def test_x(x):\n  assert double(x) == 2',
    '@pytest.fixture(autouse=True)\ndef x():\n  return 1\n'
    'class TestX(unittest.TestCase):\n'
    '  def test_x(self):\n    self.assertEqual(double(1), 2)',
    'class TestX(unittest.TestCase):\n  def setup_method(self):\n    self.x = 1\n'
    '  def test_x(self):\n    self.assertEqual(double(self.x), 2)',
    '@unittest.skip("later")\ndef test_x():\n  assert double(1) == 2',
    'def test_x():\n  assert double(1) == 2\n  raise unittest.SkipTest("rest")',
  ],
)
def test_suites_that_need_other_features_score_no_program(judge, suite):
  outcome = judge_code(PROGRAM, [{'asserts': IMPORTS + suite}], judge=judge)
  assert outcome.status is Status.INFRASTRUCTURE, outcome


def test_scripts_that_share_a_namespace_define_different_names():
  # A later one would replace the function that an earlier one calls.
  folder = pathlib.Path(sandbox.__file__).parent
  scripts = ['program', 'random_seed', 'descendants', 'job_runner']
  counts = collections.Counter(
    node.name
    for script in (*scripts, *SUITE_SCRIPTS)
    for node in ast.parse((folder / f'_{script}.py').read_text()).body
    if isinstance(node, ast.FunctionDef | ast.ClassDef)
  )
  assert counts['ProgramClient'] == 1
  assert [name for name, count in counts.items() if count > 1] == []
