# SPDX-License-Identifier: Apache-2.0
"""Reads slices of tensors from the weight files of a checkpoint.

The files are not memory-mapped, since every page read from a mapped file counts
as the process's memory.
"""

from __future__ import annotations

import abc
import math
import re
import warnings
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Shaped

from covrl import storage
from covrl.pretrained.json_files import read_json
from covrl.pretrained.weights.safetensors_header import FileTensor, read_header

# Bytes per read of whole rows if only a part of each row is needed, or if rows
# are converted or checked.
_BLOCK_BYTES = 2**26


class Tensors(abc.ABC):
  """The tensors of a checkpoint, read on demand.

  Attributes:
    path: the checkpoint's file or directory, for errors.
    files: file of each tensor, by the tensor's name.
  """

  path: epath.Path
  files: Mapping[str, epath.Path]

  def __init__(self) -> None:
    self._versions: dict[epath.Path, str] = {}
    # Whether all numbers of a tensor that were read are 0.
    self._is_zero: dict[str, bool] = {}

  @abc.abstractmethod
  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor."""

  @abc.abstractmethod
  def dtype(self, name: str) -> np.dtype:
    """Dtype in which a tensor is read."""

  @abc.abstractmethod
  def read_rows(
    self, name: str, first: int, stop: int
  ) -> Shaped[np.ndarray, '...']:
    """Reads rows `first` to `stop - 1` of the leading axis of a tensor."""

  def check_unchanged(self) -> None:
    """Checks that no file has changed since its header was read.

    If a file is replaced while it is read, numbers at the positions in the old
    header belong to other tensors, and may be finite, so that no other check fails.

    Raises:
      ValueError: a file has changed.
    """
    for file, version in self._versions.items():
      if storage.file_version(file) != version:
        raise ValueError(
          f'{file} must stay as it is while it is read, got one that has changed'
        )

  def _record_version(self, file: epath.Path) -> None:
    """Stores the version of a file whose header is going to be read."""
    self._versions[file] = storage.file_version(file)

  def check(self, name: str, shape: tuple[int, ...]) -> None:
    """Checks that a tensor exists and has the expected shape.

    Raises:
      ValueError: the tensor is missing or has another shape.
    """
    if name not in self.files:
      files = ', '.join(sorted({file.name for file in self.files.values()}))
      raise ValueError(
        f'{self.path}: the checkpoint must hold {name} of shape {shape}, got'
        f' {files or "no weight file"} without it'
      )
    if self.shape(name) != shape:
      raise ValueError(
        f'{self.files[name]}: {name} must have shape {shape}, got'
        f' {self.shape(name)}'
      )

  def read(
    self, name: str, part: tuple[slice, ...], dtype: np.dtype | None = None
  ) -> Shaped[np.ndarray, '...']:
    """Reads a part of a tensor.

    Uses at most 64 MiB of memory besides the result.

    Args:
      name: name of the tensor.
      part: slice of each of its axes.
      dtype: floating-point dtype that the caller converts the result to; that
        of the result unless given.

    Returns:
      The part, in the tensor's own dtype.

    Raises:
      ValueError: a number is not finite, in the file or in `dtype`.
    """
    shape, tensor_dtype = self.shape(name), self.dtype(name)
    rows, *other_axes = (
      range(*part_slice.indices(size))
      for part_slice, size in zip(part, shape, strict=True)
    )
    columns = tuple(slice(span.start, span.stop) for span in other_axes)
    result = np.empty([len(rows), *map(len, other_axes)], tensor_dtype)
    row_bytes = max(math.prod(shape[1:]) * tensor_dtype.itemsize, 1)
    rows_per_block = max(_BLOCK_BYTES // row_bytes, 1)
    is_zero = self._is_zero.get(name, True)
    for first in range(rows.start, rows.stop, rows_per_block):
      stop = min(first + rows_per_block, rows.stop)
      block = self.read_rows(name, first, stop)[:, *columns]
      is_zero = is_zero and not block.any()
      _check_finite(block, dtype or tensor_dtype, f'{self.files[name]}: {name}')
      result[first - rows.start : stop - rows.start] = block
    self._is_zero[name] = is_zero
    return result

  def warn_of_zeros(self) -> None:
    """Names matrices of which all numbers that were read are 0.

    A file may have its full size before it is downloaded: what is missing is 0.
    """
    zeros = [
      name
      for name, is_zero in self._is_zero.items()
      if is_zero and len(self.shape(name)) > 1
    ]
    if zeros:
      warnings.warn(
        f'{self.path}: {len(zeros)} of {len(self._is_zero)} tensors are matrices'
        f' of zeros, the first of them {zeros[0]}, as an interrupted download'
        ' leaves them',
        stacklevel=3,
      )

  def equal(self, name: str, other: str) -> bool:
    """Whether two tensors hold the same numbers."""
    shape = self.shape(name)
    if shape != self.shape(other):
      return False
    row_bytes = max(math.prod(shape[1:]) * self.dtype(name).itemsize, 1)
    rows_per_block = max(_BLOCK_BYTES // row_bytes, 1)
    return all(
      np.array_equal(
        self.read_rows(name, first, min(first + rows_per_block, shape[0])),
        self.read_rows(other, first, min(first + rows_per_block, shape[0])),
      )
      for first in range(0, shape[0], rows_per_block)
    )


class SafetensorsFiles(Tensors):
  """The tensors of one or several safetensors files."""

  def __init__(self, directory: epath.PathLike, name: str = 'model') -> None:
    """Reads the files' headers and checks that the files are complete.

    Args:
      directory: directory of the checkpoint.
      name: name of the file, without `.safetensors`.

    Raises:
      ValueError: a file is missing, malformed, or lacks a tensor.
    """
    super().__init__()
    self.path = directory = storage.as_path(directory)
    files: dict[str, epath.Path] = {}
    self._tensors: dict[str, FileTensor] = {}
    file_name_of = _file_names_by_tensor(directory, name)
    for file in sorted(
      {directory / file_name for file_name in file_name_of.values()}
    ):
      self._record_version(file)
      for tensor, entry in read_header(file).items():
        if tensor in files:
          raise ValueError(
            f'{file} must not hold {tensor}, got it there and in {files[tensor]}'
          )
        files[tensor], self._tensors[tensor] = file, entry
    for tensor, file_name in file_name_of.items():
      if tensor and files.get(tensor) != directory / file_name:
        raise ValueError(
          f'{directory / file_name} must hold {tensor}, as {_index_name(name)} states,'
          ' got a file without it'
        )
    self.files = files

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor."""
    return self._tensors[name].shape

  def dtype(self, name: str) -> np.dtype:
    """Dtype of a tensor in its file."""
    return self._tensors[name].dtype

  def read_rows(
    self, name: str, first: int, stop: int
  ) -> Shaped[np.ndarray, '...']:
    """Reads rows `first` to `stop - 1` of the leading axis of a tensor."""
    tensor = self._tensors[name]
    rows = np.empty((stop - first, *tensor.shape[1:]), tensor.dtype)
    row_size = math.prod(tensor.shape[1:])
    begin = tensor.start + first * row_size * tensor.dtype.itemsize
    storage.read_into(self.files[name], begin, rows)
    return rows


