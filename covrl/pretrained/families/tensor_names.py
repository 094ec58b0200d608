# SPDX-License-Identifier: Apache-2.0
"""Tensor names in checkpoints: one table per model family.

Keys are paths into the parameters of `covrl.models.Policy`. Matrices are stored
flat and transposed, as `[out, in]`; `StoredTensor.input_axes` is the number of
leading axes of the parameter that `in` consists of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class StoredTensor(NamedTuple):
  """Name and orientation of a parameter's tensors in a checkpoint.

  Attributes:
    name: name of the tensor; the first `{}` stands for the index of the layer,
      a second one for that of the expert.
    input_axes: number of leading axes of the parameter that its matrix product
      sums over; 0 for tensors that are not transposed.
  """

  name: str
  input_axes: int = 0


TensorNames = Mapping[str, StoredTensor]

_LAYER_PREFIX = 'model.layers.{}.'
_SPARSE_BLOCK_PREFIX = f'{_LAYER_PREFIX}block_sparse_moe.'
_EXPERT_PREFIX = f'{_LAYER_PREFIX}mlp.experts.{{}}.'

LLAMA: TensorNames = {
  'embedding': StoredTensor('model.embed_tokens.weight'),
  'final_norm.scale': StoredTensor('model.norm.weight'),
  'head': StoredTensor('lm_head.weight', 1),
  'layers.attention_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}input_layernorm.weight'
  ),
  'layers.attention.query': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.q_proj.weight', 1
  ),
  'layers.attention.key': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.k_proj.weight', 1
  ),
  'layers.attention.value': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.v_proj.weight', 1
  ),
  'layers.attention.output': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.o_proj.weight', 2
  ),
  'layers.mlp_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}post_attention_layernorm.weight'
  ),
  'layers.mlp.gate': StoredTensor(f'{_LAYER_PREFIX}mlp.gate_proj.weight', 1),
  'layers.mlp.up': StoredTensor(f'{_LAYER_PREFIX}mlp.up_proj.weight', 1),
  'layers.mlp.down': StoredTensor(f'{_LAYER_PREFIX}mlp.down_proj.weight', 1),
}

MISTRAL: TensorNames = LLAMA

QWEN2: TensorNames = {
  **LLAMA,
  'layers.attention.biases.query': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.q_proj.bias'
  ),
  'layers.attention.biases.key': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.k_proj.bias'
  ),
  'layers.attention.biases.value': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.v_proj.bias'
  ),
}

QWEN3: TensorNames = {
  **LLAMA,
  'layers.attention.query_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.q_norm.weight'
  ),
  'layers.attention.key_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}self_attn.k_norm.weight'
  ),
}

MIXTRAL: TensorNames = {
  **MISTRAL,
  'layers.mlp.router': StoredTensor(f'{_SPARSE_BLOCK_PREFIX}gate.weight', 1),
  'layers.mlp.gate': StoredTensor(
    f'{_SPARSE_BLOCK_PREFIX}experts.{{}}.w1.weight', 1
  ),
  'layers.mlp.up': StoredTensor(
    f'{_SPARSE_BLOCK_PREFIX}experts.{{}}.w3.weight', 1
  ),
  'layers.mlp.down': StoredTensor(
    f'{_SPARSE_BLOCK_PREFIX}experts.{{}}.w2.weight', 1
  ),
}

QWEN3_MOE: TensorNames = {
  **QWEN3,
  'layers.mlp.router': StoredTensor(f'{_LAYER_PREFIX}mlp.gate.weight', 1),
  'layers.mlp.gate': StoredTensor(f'{_EXPERT_PREFIX}gate_proj.weight', 1),
  'layers.mlp.up': StoredTensor(f'{_EXPERT_PREFIX}up_proj.weight', 1),
  'layers.mlp.down': StoredTensor(f'{_EXPERT_PREFIX}down_proj.weight', 1),
}

GEMMA2: TensorNames = {
  **LLAMA,
  'layers.attention_post_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}post_attention_layernorm.weight'
  ),
  'layers.mlp_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}pre_feedforward_layernorm.weight'
  ),
  'layers.mlp_post_norm.scale': StoredTensor(
    f'{_LAYER_PREFIX}post_feedforward_layernorm.weight'
  ),
}

GEMMA3: TensorNames = {**QWEN3, **GEMMA2}


def adapter_tensor_names(names: TensorNames) -> TensorNames:
  """PEFT's names for the LoRA adapters of a family's layers, except experts.

  >>> tensor = adapter_tensor_names(LLAMA)['layers.mlp.up_adapter.a']
  >>> tensor.name.format(3)
  'base_model.model.model.layers.3.mlp.up_proj.lora_A.weight'
  """
  adapters: dict[str, StoredTensor] = {}
  for path, tensor in names.items():
    is_per_layer = tensor.name.count('{}') == 1 and not path.endswith('router')
    if is_per_layer and tensor.input_axes:
      module = f'base_model.model.{tensor.name.removesuffix(".weight")}'
      a, b = f'{module}.lora_A.weight', f'{module}.lora_B.weight'
      adapters[f'{path}_adapter.a'] = StoredTensor(a, tensor.input_axes)
      adapters[f'{path}_adapter.b'] = StoredTensor(b, 1)
  return adapters
