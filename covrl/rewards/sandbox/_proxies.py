# SPDX-License-Identifier: Apache-2.0
"""Sandbox script with proxies for the program that an assert suite tests.

Executed after `_json_channel.py` with the suite as the runner's `program`; never
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

  from covrl.rewards.sandbox._json_channel import JsonChannel

# Special methods that proxies forward to the program.
_OPERATIONS = """
abs bool delitem enter float format getitem hash int len neg next repr reversed
round setitem str
"""
_BINARY_OPERATORS = """
add and floordiv ge gt le lt matmul mod mul or pow sub truediv xor
"""


client: Any = None
"""The `ProgramClient` of this process, or its `LocalProgram`."""


class SuiteError(Exception):
  """The suite is invalid or needs something unavailable."""


class ProgramError(Exception):
  """The program raised an exception of an unknown class."""


class ProgramClient:
  """Sends requests to the program's sandbox."""

  def __init__(self) -> None:
    self.requests = 0
    # Requests that use a value of the program; fetching a function or class does
    # not count, fetching a constant does.
    self.uses = 0
    self._channel = JsonChannel(self._refer, self._resolve)
    self._callbacks: list[Any] = []
    self._exceptions: dict[int, type] = {}

  def fetch(self, name: str) -> Any:
    """Returns a global of the program.

    Raises:
      KeyError: if the program does not define the name.
    """
    self.requests += 1
    reply = self._exchange({'global': name})
    if 'missing' in reply:
      raise KeyError(name)
    value = self._channel.decode(reply['value'])
    if isinstance(value, Proxy):
      _set_flags(value, '_is_named')
      _trust_class(value, name)
    elif not isinstance(value, type):
      self.uses += 1
    return value

  def perform(self, operation: str, /, *args: Any, **kwargs: Any) -> Any:
    """Performs an operation; applies in-place changes to its arguments."""
    self.requests += 1
    self.uses += 1
    try:
      message = {
        'do': operation,
        'arguments': [self._channel.encode(value) for value in args],
        'keywords': {k: self._channel.encode(v) for k, v in kwargs.items()},
      }
    except SuiteError as error:
      if _own_attribute(args[0], '_is_named'):
        raise
      # The suite expects a simpler value than the function returned.
      raise TypeError(str(error)) from None
    reply = self._exchange(message)
    for index, value in reply.get('changed', {}).items():
      _replace_content(args[int(index)], self._channel.decode(value))
    return self._channel.decode(reply['value'])

  def _exchange(self, message: dict[str, Any]) -> dict[str, Any]:
    """Sends a message and returns the reply, serving callbacks meanwhile."""
    self._channel.send(message)
    while True:
      reply = self._channel.receive()
      if 'error' in reply:
        raise self._local_error(reply['error'])
      if 'callback' not in reply:
        return reply
      self._channel.send(self._call_back(reply))

  def _call_back(self, reply: dict[str, Any]) -> dict[str, Any]:
    """Calls a function of the suite for the program; returns the encoded result."""
    function = self._callbacks[reply['callback']]
    args = [self._channel.decode(value) for value in reply['arguments']]
    kwargs = {k: self._channel.decode(v) for k, v in reply['keywords'].items()}
    try:
      return {'returned': self._channel.encode(function(*args, **kwargs))}
    except Exception as error:
      names = [error_class.__name__ for error_class in type(error).__mro__]
      name = next(name for name in names if hasattr(builtins, name))
      return {'raised': name, 'text': str(error)}

  def _refer(self, value: Any) -> Any:
    """Returns the JSON reference to an object that is not plain data."""
    if isinstance(value, Proxy):
      return _own_attribute(value, '_number')
    if hasattr(value, '__next__'):
      return self._refer(lambda items=value: next(items))
    if not callable(value):
      class_name = type(value).__name__
      raise SuiteError(
        f'a value of the suite ({class_name}) cannot be handed to a program'
      )
    self._callbacks.append(value)
    return {'callback': len(self._callbacks) - 1}

  def _resolve(self, reference: Any) -> Any:
    """Returns the proxy, or the class, that a reference of the program names."""
    if 'exception' in reference:
      return self._local_class(reference)
    if 'class' in reference:
      return ProxyClass(reference['number'])
    return Proxy(reference['number'])

  def _local_class(self, reference: dict[str, Any]) -> type:
    """Returns a local class for one of the program's exception classes."""
    name = str(reference['exception'])
    if reference['bases'] is None:
      error_class: Any = getattr(builtins, name, None)
      is_exception = isinstance(error_class, type) and issubclass(
        error_class, Exception
      )
      return error_class if is_exception else ProgramError
    number = int(reference['number'])
    if number not in self._exceptions:
      bases = tuple(
        self._local_class(base)
        for base in reference['bases']
        if 'exception' in base
      )
      members = {'__init__': Exception.__init__, '__str__': Exception.__str__}
      self._exceptions[number] = type(name, bases or (ProgramError,), members)
    return self._exceptions[number]

  def _local_error(self, error: dict[str, Any]) -> Exception:
    """Returns a local exception for one that the program raised."""
    error_class = self._local_class(error['class'])
    args = [self._channel.decode(value) for value in error['arguments']]
    local_error: Any = error_class.__new__(error_class, *args)
    local_error.args = tuple(args)
    for name, value in error['state'].items():
      setattr(local_error, name, self._channel.decode(value))
    local_error.is_of_program = True
    return local_error


