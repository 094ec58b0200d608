# SPDX-License-Identifier: Apache-2.0
"""Sandbox script with the part of pytest that tests of small programs use.

Executed after `_proxies.py` and before `_suite_runner.py`; never imported. pytest
itself is not available in the sandbox, and takes longer to import than most
programs to run. A suite that uses other names of pytest is invalid.
"""

from __future__ import annotations

from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable, Iterator
  from typing import Any

  from covrl.rewards.sandbox._proxies import SuiteError


# Scopes of fixtures that all tests of a suite share.
_SHARED_SCOPES = ('module', 'package', 'session')


class Approx:
  """`pytest.approx`: equals numbers, or collections of numbers, close to its own."""

  # Arrays leave comparisons with it to it.
  __array_ufunc__ = None

  def __init__(
    self,
    expected: Any,
    rel: float | None = None,
    abs: float | None = None,
    nan_ok: bool = False,
  ) -> None:
    if not _is_plain(expected):
      kind = type(expected).__name__
      raise SuiteError(f'pytest.approx of a {kind} is not supported')
    self._expected = _without_numpy(expected)
    self._is_array = _has_dimensions(expected)
    self._nan_ok = nan_ok
    self._relative = 1e-6 if rel is None and abs is None else rel or 0.0
    self._absolute = 1e-12 if abs is None else abs

  def __eq__(self, other: object) -> bool:
    expected, actual = self._expected, _without_numpy(other)
    # Arrays are compared with numbers entry by entry.
    if self._is_array and not isinstance(actual, list):
      return all(self._is_close(item, actual) for item in _flat(expected))
    if _has_dimensions(other) and not isinstance(expected, list | tuple | dict):
      return all(self._is_close(expected, item) for item in _flat(actual))
    return self._is_close(expected, actual)

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
        if type(other).__name__ in ('array', 'deque'):
          kind = type(other).__name__
          raise SuiteError(f'{kind} == pytest.approx is not supported')
        return (
          isinstance(other, list | tuple)
          and len(expected) == len(other)
          and all(map(self._is_close, expected, other))
        )
      case int() | float() | complex() if not isinstance(expected, bool):
        if type(other).__name__ in ('bool', 'Decimal', 'Fraction'):
          kind = type(other).__name__
          raise SuiteError(f'{kind} == pytest.approx is not supported')
        if type(other) not in (int, float, complex):
          return False
        if self._nan_ok and expected != expected:
          return other != other
        if expected == other or abs(expected) == float('inf'):
          return expected == other
        tolerance = max(self._relative * abs(expected), self._absolute)
        return abs(expected - other) <= tolerance
    return type(expected) is type(other) and expected == other


def _is_plain(value: Any) -> bool:
  """Whether a value is a number, text, or a collection or array of such."""
  if isinstance(value, dict):
    return type(value) is dict and all(map(_is_plain, value.values()))
  if isinstance(value, list | tuple):
    return all(map(_is_plain, value))
  number = _without_numpy(value)
  return number is not value or isinstance(
    value, int | float | complex | str | None
  )


def _has_dimensions(value: Any) -> bool:
  """Whether a value is an array of numpy with dimensions."""
  return (
    bool(getattr(value, 'shape', ())) and _without_numpy(value) is not value
  )


def _flat(items: Any) -> Iterator[Any]:
  """Yields the numbers in nested lists."""
  if isinstance(items, list):
    for item in items:
      yield from _flat(item)
  else:
    yield items


def _without_numpy(value: Any) -> Any:
  """Converts a number or an array of numpy to Python's numbers."""
  is_numpy = type(value).__module__.partition('.')[0] == 'numpy'
  return value.tolist() if is_numpy else value


class Failed(BaseException):
  """`pytest.fail.Exception`, which `except Exception` does not catch."""


def _raises(*arguments: Any, **options: Any) -> Raises:
  """`pytest.raises`: a context or, with a function and its arguments, a call."""
  if not arguments and 'expected_exception' not in options:
    raise SuiteError('pytest.raises without an exception is not supported')
  expected, *call = arguments or [options.pop('expected_exception')]
  if not call:
    if options.keys() - {'match'}:
      raise SuiteError(f'pytest.raises with {sorted(options)} is not supported')
    return Raises(expected, **options)
  context = Raises(expected)
  function, *args = call
  with context:
    function(*args, **options)
  return context


