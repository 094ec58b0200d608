# SPDX-License-Identifier: Apache-2.0
"""Sandbox script with proxies for the program that an assert suite tests.

Executed after `_values.py` with the suite as the runner's `program`; never
imported. Names that the suite does not define are proxies for the program's
functions, classes and objects, which live in another sandbox. Values arrive as
built-in types; an object of the program never decides a comparison with a value
of the suite, unless the suite itself created it from a class of the program.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
  from typing import Any

  from covrl.rewards.sandbox._values import JsonChannel


class SuiteError(Exception):
  """The suite is invalid or needs something unavailable."""


class ProgramError(Exception):
  """The program raised an exception of an unknown class."""


class ProgramClient:
  """Sends requests to the program's sandbox."""

  def __init__(self) -> None:
    self.asked = 0
    self._wire = JsonChannel(self._refer, self._resolve)
    self._callbacks: list[Any] = []
    self._exceptions: dict[int, type] = {}

  def fetch(self, name: str) -> Any:
    """Returns a global of the program.

    Raises:
      KeyError: if the program does not define the name.
    """
    self.asked += 1
    reply = self._exchange({'global': name})
    if 'missing' in reply:
      raise KeyError(name)
    value = self._wire.decode(reply['value'])
    if isinstance(value, Proxy):
      _set(value, '_known')
    return value

  def ask(self, do: str, *args: Any, **kwargs: Any) -> Any:
    """Performs an operation; applies in-place changes to its arguments."""
    self.asked += 1
    try:
      message = {
        'do': do,
        'arguments': [self._wire.encode(value) for value in args],
        'keywords': {k: self._wire.encode(v) for k, v in kwargs.items()},
      }
    except SuiteError as error:
      if _of(args[0], '_known'):
        raise
      # The suite expects a simpler value than the function returned.
      raise TypeError(str(error)) from None
    reply = self._exchange(message)
    for index, value in reply.get('changed', {}).items():
      _change(args[int(index)], self._wire.decode(value))
    return self._wire.decode(reply['value'])

  def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
    self._wire.send(message)
    while True:
      reply = self._wire.receive()
      if 'error' in reply:
        raise self._mirror_error(reply['error'])
      if 'callback' not in reply:
        return reply
      self._wire.send(self._call_back(reply))

  def _call_back(self, reply: dict[str, Any]) -> dict[str, Any]:
    function = self._callbacks[reply['callback']]
    args = [self._wire.decode(value) for value in reply['arguments']]
    kwargs = {k: self._wire.decode(v) for k, v in reply['keywords'].items()}
    try:
      return {'returned': self._wire.encode(function(*args, **kwargs))}
    except Exception as error:
      names = [kind.__name__ for kind in type(error).__mro__]
      name = next(name for name in names if hasattr(builtins, name))
      return {'raised': name, 'text': str(error)}

  def _refer(self, value: Any) -> Any:
    if isinstance(value, Proxy):
      return _of(value, '_number')
    if hasattr(value, '__next__'):
      return self._refer(lambda items=value: next(items))
    if not callable(value):
      kind = type(value).__name__
      raise SuiteError(f'a {kind} of the suite cannot be handed to a program')
    self._callbacks.append(value)
    return {'callback': len(self._callbacks) - 1}

  def _resolve(self, reference: Any) -> Any:
    if 'exception' in reference:
      return self._mirror(reference)
    if 'class' in reference:
      return ProxyClass(reference['number'])
    return Proxy(reference['number'])

  def _mirror(self, reference: dict[str, Any]) -> type:
    """Returns a local class for one of the program's exception classes."""
    name = str(reference['exception'])
    if reference['bases'] is None:
      kind: Any = getattr(builtins, name, None)
      fine = isinstance(kind, type) and issubclass(kind, Exception)
      return kind if fine else ProgramError
    number = int(reference['number'])
    if number not in self._exceptions:
      bases = tuple(
        self._mirror(base) for base in reference['bases'] if 'exception' in base
      )
      members = {'__init__': Exception.__init__, '__str__': Exception.__str__}
      self._exceptions[number] = type(name, bases or (ProgramError,), members)
    return self._exceptions[number]

  def _mirror_error(self, error: dict[str, Any]) -> Exception:
    kind = self._mirror(error['class'])
    args = [self._wire.decode(value) for value in error['arguments']]
    made: Any = kind.__new__(kind, *args)
    made.args = tuple(args)
    for name, value in error['state'].items():
      setattr(made, name, self._wire.decode(value))
    made.of_the_program = True
    return made


