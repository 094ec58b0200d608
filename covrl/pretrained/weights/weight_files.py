# SPDX-License-Identifier: Apache-2.0
"""Opens the weight files of a model's directory, whatever their format."""

from __future__ import annotations

from etils import epath

from covrl.pretrained.gguf import GgufTensors, linked_gguf
from covrl.pretrained.weights.tensors import SafetensorsFiles, Tensors

_SAFETENSORS_FILES = ('model.safetensors', 'model.safetensors.index.json')


def open_tensors(directory: epath.Path) -> Tensors:
  """Opens the weights of a model.

  Args:
    directory: directory of the model.

  Raises:
    ValueError: a file is missing or malformed.
  """
  file = linked_gguf(directory)
  return SafetensorsFiles(directory) if file is None else GgufTensors(file)


def has_tensors(directory: epath.Path) -> bool:
  """Whether a directory holds weights that `open_tensors` opens."""
  if linked_gguf(directory) is not None:
    return True
  return any((directory / name).exists() for name in _SAFETENSORS_FILES)
