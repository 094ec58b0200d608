# SPDX-License-Identifier: Apache-2.0
"""Assert suites: what pytest and unittest run is run, or no program is scored."""

import pytest

from covrl.rewards import Status, judge_code

PROGRAM = """
def double(x):
  if x < 0:
    raise ValueError('negative')
  return 2 * x
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
  'suite',
  [
    'def test_x():\n  with pytest.warns(UserWarning):\n    double(1)',
    'from pytest import importorskip\nassert double(1) == 2',
    '@pytest.fixture(params=[1, 2])\ndef x():\n  return 1\n'
    'def test_x(x):\n  assert double(x) == 2',
    '@pytest.mark.parametrize("x", [1], indirect=True)\n'
    'def test_x(x):\n  assert double(x) == 2',
    'def setup_module(module):\n  module.x = 1\n'
    'def test_x():\n  assert double(x) == 2',
    'def test_x():\n  pytest.raises(ValueError, message="none")',
  ],
)
def test_suites_that_need_other_features_score_no_program(judge, suite):
  outcome = judge_code(PROGRAM, [{'asserts': IMPORTS + suite}], judge=judge)
  assert outcome.status is Status.INFRASTRUCTURE, outcome
