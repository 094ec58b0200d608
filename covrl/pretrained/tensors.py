# SPDX-License-Identifier: Apache-2.0
"""The tensors of a directory of safetensors files, read a slice at a time."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Shaped

_INDEX = 'model.safetensors.index.json'
_WHOLE = 'model.safetensors'
_FLOATS = ('F64', 'F32', 'BF16', 'F16')
# Of a slice, how much is in memory at a time beside its destination.
_BLOCK_BYTES = 2**26


class Tensors:
  """Where each tensor of a checkpoint is.

  Nothing is read but the headers until `read` asks for it.

  Attributes:
    files: the file of each tensor.
  """

  def __init__(self, directory: pathlib.Path) -> None:
    """Finds the files and checks that each of them is whole.

    Raises:
      ValueError: a file is missing, cut short, or lacks a tensor.
    """
    self.files: Mapping[str, pathlib.Path] = _locate(directory)
    self._shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(set(self.files.values())):
      self._shapes |= _check(file)
    for name, file in self.files.items():
      if name not in self._shapes:
        raise ValueError(
          f'{file}: must hold {name}, as {_INDEX} says, and does not'
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
    if self._shapes[name] != shape:
      raise ValueError(
        f'{self.files[name]}: {name} must have shape {shape}, got'
        f' {self._shapes[name]}'
      )

  def read(
    self, name: str, part: tuple[slice, ...], dtype: np.dtype
  ) -> Shaped[np.ndarray, '...']:
    """A part of a tensor, transposed, in another dtype.

    Besides the result at most 64 MiB are in memory.

    Args:
      name: of the tensor.
      part: what of each of its axes, in the order of the file.
      dtype: of the result.

    Returns:
      The part; its axes in reverse order.
    """
    from safetensors import safe_open

    shape = self._shapes[name]
    spans = [range(*s.indices(n)) for s, n in zip(part, shape, strict=True)]
    result = np.empty([len(span) for span in spans], dtype)
    width = int(np.prod(result.shape[1:])) * 4
    step = max(_BLOCK_BYTES // max(width, 1), 1)
    # Opened anew for each tensor: pages of a file that stays open count as
    # this process's memory.
    with safe_open(self.files[name], framework='numpy') as file:
      tensor = file.get_slice(name)
      for row in range(0, len(spans[0]), step):
        start = spans[0].start + row
        stop = min(start + step, spans[0].stop)
        result[row : row + step] = tensor[slice(start, stop), *part[1:]]
    return result.T


def _locate(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """The file of each tensor, by the index or by the only file there is."""
  index, whole = directory / _INDEX, directory / _WHOLE
  if index.is_file():
    names = json.loads(index.read_text())['weight_map']
    return {name: directory / file for name, file in names.items()}
  if not whole.is_file():
    raise ValueError(
      f'{directory} must hold {_WHOLE} or {_INDEX}, and holds neither'
    )
  return dict.fromkeys(_check(whole), whole)


def _check(file: pathlib.Path) -> dict[str, tuple[int, ...]]:
  """The shapes of a file's tensors, once it is known to be whole.

  Raises:
    ValueError: it is missing, cut short, or holds numbers of another kind.
  """
  if not file.is_file():
    raise ValueError(f'{file}: is part of the checkpoint, and is not there')
  found = file.stat().st_size
  with file.open('rb') as stream:
    size = int.from_bytes(stream.read(8), 'little')
    if found < 8 or size > found - 8:
      raise ValueError(
        f'{file}: must have a header of {size} bytes after the first 8, got'
        f' {found} bytes in all'
      )
    header = json.loads(stream.read(size))
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
    if about['dtype'] not in _FLOATS:
      raise ValueError(
        f'{file}: {name} must be one of {", ".join(_FLOATS)}, got'
        f' {about["dtype"]}'
      )
  return {name: tuple(about['shape']) for name, about in header.items()}
