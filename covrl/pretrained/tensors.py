# SPDX-License-Identifier: Apache-2.0
"""The tensors of a directory of safetensors files, read a slice at a time.

The files are read and not mapped: of a mapped file every page that was looked
at counts as the process's memory.
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
# Of rows of which only a part is wanted, how much is read at a time.
_BLOCK_BYTES = 2**26


class _Tensor(NamedTuple):
  """One tensor in its file.

  Attributes:
    shape: in the order of the file.
    dtype: of the numbers there.
    start: byte of the file at which they begin.
  """

  shape: tuple[int, ...]
  dtype: np.dtype
  start: int


class Tensors:
  """Where each tensor of a checkpoint is.

  Nothing is read but the headers until `read` asks for it.

  Attributes:
    files: the file of each tensor.
  """

  def __init__(self, directory: epath.PathLike, name: str = 'model') -> None:
    """Finds the files and checks that each of them is whole.

    Args:
      directory: of the checkpoint.
      name: of the file, before `.safetensors`.

    Raises:
      ValueError: a file is missing, cut short, or lacks a tensor.
    """
    self.files: Mapping[str, epath.Path] = _locate(
      storage.path_of(directory), name
    )
    self._tensors: dict[str, _Tensor] = {}
    for file in sorted(set(self.files.values())):
      self._tensors |= _check(file)
    for tensor, file in self.files.items():
      if tensor not in self._tensors:
        raise ValueError(
          f'{file}: must hold {tensor}, as {_index(name)} says, and does not'
        )

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Refuses a tensor that is not there, or of another shape.

    Raises:
      ValueError: says which.
    """
    if name not in self.files:
      places = ', '.join(sorted({file.name for file in self.files.values()}))
      raise ValueError(
        f'the checkpoint must hold {name} of shape {shape}, and it is not in'
        f' {places}'
      )
    if self._tensors[name].shape != shape:
      raise ValueError(
        f'{self.files[name]}: {name} must have shape {shape}, got'
        f' {self._tensors[name].shape}'
      )

  def read(
    self, name: str, part: tuple[slice, ...]
  ) -> Shaped[np.ndarray, '...']:
    """A part of a tensor, in the file's own dtype.

    Besides it at most 64 MiB are in memory.

    Args:
      name: of the tensor.
      part: what of each of its axes.
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


def _index(name: str) -> str:
  return f'{name}.safetensors.index.json'


def _locate(directory: epath.Path, name: str) -> dict[str, epath.Path]:
  """The file of each tensor, by the index or by the only file there is."""
  index, whole = directory / _index(name), directory / f'{name}.safetensors'
  if index.is_file():
    try:
      names = json.loads(index.read_text())['weight_map']
    except (ValueError, KeyError):
      raise ValueError(
        f'{index}: must be JSON with a weight_map, and is not'
      ) from None
    return {tensor: directory / file for tensor, file in names.items()}
  if not whole.is_file():
    raise ValueError(
      f'{directory} must hold {whole.name} or {index.name}, and holds neither'
    )
  return dict.fromkeys(_check(whole), whole)


def _check(file: epath.Path) -> dict[str, _Tensor]:
  """A file's tensors, once it is known to be whole.

  Raises:
    ValueError: it is missing, cut short, or holds numbers of another kind.
  """
  if not file.is_file():
    raise ValueError(f'{file}: is part of the checkpoint, and is not there')
  found = storage.size_of(file)
  with storage.opened(file) as stream:
    size = int.from_bytes(stream.read(8), 'little')
    if found < 8 or size > found - 8:
      raise ValueError(
        f'{file}: must have a header of {size} bytes after the first 8, got'
        f' {found} bytes in all'
      )
    try:
      header = json.loads(stream.read(size))
    except ValueError:
      raise ValueError(
        f'{file}: must begin with a header of JSON, and does not'
      ) from None
  header.pop('__metadata__', None)
  ends = [about['data_offsets'][1] for about in header.values()]
  expected = 8 + size + max(ends, default=0)
  if found != expected:
    last = max(header, key=lambda name: header[name]['data_offsets'][1])
    raise ValueError(
      f'{file}: must have {expected} bytes, {last} being the last of its'
      f' tensors, got {found}'
    )
  for name, about in header.items():
    if about['dtype'] not in _DTYPES:
      raise ValueError(
        f'{file}: {name} must be one of {", ".join(_DTYPES)}, got'
        f' {about["dtype"]}'
      )
  return {
    name: _Tensor(
      tuple(about['shape']),
      _DTYPES[about['dtype']],
      8 + size + about['data_offsets'][0],
    )
    for name, about in header.items()
  }