class Proxy:
  """Proxy for an object of the program.

  `_is_named` is set if the suite has fetched it by name, `_is_created` if the
  suite has created it from a class that it knows as one, by a name with a capital
  letter: another class may stand for a function whose result its objects pretend to
  be.
  """

  def __init__(self, number: int) -> None:
    object.__setattr__(self, '_number', number)
    object.__setattr__(self, '_is_named', False)
    object.__setattr__(self, '_is_created', False)

  def __getattr__(self, name: str) -> Any:
    value = client.perform('get', self, name)
    if isinstance(value, Proxy) and _own_attribute(self, '_is_named'):
      _set_flags(value, '_is_named')
      _trust_class(value, name)
    return value

  def __setattr__(self, name: str, value: Any) -> None:
    client.perform('set', self, name, value)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    return client.perform('call', self, *args, **kwargs)

  def __eq__(self, other: object) -> Any:
    if isinstance(other, Proxy) and _is_same_object(self, other):
      return True
    if isinstance(other, Proxy) or _is_created(self):
      return client.perform('eq', self, other) is True
    return NotImplemented

  def __contains__(self, item: Any) -> bool:
    if _is_created(self) or isinstance(item, Proxy):
      return client.perform('contains', self, item) is True
    return any(item == other for other in self)

  def __iter__(self) -> Any:
    iterator = client.perform('iter', self)
    return iter(iterator) if isinstance(iterator, list) else _iterate(iterator)

  def __exit__(self, *error: object) -> None:
    client.perform('exit', self)


class ProxyClass(Proxy):
  """Proxy for a class of the program.

  `_is_trusted` is set if the suite knows it as a class.
  """

  def __init__(self, number: int) -> None:
    super().__init__(number)
    object.__setattr__(self, '_is_trusted', False)

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    value = client.perform('call', self, *args, **kwargs)
    if isinstance(value, Proxy):
      _set_flags(value, '_is_named')
      if _own_attribute(self, '_is_trusted'):
        _set_flags(value, '_is_created')
    return value

  def __instancecheck__(self, value: Any) -> bool:
    return (
      isinstance(value, Proxy)
      and client.perform('isinstance', value, self) is True
    )

  def __subclasscheck__(self, value: Any) -> bool:
    return (
      isinstance(value, Proxy)
      and client.perform('issubclass', value, self) is True
    )


def _own_attribute(proxy: Proxy, name: str) -> Any:
  """Returns an attribute of the proxy itself."""
  return object.__getattribute__(proxy, name)


def _set_flags(proxy: Proxy, *names: str) -> None:
  """Sets flags of the proxy itself."""
  for name in names:
    object.__setattr__(proxy, name, True)


def _trust_class(proxy: Proxy, name: str) -> None:
  """Marks a class whose name in the suite begins with a capital letter."""
  if isinstance(proxy, ProxyClass) and name[:1].isupper():
    _set_flags(proxy, '_is_trusted')


def _is_created(proxy: Proxy) -> bool:
  """Returns whether the suite has created the object."""
  return _own_attribute(proxy, '_is_created')


def _is_same_object(proxy: Proxy, other: Proxy) -> bool:
  """Returns whether two proxies stand for the same object."""
  return _own_attribute(proxy, '_number') == _own_attribute(other, '_number')


def _iterate(iterator: Any) -> Any:
  """Yields the items of an iterator of the program."""
  while True:
    try:
      item = client.perform('next', iterator)
    except StopIteration:
      return
    yield item


def _replace_content(value: Any, new: Any) -> None:
  """Replaces the content of a mutable collection."""
  if isinstance(value, list | bytearray):
    value[:] = new
  elif isinstance(value, dict | set):
    value.clear()
    value.update(new)
  else:
    # A deque.
    value.clear()
    value.extend(new)


def _define_forwarding(name: str, *, is_binary: bool) -> None:
  """Defines a special method of proxies that forwards to the program.

  Binary operators with another operand than a proxy are left to that operand,
  unless the suite has created the object.
  """

  def forward(self: Proxy, *args: Any) -> Any:
    if is_binary and not _is_created(self) and not isinstance(args[0], Proxy):
      return NotImplemented
    value = client.perform(name, self, *args)
    if is_binary and _is_created(self) and isinstance(value, Proxy):
      _set_flags(value, '_is_created')
    return value

  setattr(Proxy, f'__{name}__', forward)


for _name in _OPERATIONS.split():
  _define_forwarding(_name, is_binary=False)
for _name in _BINARY_OPERATORS.split():
  _define_forwarding(_name, is_binary=True)
