# SPDX-License-Identifier: Apache-2.0
"""Reads and checks the header of a GGUF file.

The header is parsed here, since the reader of the library `gguf` follows the
lengths in a file without bounds. The types of tensors are the library's.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from etils import epath

from covrl import storage
from covrl.pretrained.gguf.metadata import Metadata
from covrl.pretrained.gguf.types import TensorType, tensor_type
from covrl.pretrained.json_files import open_regular_file

_MAGIC = b'GGUF'
_VERSIONS = (2, 3)
# The header of a model with 150,000 tokens has 6 MB.
_MAX_HEADER_BYTES = 2**26
# Fields, tensors, elements of an array and axes of a tensor, at most.
_MAX_FIELDS = 2**14
_MAX_TENSORS = 2**17
_MAX_ARRAY = 2**21
_MAX_AXES = 4
_DEFAULT_ALIGNMENT = 32

# Types of the metadata's values, numbered as in the format.
_STRING, _ARRAY = 8, 9
_SCALARS: Mapping[int, np.dtype] = {
  code: np.dtype(name)
  for code, name in {
    0: '<u1',
    1: '<i1',
    2: '<u2',
    3: '<i2',
    4: '<u4',
    5: '<i4',
    6: '<f4',
    7: '?',
    10: '<u8',
    11: '<i8',
    12: '<f8',
  }.items()
}


class GgufTensor(NamedTuple):
  """Shape, type and position of a tensor in its file.

  Attributes:
    shape: shape of the tensor, in the order of numpy.
    type: type of the tensor's blocks.
    start: offset of the tensor in the file, in bytes.
  """

  shape: tuple[int, ...]
  type: TensorType
  start: int

  @property
  def row_bytes(self) -> int:
    """Bytes of one row, along the last axis."""
    return self.shape[-1] // self.type.block_size * self.type.block_bytes

  @property
  def size(self) -> int:
    """Bytes of the tensor."""
    return math.prod(self.shape[:-1]) * self.row_bytes


def read_header(file: epath.Path) -> tuple[Metadata, dict[str, GgufTensor]]:
  """Reads metadata and tensor positions of a GGUF file.

  Raises:
    ValueError: the file is not a GGUF file, is truncated, or its header is
      malformed; the message names field or tensor.
  """
  with open_regular_file(file) as stream:
    cursor = _Cursor(stream, file, storage.file_size(file))
    if cursor.take(4, 'the first four bytes') != _MAGIC:
      raise ValueError(f'{file} must be a GGUF file, got another')
    version = cursor.number('<I', 'version')
    if version not in _VERSIONS:
      raise ValueError(
        f'{file}: the version of GGUF must be one of {_VERSIONS}, little-endian,'
        f' got {version}'
      )
    tensors = cursor.count('number of tensors', _MAX_TENSORS)
    fields = cursor.count('number of fields', _MAX_FIELDS)
    metadata = Metadata(str(file), _read_fields(cursor, fields))
    infos = [_read_tensor(cursor) for _ in range(tensors)]
    alignment = metadata.integer('general.alignment', _DEFAULT_ALIGNMENT)
    if not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
      raise ValueError(
        f'{file}: general.alignment must be a power of two, got {alignment}'
      )
    start = -(-cursor.position // alignment) * alignment
  return metadata, _positioned(file, infos, start, alignment, cursor.size)


class _Cursor:
  """A position in a file, whose lengths are checked before they are read."""

  def __init__(self, stream: BinaryIO, file: epath.Path, size: int) -> None:
    self.file, self.size, self.position = file, size, 0
    self._stream = stream

  def take(self, count: int, owner: str) -> bytes:
    """Reads `count` bytes; `owner` describes them, for errors."""
    if self.position + count > self.size:
      raise ValueError(
        f'{self.file} must have {self.position + count} bytes or more, for'
        f' {owner}, got {self.size}'
      )
    if self.position + count > _MAX_HEADER_BYTES:
      raise ValueError(
        f'{self.file}: the header must have at most {_MAX_HEADER_BYTES} bytes,'
        f' got more at {owner}'
      )
    self.position += count
    return self._stream.read(count)

  def number(self, layout: str, owner: str) -> int:
    """Reads an integer."""
    return struct.unpack(layout, self.take(struct.calcsize(layout), owner))[0]

  def count(self, owner: str, limit: int) -> int:
    """Reads a 64-bit count of at most `limit`."""
    count = self.number('<Q', owner)
    if count > limit:
      raise ValueError(
        f'{self.file}: the {owner} must be at most {limit}, got {count}'
      )
    return count

  def text(self, owner: str) -> str:
    """Reads a string."""
    size = self.number('<Q', owner)
    try:
      return self.take(size, owner).decode()
    except UnicodeDecodeError:
      raise ValueError(
        f'{self.file}: {owner} must be UTF-8, got other bytes'
      ) from None


def _read_fields(cursor: _Cursor, count: int) -> dict[str, Any]:
  """Reads the fields of the metadata."""
  fields: dict[str, Any] = {}
  for number in range(count):
    name = cursor.text(f'the name of field {number}')
    if name in fields:
      raise ValueError(
        f'{cursor.file} must hold the field {name[:80]} once, got it twice'
      )
    code = cursor.number('<I', name)
    fields[name] = _read_value(cursor, name[:80], code)
  return fields


def _read_value(cursor: _Cursor, name: str, code: int) -> Any:
  """Reads a value of a type, by the type's code."""
  if code == _STRING:
    return cursor.text(name)
  if code in _SCALARS:
    dtype = _SCALARS[code]
    value = np.frombuffer(cursor.take(dtype.itemsize, name), dtype)[0]
    # The shortest decimal that rounds to a float32: 1e-05, not 9.99999975e-06.
    return float(str(value)) if dtype.name == 'float32' else value.item()
  if code != _ARRAY:
    raise ValueError(
      f'{cursor.file}: the type of field {name} must be a number up to 12, got'
      f' {code}'
    )
  code = cursor.number('<I', name)
  count = cursor.count(f'number of elements of {name}', _MAX_ARRAY)
  if code == _STRING:
    return [cursor.text(f'element {index} of {name}') for index in range(count)]
  if code not in _SCALARS:
    raise ValueError(
      f'{cursor.file}: the elements of field {name} must be numbers or texts,'
      f' got type {code}'
    )
  dtype = _SCALARS[code]
  content = cursor.take(count * dtype.itemsize, name)
  return np.frombuffer(content, dtype).tolist()