class Raises:
  """Context of `pytest.raises`: fails unless its code raises the exception.

  Attributes:
    value: the exception, once raised.
    type: class of the exception.
    typename: name of the class.
  """

  def __init__(self, expected: Any, *, match: str | None = None) -> None:
    self._expected = expected
    self._pattern = match
    self.value: Any = None
    self.type: Any = None
    self.typename = ''

  def __repr__(self) -> str:
    return f'<ExceptionInfo {self.value!r}>'

  def __getattr__(self, name: str) -> Any:
    if name.startswith('__'):
      raise AttributeError(name)
    raise SuiteError(f'{name} of pytest.raises is not supported')

  def errisinstance(self, classes: Any) -> bool:
    """Returns whether the exception is of a class, or of one of several."""
    return isinstance(self.value, classes)

  def match(self, pattern: str) -> bool:
    """Asserts that the exception's text contains a pattern."""
    import re

    assert re.search(pattern, str(self.value)), str(self.value)
    return True

  def __enter__(self) -> Raises:
    return self

  def __exit__(self, error_class: Any, error: Any, trace: Any) -> bool:
    if error_class is None:
      raise Failed(f'nothing raised {self._expected}')
    if not issubclass(error_class, self._expected):
      return False
    self.value, self.type = error, error_class
    self.typename = error_class.__name__
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
    if name == 'usefixtures':
      raise SuiteError('pytest.mark.usefixtures is not supported')
    return lambda *args, **kwargs: (
      args[0] if len(args) == 1 and callable(args[0]) else lambda test: test
    )


def _parametrize(
  argnames: Any, argvalues: Any, indirect: Any = False, *_: Any, **__: Any
) -> Callable[[Any], Any]:
  """`pytest.mark.parametrize`: stores the cases as an attribute of the test."""
  if indirect:
    raise SuiteError('parameters of fixtures (indirect) are not supported')
  keys = (
    [n.strip() for n in argnames.split(',') if n.strip()]
    if isinstance(argnames, str)
    else list(argnames)
  )
  # Only for one name that is not in a collection rows are the values themselves.
  is_bare = isinstance(argnames, str) and len(keys) == 1
  if is_bare and ',' in argnames:
    # Such rows are unpacked by pytest 9, and not by earlier versions.
    raise SuiteError(f'parameters {argnames!r} are not supported')
  rows = [
    [row] if is_bare and not isinstance(row, ParameterSet) else list(row)
    for row in argvalues
  ]
  for row in rows:
    if len(row) != len(keys):
      raise SuiteError(f'{keys} have {len(row)} parameters in one case')
  cases = [dict(zip(keys, row, strict=True)) for row in rows]

  def decorate(test: Any) -> Any:
    test.parameters = [*getattr(test, 'parameters', []), cases]
    return test

  return decorate


def _fixture(
  function: Any = None,
  *,
  scope: str = 'function',
  autouse: bool = False,
  **options: Any,
) -> Any:
  """`pytest.fixture`: marks a function as a fixture."""
  for name in ('params', 'name'):
    if options.get(name) is not None:
      raise SuiteError(f'fixtures with {name} are not supported')
  if scope not in ('function', *_SHARED_SCOPES):
    raise SuiteError(f'fixtures with scope {scope!r} are not supported')
  if function is None:
    return lambda function: _fixture(function, scope=scope, autouse=autouse)
  function.is_fixture, function.is_autouse = True, autouse
  function.is_shared = scope in _SHARED_SCOPES
  return function


class ParameterSet(tuple):
  """Values of `pytest.param`."""


def _param(*values: Any, **_: Any) -> ParameterSet:
  """`pytest.param`: returns the values."""
  return ParameterSet(values)


def _fail(reason: str = '', pytrace: bool = True) -> None:
  """`pytest.fail`: raises an exception."""
  del pytrace
  raise Failed(reason)


def _unsupported(name: str) -> Any:
  """Refuses other names of pytest, for which no program is to blame."""
  if name.startswith('__'):
    raise AttributeError(name)
  raise SuiteError(f'pytest.{name} is not supported')


def pytest_module() -> ModuleType:
  """Returns the module that suites import as `pytest`."""
  module = ModuleType('pytest')
  vars(module).update(
    approx=Approx,
    raises=_raises,
    mark=Mark(),
    fixture=_fixture,
    param=_param,
    fail=_fail,
    __getattr__=_unsupported,
  )
  return module
