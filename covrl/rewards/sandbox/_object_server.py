# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that serves a program's functions and objects to a suite.

Executed after `_json_channel.py` with the runner's `program`; never imported. It runs in
the program's process, which may tamper with it: its replies are untrusted.
"""

from __future__ import annotations

import builtins
import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Any

  from covrl.rewards.sandbox._json_channel import JsonChannel
  from covrl.rewards.sandbox._program import Program

  program: Program = Program(b'')

_OPERATIONS: dict[str, Callable[..., Any]] = {
  'bool': bool,
  'delitem': operator.delitem,
  'enter': lambda value: type(value).__enter__(value),
  'exit': lambda value: type(value).__exit__(value, None, None, None),
  'float': float,
  'format': format,
  'hash': hash,
  'int': int,
  'isinstance': isinstance,
  'issubclass': issubclass,
  'iter': iter,
  'len': len,
  'next': next,
  'repr': repr,
  'reversed': reversed,
  'round': round,
  'str': str,
}


class ObjectServer:
  """The objects that the suite refers to by number."""

  def __init__(self) -> None:
    self._objects: list[Any] = []
    self._numbers: dict[int, int] = {}
    self._channel = JsonChannel(self._refer, self._resolve)

  def serve(self) -> Any:
    """Answers requests until a callback returns or the suite ends."""
    while True:
      message = self._channel.receive()
      if 'returned' in message:
        return self._channel.decode(message['returned'])
      if 'raised' in message:
        raise getattr(builtins, message['raised'])(message['text'])
      try:
        reply = self._answer(message)
      except BaseException as error:
        reply = {'error': self._describe(error)}
      self._channel.send(reply)

  def load(self) -> None:
    """Executes the program."""
    self._namespace = program.execute('solution')

  def _answer(self, message: dict[str, Any]) -> dict[str, Any]:
    """Returns the value that a message requests, and the arguments that changed."""
    if 'global' in message:
      if message['global'] not in self._namespace:
        return {'missing': message['global']}
      value = self._namespace[message['global']]
      return {'value': self._channel.encode(value)}
    arguments = [self._channel.decode(value) for value in message['arguments']]
    before = [_snapshot(self._channel, value) for value in arguments]
    keywords = {
      name: self._channel.decode(value)
      for name, value in message.get('keywords', {}).items()
    }
    value = self._apply(message['do'], arguments, keywords)
    after = [_snapshot(self._channel, value) for value in arguments]
    changed = {
      index: new
      for index, (old, new) in enumerate(zip(before, after, strict=True))
      if new != old
    }
    return {'value': self._channel.encode(value), 'changed': changed}

  def _apply(
    self, operation: str, arguments: list[Any], keywords: dict[str, Any]
  ) -> Any:
    """Calls, reads or sets attributes, or applies an operator."""
    if operation == 'call':
      return arguments[0](*arguments[1:], **keywords)
    if operation == 'get':
      return getattr(*arguments)
    if operation == 'set':
      return setattr(*arguments)
    function = _OPERATIONS.get(operation) or getattr(
      operator, f'__{operation}__'
    )
    return function(*arguments)

  def _refer(self, value: Any) -> dict[str, Any]:
    """Returns the number by which the suite refers to a value, and its class."""
    number = self._numbers.get(id(value))
    if number is None:
      number = self._numbers[id(value)] = len(self._objects)
      self._objects.append(value)
    if not isinstance(value, type):
      return {'number': number}
    name = value.__name__
    if not issubclass(value, BaseException):
      return {'number': number, 'class': name}
    if value.__module__ == 'builtins':
      return {'exception': name, 'bases': None}
    bases = [self._refer(base) for base in value.__bases__]
    return {'number': number, 'exception': name, 'bases': bases}

  def _resolve(self, number: Any) -> Any:
    """Returns the value of a number, or a function that calls the suite back."""
    if isinstance(number, dict):
      return lambda *args, **kwargs: self._call_back(number, args, kwargs)
    return self._objects[number]

  def _call_back(
    self, callback: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
  ) -> Any:
    """Calls a function of the suite, and serves requests until it returns."""
    self._channel.send(
      {
        'callback': callback['callback'],
        'arguments': [self._channel.encode(value) for value in args],
        'keywords': {k: self._channel.encode(v) for k, v in kwargs.items()},
      }
    )
    return self.serve()

  def _describe(self, error: BaseException) -> dict[str, Any]:
    """Returns the class, arguments and attributes of an exception, encoded."""
    state = {
      name: self._channel.encode(value) for name, value in vars(error).items()
    }
    return {
      'class': self._refer(type(error)),
      'arguments': [self._channel.encode(value) for value in error.args],
      'state': state,
    }


def _snapshot(channel: JsonChannel, value: Any) -> Any:
  """Returns the content of a mutable value, to detect changes."""
  is_deque = type(value).__name__ == 'deque'
  if is_deque or isinstance(value, list | dict | set | bytearray):
    return channel.encode(value)
  return None


if __name__ == '__main__':
  server = ObjectServer()
  server.load()
  server.serve()
