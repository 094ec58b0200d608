# SPDX-License-Identifier: Apache-2.0
"""What a family's checkpoint calls each parameter: one table per family.

Keys are paths into the parameters of `covrl.models.Policy`; `{}` in a name is
the layer, a second one the expert. A product's matrix is stored transposed and flat, `[out, in]`;
`inputs` says how many leading axes of ours make up its `in`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Stored(NamedTuple):
  """How a parameter is stored.

  Attributes:
    name: of the tensor, `{}` standing for the layer, and then the expert.
    inputs: leading axes that a product sums over; 0 for what is stored as it
      is.
  """

  name: str
  inputs: int = 0


Names = Mapping[str, Stored]

_LAYER = 'model.layers.{}.'
_ROUTED = f'{_LAYER}block_sparse_moe.'
_EXPERT = f'{_LAYER}mlp.experts.{{}}.'

LLAMA: Names = {
  'embedding': Stored('model.embed_tokens.weight'),
  'final_norm.scale': Stored('model.norm.weight'),
  'head': Stored('lm_head.weight', inputs=1),
  'layers.attention_norm.scale': Stored(f'{_LAYER}input_layernorm.weight'),
  'layers.attention.query': Stored(f'{_LAYER}self_attn.q_proj.weight', 1),
  'layers.attention.key': Stored(f'{_LAYER}self_attn.k_proj.weight', 1),
  'layers.attention.value': Stored(f'{_LAYER}self_attn.v_proj.weight', 1),
  'layers.attention.output': Stored(f'{_LAYER}self_attn.o_proj.weight', 2),
  'layers.mlp_norm.scale': Stored(f'{_LAYER}post_attention_layernorm.weight'),
  'layers.mlp.gate': Stored(f'{_LAYER}mlp.gate_proj.weight', 1),
  'layers.mlp.up': Stored(f'{_LAYER}mlp.up_proj.weight', 1),
  'layers.mlp.down': Stored(f'{_LAYER}mlp.down_proj.weight', 1),
}

MISTRAL: Names = LLAMA

QWEN2: Names = {
  **LLAMA,
  'layers.attention.biases.query': Stored(f'{_LAYER}self_attn.q_proj.bias'),
  'layers.attention.biases.key': Stored(f'{_LAYER}self_attn.k_proj.bias'),
  'layers.attention.biases.value': Stored(f'{_LAYER}self_attn.v_proj.bias'),
}

QWEN3: Names = {
  **LLAMA,
  'layers.attention.query_norm.scale': Stored(
    f'{_LAYER}self_attn.q_norm.weight'
  ),
  'layers.attention.key_norm.scale': Stored(f'{_LAYER}self_attn.k_norm.weight'),
}

MIXTRAL: Names = {
  **MISTRAL,
  'layers.mlp.router': Stored(f'{_ROUTED}gate.weight', 1),
  'layers.mlp.gate': Stored(f'{_ROUTED}experts.{{}}.w1.weight', 1),
  'layers.mlp.up': Stored(f'{_ROUTED}experts.{{}}.w3.weight', 1),
  'layers.mlp.down': Stored(f'{_ROUTED}experts.{{}}.w2.weight', 1),
}

QWEN3_MOE: Names = {
  **QWEN3,
  'layers.mlp.router': Stored(f'{_LAYER}mlp.gate.weight', 1),
  'layers.mlp.gate': Stored(f'{_EXPERT}gate_proj.weight', 1),
  'layers.mlp.up': Stored(f'{_EXPERT}up_proj.weight', 1),
  'layers.mlp.down': Stored(f'{_EXPERT}down_proj.weight', 1),
}

GEMMA2: Names = {
  **LLAMA,
  'layers.attention_post_norm.scale': Stored(
    f'{_LAYER}post_attention_layernorm.weight'
  ),
  'layers.mlp_norm.scale': Stored(f'{_LAYER}pre_feedforward_layernorm.weight'),
  'layers.mlp_post_norm.scale': Stored(
    f'{_LAYER}post_feedforward_layernorm.weight'
  ),
}

GEMMA3: Names = {**QWEN3, **GEMMA2}


def adapter_names(names: Names) -> Names:
  """What PEFT calls the adapters of the layers' matrices, experts aside.

  >>> stored = adapter_names(LLAMA)['layers.mlp.up_adapter.a']
  >>> stored.name.format(3)
  'base_model.model.model.layers.3.mlp.up_proj.lora_A.weight'
  """
  found: dict[str, Stored] = {}
  for path, stored in names.items():
    is_one = stored.name.count('{}') == 1 and not path.endswith('router')
    if is_one and stored.inputs:
      module = f'base_model.model.{stored.name.removesuffix(".weight")}'
      a, b = f'{module}.lora_A.weight', f'{module}.lora_B.weight'
      found[f'{path}_adapter.a'] = Stored(a, stored.inputs)
      found[f'{path}_adapter.b'] = Stored(b, inputs=1)
  return found