class Proxy:
  """Proxy for an object of the program.

  `_known` if the suite has fetched it by name, `_made` if the suite has created it
  from a class of the program.
  """

  def __init__(self, number: int) -> None:
    object.__setattr__(self, '_number', number)
    object.__setattr__(self, '_known', False)
    object.__setattr__(self, '_made', False)

  def __getattr__(self, name: str) -> Any:
    value = link.ask('get', self, name)
    if isinstance(value, Proxy) and _of(self, '_known'):
      _set(value, '_known')
    return value

  def __setattr__(self, name: str, value: Any) -> None:
    link.ask('set', self, name, value)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return link.ask('call', self, *args, **kwargs)

  def __eq__(self, other: object) -> Any:
    if isinstance(other, Proxy):
      return _same(self, other) or link.ask('eq', self, other) is True
    return (
      link.ask('eq', self, other) is True if _made(self) else NotImplemented
    )

  def __contains__(self, item: Any) -> bool:
    if _made(self) or isinstance(item, Proxy):
      return link.ask('contains', self, item) is True
    return any(item == other for other in self)

  def __iter__(self) -> Any:
    iterator = link.ask('iter', self)
    return iter(iterator) if isinstance(iterator, list) else _items(iterator)

  def __exit__(self, *error: object) -> None:
    link.ask('exit', self)


class ProxyClass(Proxy):
  """Proxy for a class of the program."""

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    value = link.ask('call', self, *args, **kwargs)
    if isinstance(value, Proxy):
      _set(value, '_made', '_known')
    return value

  def __instancecheck__(self, value: Any) -> bool:
    return (
      isinstance(value, Proxy) and link.ask('isinstance', value, self) is True
    )

  def __subclasscheck__(self, value: Any) -> bool:
    return (
      isinstance(value, Proxy) and link.ask('issubclass', value, self) is True
    )


def _of(proxy: Proxy, name: str) -> Any:
  """Returns an attribute of the proxy itself."""
  return object.__getattribute__(proxy, name)


def _set(proxy: Proxy, *names: str) -> None:
  for name in names:
    object.__setattr__(proxy, name, True)


def _made(proxy: Proxy) -> bool:
  return _of(proxy, '_made')


def _same(proxy: Proxy, other: Proxy) -> bool:
  return _of(proxy, '_number') == _of(other, '_number')


def _items(iterator: Any) -> Any:
  while True:
    try:
      item = link.ask('next', iterator)
    except StopIteration:
      return
    yield item


def _change(value: Any, new: Any) -> None:
  if isinstance(value, list | bytearray):
    value[:] = new
  else:
    value.clear()
    value.update(new)


def _define(name: str, *, compares: bool) -> None:
  """Defines a special method of proxies that forwards to the program."""

  def ask(self: Proxy, *args: Any) -> Any:
    if compares and not _made(self) and not isinstance(args[0], Proxy):
      return NotImplemented
    value = link.ask(name, self, *args)
    if compares and _made(self) and isinstance(value, Proxy):
      _set(value, '_made')
    return value

  setattr(Proxy, f'__{name}__', ask)


for _name in [
  'bool',
  'delitem',
  'enter',
  'float',
  'format',
  'getitem',
  'hash',
  'int',
  'len',
  'neg',
  'next',
  'repr',
  'reversed',
  'round',
  'setitem',
  'str',
  'abs',
]:
  _define(_name, compares=False)
for _name in [
  'add',
  'and',
  'floordiv',
  'ge',
  'gt',
  'le',
  'lt',
  'matmul',
  'mod',
  'mul',
  'or',
  'pow',
  'sub',
  'truediv',
  'xor',
]:
  _define(_name, compares=True)

if __name__ == '__main__':
  link = ProgramClient()
