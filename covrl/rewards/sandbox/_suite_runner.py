# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that runs an assert suite and reports its result.

Executed after `_suite_checks.py`; never imported.
"""

from __future__ import annotations

import builtins
import itertools
import sys
from types import FunctionType, ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
  import unittest
  from collections.abc import Collection
  from typing import Any

  from covrl.rewards.sandbox._fixtures import (
    Fixtures,
    call_hook,
    parameter_names,
  )
  from covrl.rewards.sandbox._local_program import LocalProgram
  from covrl.rewards.sandbox._program import (
    Program,
    _write,
    describe,
    to_json,
  )
  from covrl.rewards.sandbox._proxies import ProgramClient, Proxy, SuiteError
  from covrl.rewards.sandbox._pytest_names import pytest_module
  from covrl.rewards.sandbox._suite_checks import check_suite

  program: Program = Program(b'')
  client: ProgramClient | LocalProgram = ProgramClient()
  job: dict[str, Any] = {}


# Flags of the code of functions whose call runs nothing: generators, coroutines,
# asynchronous generators.
_DEFERRED_FLAGS = 0x20 | 0x80 | 0x200


class SuiteGlobals(dict):
  """Globals of the suite; undefined names are fetched from the program."""

  def __missing__(self, name: str) -> Any:
    if hasattr(builtins, name) or name.startswith('__'):
      raise KeyError(name)
    value = client.fetch(name)
    if isinstance(value, Proxy | type):
      self[name] = value
    return value


def run_suite() -> None:
  """Executes the suite and all tests that it defines.

  Raises:
    SuiteError: if the suite never uses the program, or runs no test.
  """
  sys.modules['pytest'] = pytest_module()
  if isinstance(client, ProgramClient):
    sys.modules['solution'] = _solution_module()
  suite_globals = SuiteGlobals(
    __name__='suite', __file__='suite.py', __builtins__=builtins
  )
  # Dataclasses look for their module.
  sys.modules['suite'] = ModuleType('suite')
  code = program.code
  assert code is not None
  check_suite(program.source)
  exec(code, suite_globals)
  test_count = 0
  if job['entry'] is not None:
    if 'check' not in suite_globals:
      raise SuiteError('the suite defines no check, which entry needs')
    suite_globals['check'](_entry(job['entry'], suite_globals))
    test_count += 1
  test_count += _run_tests(suite_globals)
  if not client.requests:
    raise SuiteError('the suite does not use the program')
  # Without tests and uses, every program would pass.
  if not test_count and not client.uses:
    raise SuiteError('the suite runs no test')


def _entry(name: str, suite_globals: SuiteGlobals) -> Any:
  """Returns the function that `check` is called with.

  Args:
    name: its name, or an expression such as `Solution().method`.
    suite_globals: globals of the suite.
  """
  if name.isidentifier():
    return client.fetch(name)
  return eval(name, suite_globals)


def _run_tests(suite_globals: SuiteGlobals) -> int:
  """Runs all test functions and classes of a suite; returns their number."""
  cases = _unittest_cases(suite_globals)
  mixins = {base for test_class in cases for base in test_class.__mro__}
  shared = Fixtures(suite_globals)
  test_count = 0
  for hook in ('setUpModule', 'setup_module'):
    call_hook(suite_globals, hook)
  for name, value in list(suite_globals.items()):
    if isinstance(value, type) and value in cases:
      test_count += _run_cases(cases[value])
    elif isinstance(value, type) and _is_test_class(name, value, mixins):
      test_count += _run_class(value, suite_globals, shared)
    elif name.startswith('test') and isinstance(value, FunctionType):
      test_count += _run_test(value, suite_globals, shared)
    elif name.startswith('test') and type(value).__name__ == 'partial':
      raise SuiteError('tests made by functools.partial are not supported')
  shared.finish()
  for hook in ('teardown_module', 'tearDownModule'):
    call_hook(suite_globals, hook)
  return test_count


def _is_test_class(
  name: str, value: type, mixins: Collection[type] = ()
) -> bool:
  """Whether pytest takes a class for one of tests: not with an `__init__`.

  Args:
    name: name of the class.
    value: the class.
    mixins: bases of classes of unittest, whose tests are run with these.
  """
  is_collected = getattr(value, '__test__', True) and value not in mixins
  has_init = value.__init__ is not object.__init__
  return name.startswith('Test') and is_collected and not has_init


def _run_class(
  test_class: type, suite_globals: SuiteGlobals, shared: Fixtures
) -> int:
  """Runs the tests of a class, and of classes in it; returns their number."""
  test_count = 0
  call_hook(test_class, 'setup_class')
  for name in dir(test_class):
    value = getattr(test_class, name)
    if isinstance(value, type) and _is_test_class(name, value):
      test_count += _run_class(value, suite_globals, shared)
    elif name.startswith('test') and callable(value):
      instance = test_class()
      test = getattr(instance, name)
      test_count += _run_test(test, suite_globals, shared, instance)
  call_hook(test_class, 'teardown_class')
  return test_count


class SolutionModule(ModuleType):
  """The module `solution`; its names cannot be set."""

  def __setattr__(self, name: str, value: object) -> None:
    raise SuiteError(f'solution.{name} of the program cannot be set')


def _solution_module() -> ModuleType:
  """Returns the module `solution`, whose names are fetched from the program."""
  module = SolutionModule('solution')

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


def _run_test(
  test: Any,
  suite_globals: SuiteGlobals,
  shared: Fixtures,
  instance: Any = None,
) -> int:
  """Runs a test function for every combination of its parameters.

  Args:
    test: the function or method.
    suite_globals: globals of the suite.
    shared: fixtures that all tests share.
    instance: the object whose method it is, if any.

  Returns:
    The number of combinations.
  """
  owner, kind = (
    (suite_globals, 'function') if instance is None else (instance, 'method')
  )
  if test.__code__.co_flags & _DEFERRED_FLAGS:
    raise SuiteError('tests that are generators or coroutines do not run')
  combinations = [*itertools.product(*getattr(test, 'parameters', []))]
  for combination in combinations:
    parameters: dict[str, Any] = {}
    for case in combination:
      parameters.update(case)
    fixtures = Fixtures(suite_globals, instance, shared)
    call_hook(owner, f'setup_{kind}', test)
    fixtures.make_automatic()
    for name in parameter_names(test):
      if name not in parameters:
        parameters[name] = fixtures.make(name)
    test(**parameters)
    fixtures.finish()
    call_hook(owner, f'teardown_{kind}', test)
  return len(combinations)


def _unittest_cases(
  suite_globals: SuiteGlobals,
) -> dict[type, list[unittest.TestCase]]:
  """Returns the tests of each class of `unittest`.

  Raises:
    SuiteError: a test may be skipped, is expected to fail, or has set-up of pytest.
  """
  unittest = sys.modules.get('unittest')
  if unittest is None:
    return {}
  load = unittest.defaultTestLoader.loadTestsFromTestCase
  cases = {
    value: [*load(value)]
    for value in suite_globals.values()
    if isinstance(value, type) and issubclass(value, unittest.TestCase)
  }
  for case in itertools.chain.from_iterable(cases.values()):
    for marked in (case, getattr(case, case.id().rpartition('.')[2])):
      if getattr(marked, '__unittest_expecting_failure__', False):
        raise SuiteError('tests that are expected to fail are not supported')
      if hasattr(marked, '__unittest_skip__'):
        raise SuiteError('tests that may be skipped are not supported')
  for test_class in cases:
    for hook in ('setup_method', 'teardown_method'):
      if hasattr(test_class, hook):
        raise SuiteError(f'{hook} in a class of unittest is not supported')
    if any(Fixtures(suite_globals, test_class).automatic()):
      raise SuiteError('automatic fixtures and unittest are not supported')
  return cases


def _run_cases(cases: list[unittest.TestCase]) -> int:
  """Runs the tests of a class of `unittest`, and returns their number."""
  import unittest

  class Result(unittest.TestResult):
    def addError(self, test: Any, err: Any) -> None:
      raise err[1]

    addFailure = addError

    def addSkip(self, test: Any, reason: str) -> None:
      message = 'tests that may be skipped are not supported'
      if isinstance(client, ProgramClient):
        raise SuiteError(message)
      # In one process the program may have raised `SkipTest`.
      raise AssertionError(message)

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
      if err is not None:
        raise err[1]

  if not cases:
    return 0
  test_class: Any = type(cases[0])
  test_class.setUpClass()
  for case in cases:
    case.run(Result())
  test_class.tearDownClass()
  test_class.doClassCleanups()
  for _, error, _ in test_class.tearDown_exceptions:
    raise error
  return len(cases)


def judge_suite() -> dict[str, str]:
  """Returns the suite's verdict, a value of `suites.Verdict`, and its reason."""
  try:
    run_suite()
  except BaseException as error:
    is_of_suite = isinstance(error, SuiteError)
    if isinstance(client, ProgramClient):
      # In one process these may be the program's, which the run apart tells.
      is_import_error = isinstance(error, ImportError | SyntaxError)
      is_of_program = getattr(error, 'is_of_program', False)
      is_of_suite |= is_import_error and not is_of_program
      # `unittest.SkipTest`. That of a program is another class here.
      is_of_suite |= type(error).__module__ == 'unittest.case'
      # Such as a suite for a function with the name of a built-in one.
      is_of_suite |= not client.requests
    verdict = 'broken' if is_of_suite else 'failed'
    return {'verdict': verdict, 'reason': describe(error)}
  return {'verdict': 'passed', 'reason': ''}


if __name__ == '__main__':
  is_apart = job['program'] is None
  client = ProgramClient() if is_apart else LocalProgram(job['program'])
  _write(3, to_json(judge_suite()).encode())
