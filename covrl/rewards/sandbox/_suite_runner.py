# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that runs an assert suite and reports its result.

Executed after `_proxies.py`; never imported. It provides the part of pytest that
tests of small programs use: pytest itself is not available in the sandbox, and
takes longer to import than most programs to run.
"""

from __future__ import annotations

import builtins
import itertools
import sys
from types import FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
  import unittest
  from collections.abc import Callable
  from typing import Any

  from covrl.rewards.sandbox._program import (
    Program,
    _write,
    describe,
    to_json,
  )
  from covrl.rewards.sandbox._proxies import ProgramClient, Proxy, SuiteError

  program: Program = Program(b'')
  client: ProgramClient = ProgramClient()
  job: dict[str, Any] = {}


_GENERATOR_FLAG = (
  0x20  # the flag of a generator function's code, `CO_GENERATOR`
)
# Functions whose call runs nothing: generators, coroutines, asynchronous ones.
_DEFERRED_FLAGS = _GENERATOR_FLAG | 0x80 | 0x200


class SuiteGlobals(dict):
  """Globals of the suite; undefined names are fetched from the program."""

  def __missing__(self, name: str) -> Any:
    if hasattr(builtins, name) or name.startswith('__'):
      raise KeyError(name)
    value = client.fetch(name)
    if isinstance(value, Proxy | type):
      self[name] = value
    return value


class Approx:
  """`pytest.approx`: equals numbers, or collections of numbers, close to its own."""

  def __init__(
    self, expected: Any, rel: float | None = None, abs: float | None = None
  ) -> None:
    self._expected = expected
    self._relative = 1e-6 if rel is None and abs is None else rel or 0.0
    self._absolute = 1e-12 if abs is None else abs

  def __eq__(self, other: object) -> bool:
    return self._is_close(self._expected, other)

  def _is_close(self, expected: Any, other: Any) -> bool:
    """Returns whether a value, or each item of a collection, is close."""
    match expected:
      case dict():
        return (
          isinstance(other, dict)
          and expected.keys() == other.keys()
          and all(self._is_close(expected[key], other[key]) for key in expected)
        )
      case list() | tuple():
        return (
          isinstance(other, list | tuple)
          and len(expected) == len(other)
          and all(map(self._is_close, expected, other))
        )
      case int() | float() | complex() if type(other) in (int, float, complex):
        tolerance = max(self._relative * abs(expected), self._absolute)
        return expected == other or abs(expected - other) <= tolerance
    return type(expected) is type(other) and expected == other


class Raises:
  """`pytest.raises`: fails unless the enclosed code raises the exception.

  Attributes:
    value: the exception, once raised.
    type: class of the exception.
  """

  def __init__(self, expected: Any, *, match: str | None = None) -> None:
    self._expected = expected
    self._pattern = match
    self.value: Any = None
    self.type: Any = None

  def match(self, pattern: str) -> bool:
    """Asserts that the exception's text contains a pattern."""
    import re

    assert re.search(pattern, str(self.value)), str(self.value)
    return True

  def __enter__(self) -> Raises:
    return self

  def __exit__(self, error_class: Any, error: Any, trace: Any) -> bool:
    if error_class is None:
      raise AssertionError(f'nothing raised {self._expected}')
    if not issubclass(error_class, self._expected):
      return False
    self.value, self.type = error, error_class
    if self._pattern is not None:
      self.match(self._pattern)
    return True


class Mark:
  """`pytest.mark`: supports `parametrize`; other marks have no effect."""

  def __getattr__(self, name: str) -> Any:
    if name == 'parametrize':
      return _parametrize
    if name in ('skip', 'skipif', 'xfail'):
      raise SuiteError(f'tests that may be skipped ({name}) are not supported')
    return lambda *args, **kwargs: (
      args[0] if len(args) == 1 and callable(args[0]) else lambda test: test
    )


def _parametrize(names: Any, rows: Any, **_: Any) -> Callable[[Any], Any]:
  """`pytest.mark.parametrize`: stores the cases as an attribute of the test."""
  keys = (
    [n.strip() for n in names.split(',')]
    if isinstance(names, str)
    else list(names)
  )
  cases = [
    dict(zip(keys, [row] if len(keys) == 1 else row, strict=True))
    for row in (getattr(row, 'values', row) for row in rows)
  ]

  def decorate(test: Any) -> Any:
    test.parameters = [*getattr(test, 'parameters', []), cases]
    return test

  return decorate


def _fixture(function: Any = None, **_: Any) -> Any:
  """`pytest.fixture`: marks a function as a fixture."""
  if function is None:
    return _fixture
  function.is_fixture = True
  return function


def _param(*values: Any, **_: Any) -> Any:
  """`pytest.param`: returns the values."""
  return values[0] if len(values) == 1 else values


def _fail(reason: str = '') -> None:
  """`pytest.fail`: raises an `AssertionError`."""
  raise AssertionError(reason)


