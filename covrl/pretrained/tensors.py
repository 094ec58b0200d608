# SPDX-License-Identifier: Apache-2.0
"""Reads slices of tensors from a directory of safetensors files.

The files are not memory-mapped, since every page read from a mapped file counts
as the process's memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Shaped

from covrl import storage

_DTYPES = {
  'F64': np.dtype(np.float64),
  'F32': np.dtype(np.float32),
  'BF16': jnp.dtype(jnp.bfloat16),
  'F16': np.dtype(np.float16),
}
# Bytes per read of whole rows if only a part of each row is needed.
_BLOCK_BYTES = 2**26


class _Tensor(NamedTuple):
  """Shape, dtype and position of a tensor in its file.

  Attributes:
    shape: shape of the tensor.
    dtype: dtype of the tensor.
    start: offset of the tensor in the file, in bytes.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  start: int


class Tensors:
  """The tensors of a checkpoint, read on demand.

  Attributes:
    files: file of each tensor, by the tensor's name.
  """

  def __init__(self, directory: epath.PathLike, name: str = 'model') -> None:
    """Reads the files' headers and checks that the files are complete.

    Args:
      directory: directory of the checkpoint.
      name: name of the file, without `.safetensors`.

    Raises:
      ValueError: a file is missing, truncated, or lacks a tensor.
    """
    self.files: Mapping[str, epath.Path] = _find_files(
      storage.as_path(directory), name
    )
    self._tensors: dict[str, _Tensor] = {}
    for file in sorted(set(self.files.values())):
      self._tensors |= _read_header(file)
    for tensor, file in self.files.items():
      if tensor not in self._tensors:
        raise ValueError(
          f'{file}: must hold {tensor}, as {_index_name(name)} says, and does not'
        )

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Checks that a tensor exists and has the expected shape.

    Raises:
      ValueError: the tensor is missing or has another shape.
    """
    if name not in self.files:
      files = ', '.join(sorted({file.name for file in self.files.values()}))
      raise ValueError(
        f'the checkpoint must hold {name} of shape {shape}, and it is not in'
        f' {files}'
      )
    if self._tensors[name].shape != shape:
      raise ValueError(
        f'{self.files[name]}: {name} must have shape {shape}, got'
        f' {self._tensors[name].shape}'
      )

  def read(
    self, name: str, part: tuple[slice, ...]
  ) -> Shaped[np.ndarray, '...']:
    """Reads a part of a tensor, in the file's dtype.

    Uses at most 64 MiB of memory besides the result.

    Args:
      name: name of the tensor.
      part: slice of each of its axes.
    """
    tensor, file = self._tensors[name], self.files[name]
    rows, *rest = (
      range(*cut.indices(size))
      for cut, size in zip(part, tensor.shape, strict=True)
    )
    width = math.prod(tensor.shape[1:])

    def read(first: int, last: int) -> Shaped[np.ndarray, '...']:
      numbers = np.empty((last - first, *tensor.shape[1:]), tensor.dtype)
      begin = tensor.start + first * width * tensor.dtype.itemsize
      storage.read_into(file, begin, numbers)
      return numbers

    if math.prod(map(len, rest)) == width:
      return read(rows.start, rows.stop)
    columns = tuple(slice(span.start, span.stop) for span in rest)
    result = np.empty([len(rows), *map(len, rest)], tensor.dtype)
    step = max(_BLOCK_BYTES // (width * tensor.dtype.itemsize), 1)
    for first in range(rows.start, rows.stop, step):
      last = min(first + step, rows.stop)
      block = read(first, last)[:, *columns]
      result[first - rows.start : last - rows.start] = block
    return result


def _index_name(name: str) -> str:
  return f'{name}.safetensors.index.json'


def _find_files(directory: epath.Path, name: str) -> dict[str, epath.Path]:
  """File of each tensor, from the index if there are several files."""
  index = directory / _index_name(name)
  single = directory / f'{name}.safetensors'
  if index.is_file():
    try:
      names = json.loads(index.read_text())['weight_map']
    except (ValueError, KeyError):
      raise ValueError(
        f'{index}: must be JSON with a weight_map, and is not'
      ) from None
    return {tensor: directory / file for tensor, file in names.items()}
  if not single.is_file():
    raise ValueError(
      f'{directory} must hold {single.name} or {index.name}, and holds neither'
    )
  return dict.fromkeys(_read_header(single), single)


def _read_header(file: epath.Path) -> dict[str, _Tensor]:
  """Reads the header of a file and checks the size of the file.

  Raises:
    ValueError: the file is missing, truncated, or has an unsupported dtype.
  """
  if not file.is_file():
    raise ValueError(f'{file}: is part of the checkpoint, and is not there')
  file_size = storage.file_size(file)
  with storage.open_binary(file) as stream:
    size = int.from_bytes(stream.read(8), 'little')
    if file_size < 8 or size > file_size - 8:
      raise ValueError(
        f'{file}: must have a header of {size} bytes after the first 8, got'
        f' {file_size} bytes in all'
      )
    try:
      header = json.loads(stream.read(size))
    except ValueError:
      raise ValueError(
        f'{file}: must begin with a header of JSON, and does not'
      ) from None
  header.pop('__metadata__', None)
  ends = [entry['data_offsets'][1] for entry in header.values()]
  expected = 8 + size + max(ends, default=0)
  if file_size != expected:
    last = max(header, key=lambda name: header[name]['data_offsets'][1])
    raise ValueError(
      f'{file}: must have {expected} bytes, {last} being the last of its'
      f' tensors, got {file_size}'
    )
  for name, entry in header.items():
    if entry['dtype'] not in _DTYPES:
      raise ValueError(
        f'{file}: {name} must be one of {", ".join(_DTYPES)}, got'
        f' {entry["dtype"]}'
      )
  return {
    name: _Tensor(
      tuple(entry['shape']),
      _DTYPES[entry['dtype']],
      8 + size + entry['data_offsets'][0],
    )
    for name, entry in header.items()
  }
