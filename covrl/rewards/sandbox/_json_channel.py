# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that exchanges values between suite and program as JSON.

Executed on both sides; never imported. Objects that JSON cannot represent are sent
as numbers, which each side resolves. Decoding creates values of built-in and
standard library types only, whoever wrote the data.
"""

from __future__ import annotations

import builtins
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Any

  from covrl.rewards.sandbox._program import from_json, to_json

_MAX_LINE_BYTES = 1 << 24  # bytes of a message
_SCALARS = (bool, int, float, str)
_SEQUENCES = {
  'list': list,
  'tuple': tuple,
  'set': set,
  'frozenset': frozenset,
}


_VIEWS: dict[str, Callable[[list[Any]], Any]] = {
  'dict_keys': lambda items: dict.fromkeys(items).keys(),
  'dict_items': lambda items: dict(items).items(),
  'dict_values': lambda items: dict(enumerate(items)).values(),
}


class JsonChannel:
  """A bidirectional channel of JSON lines.

  Args:
    refer: returns the reference to send for other objects.
    resolve: returns the object for a received reference.
  """

  def __init__(
    self, refer: Callable[[Any], Any], resolve: Callable[[Any], Any]
  ) -> None:
    self._refer = refer
    self._resolve = resolve
    self._lines = os.fdopen(4, 'rb', closefd=False)

  def send(self, message: dict[str, Any]) -> None:
    """Writes a message as one line."""
    data = to_json(message).encode() + b'\n'
    while data:
      data = data[os.write(5, data) :]

  def receive(self) -> dict[str, Any]:
    """Reads a message.

    Raises:
      EOFError: if the other side has ended or has sent an invalid message.
    """
    line = self._lines.readline(_MAX_LINE_BYTES)
    if not line.endswith(b'\n'):
      raise EOFError('the program has ended')
    message = from_json(line[:-1].decode())
    if not isinstance(message, dict):
      raise EOFError('a message must be a JSON object')
    return message

  def encode(self, value: Any) -> Any:
    """Returns a JSON-serialisable form of a value."""
    if value is None or type(value) in _SCALARS:
      return value
    if isinstance(value, tuple) and (fields := getattr(value, '_fields', None)):
      items = [self.encode(item) for item in tuple(value)]
      name = type(value).__name__
      return {'named': name, 'names': fields, 'items': items}
    if _is_collection(value):
      return self._encode_collection(value)
    for name, sequence in _SEQUENCES.items():
      if isinstance(value, sequence):
        return {name: [self.encode(item) for item in sequence(value)]}
    if isinstance(value, dict):
      pairs = dict(value).items()
      return {'dict': [[self.encode(k), self.encode(v)] for k, v in pairs]}
    if type(value).__name__ in _VIEWS and type(value).__module__ == 'builtins':
      return {'view': type(value).__name__, 'items': [*map(self.encode, value)]}
    if isinstance(value, complex):
      return {'complex': [value.real, value.imag]}
    if isinstance(value, bytes | bytearray):
      return {'bytes': bytes(value).hex(), 'mutable': type(value) is bytearray}
    if isinstance(value, range | slice):
      ends = [value.start, value.stop, value.step]
      return {type(value).__name__: [self.encode(end) for end in ends]}
    for scalar in (int, float, str):
      if isinstance(value, scalar) and not _is_enum_member(value):
        return scalar(value)
    if _is_array(value):
      return self._encode_array(value)
    standard_value = _encode_standard(value)
    return (
      {'known': standard_value}
      if standard_value
      else {'object': self._refer(value)}
    )

  def _encode_collection(self, value: Any) -> dict[str, Any]:
    name = type(value).__name__
    items = value if name == 'deque' else [*value.items()]
    option = {'deque': 'maxlen', 'defaultdict': 'default_factory'}.get(name)
    return {
      'collection': name,
      'items': [self.encode(item) for item in items],
      'option': option and self.encode(getattr(value, option)),
    }

  def _decode_collection(self, value: dict[str, Any]) -> Any:
    import collections

    items = [self.decode(item) for item in value['items']]
    option = self.decode(value['option'])
    match value['collection']:
      case 'deque':
        return collections.deque(items, option)
      case 'defaultdict':
        return collections.defaultdict(option, items)
      case 'Counter':
        return collections.Counter(dict(items))
      case 'OrderedDict':
        return collections.OrderedDict(items)
    raise EOFError('a message must have values of known types')

  def _encode_array(self, value: Any) -> dict[str, Any]:
    items = [self.encode(item) for item in value.ravel().tolist()]
    return {'array': items, 'dtype': value.dtype.str, 'shape': value.shape}

  def decode(self, value: Any) -> Any:
    """Returns the value of an encoded form."""
    if not isinstance(value, dict):
      return value
    name = next(iter(value), '')
    if name in _SEQUENCES:
      return _SEQUENCES[name](map(self.decode, value[name]))
    if name == 'dict':
      return {self.decode(k): self.decode(v) for k, v in value[name]}
    if name == 'collection':
      return self._decode_collection(value)
    if name == 'named':
      import collections

      kind = collections.namedtuple(value[name], value['names'])
      return kind(*map(self.decode, value['items']))
    if name == 'view':
      return _VIEWS[value[name]]([*map(self.decode, value['items'])])
    if name == 'complex':
      return complex(*value[name])
    if name == 'bytes':
      data = bytes.fromhex(value[name])
      return bytearray(data) if value.get('mutable') else data
    if name in ('range', 'slice'):
      kind = range if name == 'range' else slice
      return kind(*map(self.decode, value[name]))
    if name == 'array':
      import numpy

      items = [*map(self.decode, value[name])]
      array = numpy.empty(len(items), value['dtype'])
      if array.dtype.kind == 'O':
        # One by one, as items may be collections.
        for index, item in enumerate(items):
          array[index] = item
      else:
        array[:] = items
      array = array.reshape(value['shape'])
      # A scalar is an array without dimensions.
      return array[()]
    if name == 'known':
      return _decode_standard(value[name])
    return self._resolve(value[name])


def _is_collection(value: Any) -> bool:
  """Returns whether a value is of a class of `collections`, not of a subclass."""
  collections = sys.modules.get('collections')
  return collections is not None and type(value) in (
    collections.deque,
    collections.defaultdict,
    collections.Counter,
    collections.OrderedDict,
  )


def _is_array(value: Any) -> bool:
  """Returns whether a value is an array or a scalar of numpy, without fields."""
  numpy = sys.modules.get('numpy')
  return (
    numpy is not None
    and isinstance(value, numpy.ndarray | numpy.generic)
    and value.dtype.kind in 'biufcSUO'
  )


def _is_enum_member(value: Any) -> bool:
  """Returns whether a value is a member of an enumeration."""
  enum = sys.modules.get('enum')
  return enum is not None and isinstance(value, enum.Enum)


def _encode_standard(value: Any) -> list[Any] | None:
  """Encodes values of some standard library types; `None` for others."""
  if isinstance(value, type) and value is vars(builtins).get(value.__name__):
    return ['builtins', value.__name__, '']
  module, name = type(value).__module__, type(value).__name__
  match (module, name):
    case ('decimal', 'Decimal') | ('fractions', 'Fraction'):
      return [module, name, str(value)]
    case ('uuid', 'UUID'):
      return [module, name, str(value)]
    case (_, 'PosixPath') if module.partition('.')[0] == 'pathlib':
      return ['pathlib', name, str(value)]
    case ('datetime', 'date' | 'datetime' | 'time'):
      return [module, name, value.isoformat()]
    case ('datetime', 'timedelta'):
      return [module, name, [value.days, value.seconds, value.microseconds]]
  return None


def _decode_standard(encoded: list[Any]) -> Any:
  """Inverse of `_encode_standard`."""
  module, name, state = encoded
  match (module, name):
    case ('builtins', _) if isinstance(vars(builtins).get(name), type):
      return getattr(builtins, name)
    case (
      ('decimal', 'Decimal')
      | ('fractions', 'Fraction')
      | ('pathlib', 'PosixPath')
      | ('uuid', 'UUID')
    ):
      return getattr(__import__(module), name)(state)
    case ('datetime', 'date' | 'datetime' | 'time'):
      return getattr(__import__(module), name).fromisoformat(state)
    case ('datetime', 'timedelta'):
      return __import__(module).timedelta(*state)
  raise EOFError(f'a message must have values of known types, got {name!r}')