class _TensorInfo(NamedTuple):
  """Entry of a header: a tensor and its offset from the first one.

  Attributes:
    name: name of the tensor.
    shape: its shape, the axis that varies fastest last.
    type: its type, which may be quantised.
    offset: bytes from the first tensor to it.
  """

  name: str
  shape: tuple[int, ...]
  type: TensorType
  offset: int


def _read_tensor(cursor: _Cursor) -> _TensorInfo:
  """Reads name, shape, type and position of the next tensor."""
  name = cursor.text('the name of a tensor')
  owner = f'{cursor.file}: {name[:80]}'
  axes = cursor.number('<I', name)
  if not 1 <= axes <= _MAX_AXES:
    raise ValueError(f'{owner} must have 1 to {_MAX_AXES} axes, got {axes}')
  sizes = [cursor.number('<Q', name) for _ in range(axes)]
  if not all(1 <= size <= 2**40 for size in sizes):
    raise ValueError(f'{owner} must have axes of 1 to 2^40, got {sizes}')
  shape = tuple(reversed(sizes))
  kind = tensor_type(cursor.number('<I', name), owner)
  if shape[-1] % kind.block_size:
    raise ValueError(
      f'{owner} must have rows of whole blocks of {kind.block_size}, as'
      f' {kind.name} needs, got {shape[-1]}'
    )
  return _TensorInfo(name, shape, kind, cursor.number('<Q', name))


def _positioned(
  file: epath.Path,
  infos: list[_TensorInfo],
  start: int,
  alignment: int,
  size: int,
) -> dict[str, GgufTensor]:
  """Returns the tensors, which must lie in the file, aligned and disjoint."""
  tensors: dict[str, GgufTensor] = {}
  for info in infos:
    if info.name in tensors:
      raise ValueError(f'{file} must hold {info.name[:80]} once, got it twice')
    if info.offset % alignment:
      raise ValueError(
        f'{file}: {info.name[:80]} must begin at a multiple of {alignment}, got'
        f' {info.offset}'
      )
    tensors[info.name] = GgufTensor(info.shape, info.type, start + info.offset)
  order = sorted(tensors, key=lambda name: tensors[name].start)
  for name in order:
    end = tensors[name].start + tensors[name].size
    if end > size:
      raise ValueError(
        f'{file} must have {end} bytes or more, for {name[:80]}, got {size}'
      )
  for name, after in itertools.pairwise(order):
    end = tensors[name].start + tensors[name].size
    if end > tensors[after].start:
      raise ValueError(
        f'{file}: {after[:80]} must begin at {end - start} or later, where'
        f' {name[:80]} ends, got {tensors[after].start - start}'
      )
  return tensors
