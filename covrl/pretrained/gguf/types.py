# SPDX-License-Identifier: Apache-2.0
"""Types of tensors in GGUF files: blocks of quantised numbers."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8


class TensorType(NamedTuple):
  """A type of tensors.

  Attributes:
    code: number of the type in a file.
    name: name of the type, such as `Q4_1`.
    block_size: numbers per block.
    block_bytes: bytes per block.
  """

  code: int
  name: str
  block_size: int
  block_bytes: int

  def dequantise(
    self, rows: UInt8[np.ndarray, 'rows bytes']
  ) -> Float[np.ndarray, 'rows columns']:
    """Converts the bytes of rows to float32."""
    library_type = _library().GGMLQuantizationType(self.code)
    return np.asarray(
      _library().quants.dequantize(rows, library_type), np.float32
    )


def tensor_type(code: int, owner: str) -> TensorType:
  """The tensor type with a code in GGUF files.

  Args:
    code: number of the type in the file.
    owner: file and tensor, for errors.

  Raises:
    ValueError: the type is unknown, or cannot be dequantised.
  """
  result = _find_type(code)
  if result is None:
    known = [_find_type(candidate) for candidate in range(64)]
    names = ', '.join(
      candidate.name for candidate in known if candidate is not None
    )
    raise ValueError(
      f'{owner} must have a type of {names}, got {_type_name(code)}'
    )
  return result


@functools.cache
def _find_type(code: int) -> TensorType | None:
  """The tensor type with a code; `None` if it cannot be dequantised."""
  library = _library()
  try:
    library_type = library.GGMLQuantizationType(code)
  except ValueError:
    return None
  block_size, block_bytes = library.GGML_QUANT_SIZES[library_type]
  candidate = TensorType(code, library_type.name, block_size, block_bytes)
  try:
    candidate.dequantise(np.zeros((1, block_bytes), np.uint8))
  except NotImplementedError:
    return None
  return candidate


def _type_name(code: int) -> str:
  """Name of a type for errors."""
  try:
    return _library().GGMLQuantizationType(code).name
  except ValueError:
    return f'number {code}'


@functools.cache
def _library() -> Any:
  """The library `gguf`.

  Raises:
    ValueError: it is not installed.
  """
  try:
    import gguf
  except ModuleNotFoundError:
    raise ValueError(
      'GGUF files need the library gguf, which is not installed:'
      " pip install 'covrl[gguf]'"
    ) from None
  return gguf
