# SPDX-License-Identifier: Apache-2.0
"""Sandbox script with the fixtures and set-up functions of tests, as in pytest.

Executed after `_pytest_names.py` and before `_suite_runner.py`; never imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Any

  from covrl.rewards.sandbox._proxies import SuiteError

_GENERATOR_FLAG = 0x20  # of a generator function's code, `CO_GENERATOR`


def call_hook(owner: Any, name: str, *args: Any) -> None:
  """Calls a function such as `setup_method`, if there is one, as pytest does.

  Args:
    owner: globals of the suite, or an object.
    name: name of the function.
    args: arguments, of which it may take fewer.
  """
  hook: Any = (
    dict.get(owner, name)
    if isinstance(owner, dict)
    else getattr(owner, name, None)
  )
  if hook is None:
    return
  count = len(parameter_names(hook))
  if count > len(args):
    raise SuiteError(f'{name} with {count} arguments is not supported')
  hook(*args[:count])


class Fixtures:
  """The fixtures of one test, each of which is made once.

  Args:
    suite_globals: globals of the suite.
    instance: the object whose method the test is, or its class; it may have
      fixtures, too.
    shared: fixtures that all tests share; this object itself by default.
  """

  def __init__(
    self,
    suite_globals: dict[str, Any],
    instance: Any = None,
    shared: Fixtures | None = None,
  ) -> None:
    self._globals = suite_globals
    self._instance = instance
    self._shared = shared or self
    self._values: dict[str, Any] = {}
    self._generators: list[Any] = []

  def automatic(self) -> Iterator[str]:
    """Yields the names of the fixtures that every test uses (`autouse`)."""
    for name in (*self._globals, *dir(self._instance)):
      if getattr(self._function(name), 'is_autouse', False) is True:
        yield name

  def make_automatic(self) -> None:
    """Makes the fixtures that every test uses."""
    for name in list(self.automatic()):
      self.make(name)

  def make(self, name: str) -> Any:
    """Returns the value of a fixture.

    Raises:
      SuiteError: there is no such fixture.
    """
    function = self._function(name)
    if function is None:
      raise SuiteError(f'a test needs the unknown fixture {name}')
    if function.is_shared and self is not self._shared:
      return self._shared.make(name)
    if name in self._values:
      return self._values[name]
    arguments = {p: self.make(p) for p in parameter_names(function)}
    value = function(**arguments)
    if function.__code__.co_flags & _GENERATOR_FLAG:
      self._generators.append(value)
      value = next(value)
    self._values[name] = value
    return value

  def finish(self) -> None:
    """Finishes the fixtures that are generators, the last one first."""
    for generator in self._generators[::-1]:
      next(generator, None)

  def _function(self, name: str) -> Any:
    """Returns the function of a fixture; `None` without one."""
    method = getattr(type(self._instance), name, None)
    if self._instance is not None and _is_fixture(method):
      return getattr(self._instance, name)
    function = dict.get(self._globals, name)
    return function if _is_fixture(function) else None


def _is_fixture(value: Any) -> bool:
  """Returns whether a value is a function that `pytest.fixture` has marked."""
  return type(value).__name__ == 'function' and 'is_fixture' in vars(value)


def parameter_names(function: Any) -> list[str]:
  """Returns the names of a function's parameters without a default."""
  is_bound = getattr(function, '__self__', None) is not None
  # As `functools.wraps` leaves them.
  while hasattr(function, '__wrapped__'):
    function = function.__wrapped__
  code = function.__code__
  names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
  num_defaults = len(function.__defaults__ or ())
  with_default = {
    *names[code.co_argcount - num_defaults : code.co_argcount],
    *(function.__kwdefaults__ or ()),
  }
  return [name for name in names[is_bound:] if name not in with_default]
