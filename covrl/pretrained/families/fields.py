# SPDX-License-Identifier: Apache-2.0
"""Fields of config.json in which model families differ from Llama.

For each family, `read_…` converts the fields of a config.json to those of a
`ModelConfig`, and `write_…` converts them back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from covrl.models import Experts, ModelConfig
from covrl.pretrained.families.rope import Fields


def read_llama(fields: Fields) -> dict[str, Any]:
  """No fields: families are described by their differences from Llama."""
  del fields
  return {}


def write_llama(config: ModelConfig) -> dict[str, Any]:
  """No fields: families are described by their differences from Llama."""
  del config
  return {}


def _window(config: ModelConfig) -> int | None:
  """Window of the layers that have one, or `None`."""
  return max(config.windows, default=0) or None


def _layer_types(config: ModelConfig) -> list[str]:
  """Type of attention of each layer."""
  windows = config.windows or (0,) * config.num_layers
  return ['sliding_attention' if w else 'full_attention' for w in windows]


def _read_windows(
  fields: Fields, is_local: Callable[[int], bool]
) -> dict[str, Any]:
  """Windows of all layers, by their types or else by the family's rule.

  Args:
    fields: the fields of a config.json.
    is_local: whether a layer, by its index, has a window.
  """
  window, num_layers = fields.get('sliding_window'), fields['num_hidden_layers']
  if window is None:
    return {}
  types = fields.get('layer_types')
  has_window = (
    [is_local(layer) for layer in range(num_layers)]
    if types is None
    else [kind == 'sliding_attention' for kind in types]
  )
  if not any(has_window):
    return {}
  return {'windows': tuple(window if local else 0 for local in has_window)}


def read_mistral(fields: Fields) -> dict[str, Any]:
  """Windows of all layers; transformers does not read `layer_types` here.

  Raises:
    ValueError: some layers have no window.
  """
  types = fields.get('layer_types') or ['sliding_attention']
  if fields.get('sliding_window') and set(types) != {'sliding_attention'}:
    raise ValueError(
      'layer_types must be sliding_attention in all layers with a sliding_window'
      f' of {fields["sliding_window"]}, got {str(types)[:80]}'
    )
  return _read_windows({**fields, 'layer_types': None}, lambda layer: True)


def write_mistral(config: ModelConfig) -> dict[str, Any]:
  """Window of all layers."""
  return {'sliding_window': _window(config)}


def read_qwen2(fields: Fields) -> dict[str, Any]:
  """Biases, and windows of the last layers if enabled."""
  bias: dict[str, Any] = {'qkv_bias': True}
  if not fields.get('use_sliding_window', False):
    return bias
  num_full_layers = fields.get('max_window_layers', 28)
  return bias | _read_windows(fields, lambda layer: layer >= num_full_layers)


def read_qwen3(fields: Fields) -> dict[str, Any]:
  """Norms of queries and keys, and windows as in Qwen2."""
  return read_qwen2(fields) | {'qkv_bias': False, 'qk_norm': True}


def write_qwen(config: ModelConfig) -> dict[str, Any]:
  """Windows of Qwen2 and Qwen3."""
  num_full_layers = sum(not window for window in config.windows)
  return {
    'use_sliding_window': any(config.windows),
    'sliding_window': _window(config),
    'max_window_layers': num_full_layers
    if any(config.windows)
    else config.num_layers,
    'layer_types': _layer_types(config),
  }


def read_mixtral(fields: Fields) -> dict[str, Any]:
  """Experts, and windows as in Mistral."""
  return read_mistral(fields) | {
    'experts': Experts(
      count=fields['num_local_experts'], per_token=fields['num_experts_per_tok']
    )
  }


def write_mixtral(config: ModelConfig) -> dict[str, Any]:
  """Experts and window."""
  return write_mistral(config) | _write_experts(config)


def read_qwen3_moe(fields: Fields) -> dict[str, Any]:
  """Experts in every layer, and a window of all layers or none; else as Qwen3.

  transformers reads neither `max_window_layers` nor `layer_types` here.

  Raises:
    ValueError: some layers have no experts.
  """
  if fields.get('mlp_only_layers') or fields.get('decoder_sparse_step', 1) != 1:
    raise ValueError(
      'every layer of a Qwen3MoeForCausalLM must have experts, got'
      f' mlp_only_layers {fields.get("mlp_only_layers")} and'
      f' decoder_sparse_step {fields.get("decoder_sparse_step", 1)}'
    )
  # Newer versions of transformers use the name of other mixtures.
  count = fields.get('num_local_experts') or fields['num_experts']
  windowed_fields = {**fields, 'max_window_layers': 0, 'layer_types': None}
  return read_qwen3(windowed_fields) | {
    'hidden_dim': fields['moe_intermediate_size'],
    'experts': Experts(
      count=count,
      per_token=fields['num_experts_per_tok'],
      normalised=fields.get('norm_topk_prob', False),
    ),
  }


def write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
  """Experts and windows."""
  expert_fields = _write_experts(config)
  return write_qwen(config) | {
    **expert_fields,
    'num_experts': expert_fields.get('num_local_experts'),
    'moe_intermediate_size': config.hidden_dim,
    'norm_topk_prob': config.experts is not None and config.experts.normalised,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
  }


def _write_experts(config: ModelConfig) -> dict[str, Any]:
  """Fields of a mixture of experts; a dense model is a mixture of one."""
  if config.experts is None:
    return {'num_local_experts': 1, 'num_experts_per_tok': 1}
  return {
    'num_local_experts': config.experts.count,
    'num_experts_per_tok': config.experts.per_token,
  }


def _read_gemma(fields: Fields) -> dict[str, Any]:
  """Fields that Gemma 2 and 3 share."""
  return {
    'attention_scale': fields['query_pre_attn_scalar'] ** -0.5,
    'attention_soft_cap': fields.get('attn_logit_softcapping'),
    'logit_soft_cap': fields.get('final_logit_softcapping'),
    'unit_offset': True,
    'post_norms': True,
    'scaled_embeddings': True,
  }


def read_gemma2(fields: Fields) -> dict[str, Any]:
  """Windows of every second layer, and the fields of all Gemmas."""
  return _read_gemma(fields) | _read_windows(
    fields, lambda layer: layer % 2 == 0
  )


def read_gemma3(fields: Fields) -> dict[str, Any]:
  """Windows, with another rotary base, except in every sixth layer.

  Raises:
    ValueError: there is a soft cap of attention scores, which transformers does
      not apply.
  """
  cap = fields.get('attn_logit_softcapping')
  if cap is not None:
    raise ValueError(
      'attn_logit_softcapping must be absent for a Gemma3ForCausalLM, got'
      f' {cap}'
    )
  period = fields.get('sliding_window_pattern', 6)
  windows = _read_windows(fields, lambda layer: (layer + 1) % period != 0)
  common = _read_gemma(fields) | windows | {'qk_norm': True}
  local_rope = fields.get('rope_parameters', {}).get('sliding_attention', {})
  theta = local_rope.get('rope_theta', fields.get('rope_local_base_freq', 1e4))
  return common | {'local_rope_theta': float(theta)}


def write_gemma(config: ModelConfig) -> dict[str, Any]:
  """Soft caps, attention scale and windows of Gemma 2 and 3."""
  scale = config.attention_scale or config.head_dim**-0.5
  return {
    # The scale is this integer to the power of −1/2.
    'query_pre_attn_scalar': round(scale**-2),
    'attn_logit_softcapping': config.attention_soft_cap,
    'final_logit_softcapping': config.logit_soft_cap,
    'sliding_window': _window(config),
    'layer_types': _layer_types(config),
    'rope_local_base_freq': config.local_rope_theta,
  }
