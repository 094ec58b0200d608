# SPDX-License-Identifier: Apache-2.0
"""Reads slices of tensors from a GGUF file, dequantised to float32.

Tensors have the names, shapes and order of rows of transformers. Llama's query
and key matrices are stored with the two halves of each head interleaved, since
llama.cpp rotates neighbouring rows; this module restores the order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from covrl import storage
from covrl.pretrained.gguf.header import GgufTensor, read_header
from covrl.pretrained.gguf.metadata import Metadata
from covrl.pretrained.weights.tensors import Tensors

# Names of parts of layers, in transformers.
_LAYER_PARTS: Mapping[str, str] = {
  'attn_norm': 'input_layernorm',
  'attn_q': 'self_attn.q_proj',
  'attn_k': 'self_attn.k_proj',
  'attn_v': 'self_attn.v_proj',
  'attn_output': 'self_attn.o_proj',
  'attn_q_norm': 'self_attn.q_norm',
  'attn_k_norm': 'self_attn.k_norm',
  'ffn_norm': 'post_attention_layernorm',
  'ffn_gate': 'mlp.gate_proj',
  'ffn_up': 'mlp.up_proj',
  'ffn_down': 'mlp.down_proj',
  'ffn_gate_inp': 'mlp.gate',
}
# Names of the stacked matrices of experts.
_EXPERT_PARTS: Mapping[str, str] = {
  'ffn_gate_exps': 'gate_proj',
  'ffn_up_exps': 'up_proj',
  'ffn_down_exps': 'down_proj',
}
# Names of the tensors outside of layers.
_OUTER_TENSORS: Mapping[str, str] = {
  'token_embd.weight': 'model.embed_tokens.weight',
  'output_norm.weight': 'model.norm.weight',
  'output.weight': 'lm_head.weight',
}
# Read with the configuration; see `covrl.pretrained.gguf.config`.
ROPE_FACTORS = 'rope_freqs.weight'
# Architectures whose query and key rows are interleaved.
_INTERLEAVED_ARCHITECTURES = ('llama',)
_MAX_EXPERTS = 2**12


class _StoredRows(NamedTuple):
  """Position and order of a tensor's rows.

  Attributes:
    tensor: the tensor in the file.
    heads: number of heads whose rows are interleaved, or 0.
  """

  tensor: GgufTensor
  heads: int = 0


class GgufTensors(Tensors):
  """The tensors of a GGUF file, under the names of transformers."""

  def __init__(self, file: epath.Path) -> None:
    """Reads the file's header and checks that the file is complete.

    Args:
      file: path of the file.

    Raises:
      ValueError: the file is not a GGUF file, truncated or malformed.
    """
    super().__init__()
    self.path = file
    self._record_version(file)
    metadata, tensors = read_header(file)
    self._tensors = {
      name: stored
      for original, tensor in tensors.items()
      if original != ROPE_FACTORS
      for name, stored in _stored_tensors(original, tensor, metadata)
    }
    self.files = dict.fromkeys(self._tensors, file)

  def shape(self, name: str) -> tuple[int, ...]:
    """Shape of a tensor."""
    return self._tensors[name].tensor.shape

  def dtype(self, name: str) -> np.dtype:
    """Float32, for tensors of all types."""
    del name
    return np.dtype(np.float32)

  def read_rows(
    self, name: str, first: int, stop: int
  ) -> Float[np.ndarray, '...']:
    """Reads rows `first` to `stop - 1` of the leading axis of a tensor."""
    tensor, heads = self._tensors[name]
    file = self.files[name]
    if len(tensor.shape) == 1:
      return _read_stored(file, tensor, 0, 1)[0, first:stop]
    if not heads:
      return _read_stored(file, tensor, first, stop)
    rows = _file_rows(np.arange(first, stop), tensor.shape[0] // heads)
    start = rows.min()
    stored_rows = _read_stored(file, tensor, start, rows.max() + 1)
    return stored_rows[rows - start]


def read_vector(
  file: epath.Path, tensor: GgufTensor
) -> Float[np.ndarray, ' n']:
  """Reads a tensor with one axis."""
  return _read_stored(file, tensor, 0, 1)[0]


def _stored_tensors(
  name: str, tensor: GgufTensor, metadata: Metadata
) -> Iterator[tuple[str, _StoredRows]]:
  """Yields names in transformers with positions of a tensor, or of each expert in it.

  A tensor that is not known keeps its name.
  """
  match = re.fullmatch(r'blk\.(\d+)\.(\w+)\.(weight|bias)', name)
  layer, part, weight_or_bias = match.groups() if match else ('', '', '')
  prefix = f'model.layers.{layer}.'
  if part in _EXPERT_PARTS and len(tensor.shape) == 3:
    if tensor.shape[0] > _MAX_EXPERTS:
      raise ValueError(
        f'{metadata.file}: {name} must be of at most {_MAX_EXPERTS} experts, got'
        f' {tensor.shape[0]}'
      )
    expert_tensor = tensor._replace(shape=tensor.shape[1:])
    for expert in range(tensor.shape[0]):
      yield (
        f'{prefix}mlp.experts.{expert}.{_EXPERT_PARTS[part]}.{weight_or_bias}',
        _StoredRows(
          expert_tensor._replace(
            start=tensor.start + expert * expert_tensor.size
          )
        ),
      )
  elif part in _LAYER_PARTS:
    architecture = metadata.text('general.architecture')
    heads = 0
    if architecture in _INTERLEAVED_ARCHITECTURES and part in (
      'attn_q',
      'attn_k',
    ):
      heads = interleaved_heads(metadata, part)
      if tensor.shape[0] % (2 * heads):
        raise ValueError(
          f'{metadata.file}: {name} must have pairs of rows for each of'
          f' {heads} heads, got {tensor.shape[0]} rows'
        )
    yield (
      f'{prefix}{_LAYER_PARTS[part]}.{weight_or_bias}',
      _StoredRows(tensor, heads),
    )
  else:
    yield _OUTER_TENSORS.get(name, name), _StoredRows(tensor)


def interleaved_heads(metadata: Metadata, part: str) -> int:
  """Number of heads of a query or key matrix."""
  field = f'{metadata.text("general.architecture")}.attention.head_count'
  heads = metadata.integer(field)
  if part == 'attn_k':
    heads = metadata.integer(f'{field}_kv', heads)
  return max(heads, 1)


def _file_rows(
  rows: Int[np.ndarray, ' n'], head_dim: int
) -> Int[np.ndarray, ' n']:
  """Indices in the file of rows in the order of transformers.

  Row i of the first half of a head is row 2i in the file, and row i of the
  second half is row 2i + 1.

  >>> _file_rows(np.arange(4, 8), 4).tolist()
  [4, 6, 5, 7]
  """
  head, row = np.divmod(rows, head_dim)
  half, index = np.divmod(row, head_dim // 2)
  return head * head_dim + 2 * index + half


def _read_stored(
  file: epath.Path, tensor: GgufTensor, first: int, stop: int
) -> Float[np.ndarray, 'rows columns']:
  """Reads and dequantises rows of a tensor, in the order of the file."""
  content = np.empty((stop - first, tensor.row_bytes), np.uint8)
  storage.read_into(file, tensor.start + first * tensor.row_bytes, content)
  return tensor.type.dequantise(content)
