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
_MAX_ARRAY_ELEMENTS = 2**21
_MAX_AXES = 4
_DEFAULT_ALIGNMENT = 32

# Types of the metadata's values, numbered as in the format.
_STRING_CODE, _ARRAY_CODE = 8, 9
_SCALAR_DTYPES: Mapping[int, np.dtype] = {
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
    if cursor.read_bytes(4, 'the first four bytes') != _MAGIC:
      raise ValueError(f'{file} must be a GGUF file, got another')
    version = cursor.read_integer('<I', 'version')
    if version not in _VERSIONS:
      raise ValueError(
        f'{file}: the version of GGUF must be one of {_VERSIONS}, little-endian,'
        f' got {version}'
      )
    num_tensors = cursor.read_count('number of tensors', _MAX_TENSORS)
    num_fields = cursor.read_count('number of fields', _MAX_FIELDS)
    metadata = Metadata(str(file), _read_fields(cursor, num_fields))
    infos = [_read_tensor(cursor) for _ in range(num_tensors)]
    alignment = metadata.integer('general.alignment', _DEFAULT_ALIGNMENT)
    if not 1 <= alignment <= 2**16 or alignment & (alignment - 1):
      raise ValueError(
        f'{file}: general.alignment must be a power of two, got {alignment}'
      )
    data_start = -(-cursor.position // alignment) * alignment
  return metadata, _locate_tensors(
    file, infos, data_start, alignment, cursor.size
  )


class _Cursor:
  """A position in a file, whose lengths are checked before they are read."""

  def __init__(self, stream: BinaryIO, file: epath.Path, size: int) -> None:
    self.file, self.size, self.position = file, size, 0
    self._stream = stream

  def read_bytes(self, count: int, description: str) -> bytes:
    """Reads `count` bytes; `description` describes them, for errors."""
    if self.position + count > self.size:
      raise ValueError(
        f'{self.file} must have {self.position + count} bytes or more, for'
        f' {description}, got {self.size}'
      )
    if self.position + count > _MAX_HEADER_BYTES:
      raise ValueError(
        f'{self.file}: the header must have at most {_MAX_HEADER_BYTES} bytes,'
        f' got more at {description}'
      )
    self.position += count
    return self._stream.read(count)

  def read_integer(self, struct_format: str, description: str) -> int:
    """Reads an integer."""
    return struct.unpack(
      struct_format,
      self.read_bytes(struct.calcsize(struct_format), description),
    )[0]

  def read_count(self, description: str, limit: int) -> int:
    """Reads a 64-bit count of at most `limit`."""
    count = self.read_integer('<Q', description)
    if count > limit:
      raise ValueError(
        f'{self.file}: the {description} must be at most {limit}, got {count}'
      )
    return count

  def read_text(self, description: str) -> str:
    """Reads a string."""
    size = self.read_integer('<Q', description)
    try:
      return self.read_bytes(size, description).decode()
    except UnicodeDecodeError:
      raise ValueError(
        f'{self.file}: {description} must be UTF-8, got other bytes'
      ) from None


def _read_fields(cursor: _Cursor, count: int) -> dict[str, Any]:
  """Reads the fields of the metadata."""
  fields: dict[str, Any] = {}
  for number in range(count):
    name = cursor.read_text(f'the name of field {number}')
    if name in fields:
      raise ValueError(
        f'{cursor.file} must hold the field {name[:80]} once, got it twice'
      )
    type_code = cursor.read_integer('<I', name)
    fields[name] = _read_value(cursor, name[:80], type_code)
  return fields


def _read_value(cursor: _Cursor, name: str, type_code: int) -> Any:
  """Reads a value of a type, by the type's code."""
  if type_code == _STRING_CODE:
    return cursor.read_text(name)
  if type_code in _SCALAR_DTYPES:
    dtype = _SCALAR_DTYPES[type_code]
    value = np.frombuffer(cursor.read_bytes(dtype.itemsize, name), dtype)[0]
    # The shortest decimal that rounds to a float32: 1e-05, not 9.99999975e-06.
    return float(str(value)) if dtype.name == 'float32' else value.item()
  if type_code != _ARRAY_CODE:
    raise ValueError(
      f'{cursor.file}: the type of field {name} must be a number up to 12, got'
      f' {type_code}'
    )
  type_code = cursor.read_integer('<I', name)
  count = cursor.read_count(
    f'number of elements of {name}', _MAX_ARRAY_ELEMENTS
  )
  if type_code == _STRING_CODE:
    return [
      cursor.read_text(f'element {index} of {name}') for index in range(count)
    ]
  if type_code not in _SCALAR_DTYPES:
    raise ValueError(
      f'{cursor.file}: the elements of field {name} must be numbers or texts,'
      f' got type {type_code}'
    )
  dtype = _SCALAR_DTYPES[type_code]
  content = cursor.read_bytes(count * dtype.itemsize, name)
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
  name = cursor.read_text('the name of a tensor')
  owner = f'{cursor.file}: {name[:80]}'
  axes = cursor.read_integer('<I', name)
  if not 1 <= axes <= _MAX_AXES:
    raise ValueError(f'{owner} must have 1 to {_MAX_AXES} axes, got {axes}')
  sizes = [cursor.read_integer('<Q', name) for _ in range(axes)]
  if not all(1 <= size <= 2**40 for size in sizes):
    raise ValueError(f'{owner} must have axes of 1 to 2^40, got {sizes}')
  shape = tuple(reversed(sizes))
  kind = tensor_type(cursor.read_integer('<I', name), owner)
  if shape[-1] % kind.block_size:
    raise ValueError(
      f'{owner} must have rows of whole blocks of {kind.block_size}, as'
      f' {kind.name} needs, got {shape[-1]}'
    )
  return _TensorInfo(name, shape, kind, cursor.read_integer('<Q', name))


def _locate_tensors(
  file: epath.Path,
  infos: list[_TensorInfo],
  data_start: int,
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
    tensors[info.name] = GgufTensor(
      info.shape, info.type, data_start + info.offset
    )
  names_by_start = sorted(tensors, key=lambda name: tensors[name].start)
  for name in names_by_start:
    end = tensors[name].start + tensors[name].size
    if end > size:
      raise ValueError(
        f'{file} must have {end} bytes or more, for {name[:80]}, got {size}'
      )
  for name, next_name in itertools.pairwise(names_by_start):
    end = tensors[name].start + tensors[name].size
    if end > tensors[next_name].start:
      raise ValueError(
        f'{file}: {next_name[:80]} must begin at {end - data_start} or later, where'
        f' {name[:80]} ends, got {tensors[next_name].start - data_start}'
      )
  return tensors
