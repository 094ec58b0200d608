# SPDX-License-Identifier: Apache-2.0
"""Reads and checks headers of safetensors files.

A file is eight bytes with the size of the header, the header, a JSON object
with dtype, shape and position of each tensor, and the tensors' bytes without
gaps.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import jax.numpy as jnp
import numpy as np
from etils import epath

from covrl import storage
from covrl.pretrained.json_files import (
  MAX_JSON_BYTES,
  open_regular_file,
  parse_json,
)

DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'BF16': jnp.dtype(jnp.bfloat16),
  'F16': np.dtype(np.float16),
}
# Tensors of one file, at most; the largest published files have some thousands.
MAX_TENSORS = 2**17
# First bytes of a Git LFS pointer, the text in place of a file that is not downloaded.
_LFS_POINTER = b'version '


class FileTensor(NamedTuple):
  """Shape, dtype and position of a tensor in its file.

  Attributes:
    shape: shape of the tensor.
    dtype: dtype of the tensor.
    start: offset of the tensor in the file, in bytes.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  start: int


def read_header(file: epath.Path) -> dict[str, FileTensor]:
  """Reads the header of a file, and checks it against the size of the file.

  Nothing is allocated for a header that is larger than allowed.

  Raises:
    ValueError: the file is missing, is not a regular file, is truncated, or
      its header is malformed; the message names file and tensor.
  """
  with open_regular_file(file) as stream:
    file_size = storage.file_size(file)
    first_bytes = stream.read(8)
    if first_bytes == _LFS_POINTER:
      raise ValueError(
        f'{file} must hold tensors, got a pointer of Git LFS; `git lfs pull`'
        ' fetches the file'
      )
    header_size = int.from_bytes(first_bytes, 'little')
    if file_size < 8 or header_size > file_size - 8:
      raise ValueError(
        f'{file} must have a header of {header_size} bytes after the first 8, got'
        f' {file_size} bytes in all'
      )
    if header_size > MAX_JSON_BYTES:
      raise ValueError(
        f'{file} must have a header of at most {MAX_JSON_BYTES} bytes, got'
        f' {header_size}'
      )
    header = dict(parse_json(stream.read(header_size), f'{file}: the header'))
  header.pop('__metadata__', None)
  if len(header) > MAX_TENSORS:
    raise ValueError(
      f'{file} must hold at most {MAX_TENSORS} tensors, got {len(header)}'
    )
  entries = {
    name: _check_entry(f'{file}: {name}', entry)
    for name, entry in header.items()
  }
  _check_positions(file, entries, file_size - 8 - header_size)
  return {
    name: FileTensor(entry.shape, entry.dtype, 8 + header_size + entry.begin)
    for name, entry in entries.items()
  }


class _Entry(NamedTuple):
  """A checked entry of a header; positions are relative to its end.

  Attributes:
    shape: shape of the tensor.
    dtype: type of its elements.
    begin: position of its first byte.
    end: position after its last byte.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  begin: int
  end: int


def _check_entry(owner: str, entry: Any) -> _Entry:
  """Checks one entry of a header by itself.

  Args:
    owner: file and tensor, for errors.
    entry: the decoded JSON.
  """
  if not isinstance(entry, Mapping):
    raise ValueError(
      f'{owner} must have dtype, shape and data_offsets, got {str(entry)[:80]}'
    )
  dtype, shape = entry.get('dtype'), entry.get('shape')
  offsets = entry.get('data_offsets')
  if not isinstance(dtype, str) or dtype not in DTYPES:
    raise ValueError(
      f'{owner} must be one of {", ".join(DTYPES)}, got {str(dtype)[:40]}'
    )
  if not _are_sizes(shape):
    raise ValueError(
      f'{owner}: shape must be a list of sizes, got {str(shape)[:80]}'
    )
  if not _are_sizes(offsets) or len(offsets) != 2:
    raise ValueError(
      f'{owner}: data_offsets must be two positions, got {str(offsets)[:80]}'
    )
  begin, end = offsets
  expected_size = math.prod(shape) * DTYPES[dtype].itemsize
  if end - begin != expected_size:
    raise ValueError(
      f'{owner} must have {expected_size} bytes, as its shape {tuple(shape)} and'
      f' dtype {dtype} need, got data_offsets {offsets}'
    )
  return _Entry(tuple(shape), DTYPES[dtype], begin, end)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
  """Whether a value is a list of integers of at least 0."""
  return isinstance(value, list) and all(
    type(size) is int and size >= 0 for size in value
  )


def _check_positions(
  file: epath.Path, entries: Mapping[str, _Entry], data_size: int
) -> None:
  """Checks that tensors fill the data without overlaps and gaps."""
  names_by_position = sorted(entries, key=lambda name: entries[name][2:])
  last_name, data_end = '', 0
  if names_by_position:
    last_name, data_end = (
      names_by_position[-1],
      entries[names_by_position[-1]].end,
    )
  if data_size != data_end:
    data_start = storage.file_size(file) - data_size
    raise ValueError(
      f'{file} must have {data_start + data_end} bytes, {last_name or "none"} being the last'
      f' of its tensors, got {data_start + data_size}'
    )
  if names_by_position and entries[names_by_position[0]].begin:
    raise ValueError(
      f'{file}: {names_by_position[0]} must begin at 0, as the first of the tensors, got'
      f' {entries[names_by_position[0]].begin}'
    )
  for previous, name in itertools.pairwise(names_by_position):
    if entries[name].begin != entries[previous].end:
      raise ValueError(
        f'{file}: {name} must begin at {entries[previous].end}, where {previous}'
        f' ends, got {entries[name].begin}'
      )