def run_suite() -> None:
  """Executes the suite and all tests that it defines.

  Raises:
    SuiteError: if the suite never uses the program, or runs no test.
  """
  pytest_module = ModuleType('pytest')
  vars(pytest_module).update(
    approx=Approx,
    raises=Raises,
    mark=Mark(),
    fixture=_fixture,
    param=_param,
    fail=_fail,
  )
  sys.modules['pytest'] = pytest_module
  sys.modules['solution'] = _solution_module()
  suite_globals = SuiteGlobals(__name__='suite', __builtins__=builtins)
  code = program.code
  assert code is not None
  exec(code, suite_globals)
  test_count = 0
  if job['entry'] is not None:
    if 'check' not in suite_globals:
      raise SuiteError('the suite defines no check, which entry needs')
    suite_globals['check'](client.fetch(job['entry']))
    test_count += 1
  unittest = sys.modules.get('unittest')
  for name, value in list(suite_globals.items()):
    value_class = value if isinstance(value, type) else object
    if unittest is not None and issubclass(value_class, unittest.TestCase):
      test_count += _run_cases(unittest, value)
    elif value_class is value and name.startswith('Test'):
      for method in [m for m in vars(value) if m.startswith('test')]:
        instance = value()
        getattr(instance, 'setup_method', lambda *_: None)()
        test_count += _run_test(getattr(instance, method), suite_globals)
    elif name.startswith('test') and isinstance(value, FunctionType):
      test_count += _run_test(value, suite_globals)
  if not client.requests:
    raise SuiteError('the suite does not use the program')
  # Without tests and uses, every program would pass.
  if not test_count and not client.uses:
    raise SuiteError('the suite runs no test')


def _solution_module() -> ModuleType:
  """Returns the module `solution`, whose names are fetched from the program."""
  module = ModuleType('solution')

  def get(name: str) -> Any:
    if name == '__all__':
      return []
    if name.startswith('__'):
      raise AttributeError(name)
    try:
      return client.fetch(name)
    except KeyError:
      # The program is at fault: the suite uses a name that should exist.
      raise LookupError(f'the program defines no {name}') from None

  vars(module)['__getattr__'] = get
  return module


def _run_test(test: Any, suite_globals: SuiteGlobals) -> int:
  """Runs a test function for every combination of its parameters.

  Returns:
    The number of combinations.
  """
  if test.__code__.co_flags & _DEFERRED_FLAGS:
    raise SuiteError('tests that are generators or coroutines do not run')
  combinations = [*itertools.product(*getattr(test, 'parameters', []))]
  for combination in combinations:
    parameters: dict[str, Any] = {}
    for case in combination:
      parameters.update(case)
    generators: list[Any] = []
    for name in _parameter_names(test):
      if name not in parameters:
        parameters[name] = _make_fixture(name, suite_globals, generators)
    test(**parameters)
    for generator in generators[::-1]:
      next(generator, None)
  return len(combinations)


def _make_fixture(
  name: str, suite_globals: SuiteGlobals, generators: list[Any]
) -> Any:
  """Returns the value of a fixture; generators are finished after the test."""
  function: Any = dict.get(suite_globals, name)
  if not getattr(function, 'is_fixture', False):
    raise SuiteError(f'a test needs the unknown fixture {name}')
  arguments = {
    parameter: _make_fixture(parameter, suite_globals, generators)
    for parameter in _parameter_names(function)
  }
  value = function(**arguments)
  if function.__code__.co_flags & _GENERATOR_FLAG:
    generators.append(value)
    return next(value)
  return value


def _parameter_names(function: Any) -> list[str]:
  """Returns the names of a function's parameters."""
  code = function.__code__
  names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
  is_bound = getattr(function, '__self__', None) is not None
  return list(names[is_bound:])


def _run_cases(unittest: Any, test_class: type[unittest.TestCase]) -> int:
  """Runs the test methods of a `unittest` class, and returns their number."""

  class Result(unittest.TestResult):
    def addError(self, test: Any, err: Any) -> None:
      raise err[1]

    addFailure = addError

    def addSkip(self, test: Any, reason: str) -> None:
      raise SuiteError('tests that may be skipped are not supported')

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
      if err is not None:
        raise err[1]

  suite = unittest.defaultTestLoader.loadTestsFromTestCase(test_class)
  cases = [*suite]
  for case in cases:
    case.run(Result())
  return len(cases)


def judge_suite() -> dict[str, str]:
  """Returns `passed`, `failed`, or `broken` if the suite itself is invalid."""
  try:
    run_suite()
  except BaseException as error:
    is_of_suite = isinstance(error, SuiteError | ImportError | SyntaxError)
    if is_of_suite and not getattr(error, 'is_of_program', False):
      return {'broken': describe(error)}
    return {'failed': describe(error)}
  return {'passed': ''}


if __name__ == '__main__':
  _write(3, to_json(judge_suite()).encode())