def _check_finite(
  block: Shaped[np.ndarray, '...'], dtype: np.dtype, owner: str
) -> None:
  """Checks that numbers are finite, and stay so in another dtype."""
  if not np.isfinite(block).all():
    raise ValueError(f'{owner} must be finite, got {_first_not_finite(block)}')
  if jnp.finfo(dtype).max < jnp.finfo(block.dtype).max:
    with np.errstate(over='ignore'):
      converted = block.astype(dtype)
    if not np.isfinite(converted).all():
      largest = float(np.abs(block.astype(np.float64)).max())
      raise ValueError(
        f'{owner} must be finite in {dtype.name}, got {largest:g}; load it in a'
        ' wider dtype'
      )


def _first_not_finite(block: Shaped[np.ndarray, '...']) -> float:
  """The first number that is NaN or infinite."""
  return float(block[~np.isfinite(block)][0])


def _index_name(name: str) -> str:
  """Name of the index of a checkpoint with several files."""
  return f'{name}.safetensors.index.json'


def _file_names_by_tensor(directory: epath.Path, name: str) -> dict[str, str]:
  """Name of each tensor's file; the key is empty without an index.

  A single file takes precedence over an index, as in transformers.
  """
  index = directory / _index_name(name)
  single_file = directory / f'{name}.safetensors'
  if single_file.exists():
    if index.exists():
      warnings.warn(
        f'{index} is not read, since {single_file.name} is beside it',
        stacklevel=4,
      )
    return {'': single_file.name}
  if not index.exists():
    raise ValueError(
      f'{directory} must hold {single_file.name} or {index.name}, got neither'
    )
  files = read_json(index)[0].get('weight_map')
  if not isinstance(files, dict) or not files:
    raise ValueError(f'{index} must have a weight_map of tensors, got none')
  for tensor, file in files.items():
    if not isinstance(file, str) or not re.fullmatch(
      r'[^/\\\x00]{1,200}\.safetensors', file
    ):
      raise ValueError(
        f'{index}: {tensor} must be in a .safetensors file of the same'
        f' directory, got {str(file)[:80]!r}'
      )
  return files
