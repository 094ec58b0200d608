# SPDX-License-Identifier: Apache-2.0
"""Families of models: a config.json to a `ModelConfig`, and back.

A family is what transformers calls an architecture. DeepSeek-Math is a
`LlamaForCausalLM`, and is read as one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from covrl.models import (
  Experts,
  Llama3Scaling,
  ModelConfig,
  RopeScaling,
  YarnScaling,
)
from covrl.pretrained import names
from covrl.pretrained.names import Names
from covrl.pretrained.rope import Fields, rope_fields, rope_of

_ACTIVATIONS = {
  'silu': 'silu',
  'gelu_tanh': 'gelu_pytorch_tanh',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One architecture of transformers.

  Attributes:
    architecture: its class.
    model_type: its name in a config.json.
    names: what its checkpoints call the parameters.
    read: from the fields of a config.json to those of a `ModelConfig` in which
      the family differs from Llama.
    write: back.
    tied: whether embeddings are tied if the file does not say so.
    theta: base of the rotary wavelengths if the file does not say so.
  """

  architecture: str
  model_type: str
  names: Names
  read: Callable[[Fields], dict[str, Any]]
  write: Callable[[ModelConfig], dict[str, Any]]
  tied: bool = False
  theta: float = 10000.0


def model_config(fields: Fields, dtype: str, file: str) -> ModelConfig:
  """The model that a config.json describes.

  Args:
    fields: of the file.
    dtype: of parameters and activations.
    file: its name, for errors.

  Raises:
    ValueError: the architecture, its activation or its rotations are unknown,
      or a field is missing.
  """
  family = family_of(fields, file)
  try:
    numbers: dict[str, Any] = _common(fields, family)
    numbers |= rope_of(fields, family.theta) | family.read(fields)
    return ModelConfig(**numbers, dtype=dtype, param_dtype=dtype)
  except KeyError as error:
    raise ValueError(
      f'{file}: a {family.architecture} must state {error.args[0]}, and it'
      ' is not there'
    ) from None
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None


def family_of(fields: Fields, file: str) -> Family:
  """The family that a config.json names.

  Raises:
    ValueError: it names none of those here.
  """
  named = (fields.get('architectures') or [None])[0]
  for family in FAMILIES:
    if named == family.architecture:
      return family
  known = ', '.join(family.architecture for family in FAMILIES)
  raise ValueError(
    f'{file}: the architecture must be one of {known}, got {named}'
  )


def describe(config: ModelConfig) -> dict[str, Any]:
  """The config.json of a model, of the first family that can say all of it.

  Raises:
    ValueError: no family can.
  """
  for family in FAMILIES:
    fields = _fields(config, family)
    if model_config(fields, config.param_dtype, '') == dataclasses.replace(
      config, dtype=config.param_dtype, remat='nothing'
    ):
      return fields
  raise ValueError(
    f'a model that one of the families can describe is required, got {config}'
  )


def _common(fields: Fields, family: Family) -> dict[str, Any]:
  """What all families say in the same words."""
  heads, dim = fields['num_attention_heads'], fields['hidden_size']
  for name in ('attention_bias', 'mlp_bias'):
    if fields.get(name):
      raise ValueError(
        f'{name} must be false for a {family.architecture}, got true'
      )
  activation = fields.get('hidden_activation') or fields.get('hidden_act')
  known = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}
  if activation not in known:
    raise ValueError(
      f'the activation must be one of {sorted(known)}, got {activation!r}'
    )
  return {
    'vocab_size': fields['vocab_size'],
    'num_layers': fields['num_hidden_layers'],
    'model_dim': dim,
    'num_heads': heads,
    'num_kv_heads': fields.get('num_key_value_heads') or heads,
    'head_dim': fields.get('head_dim') or dim // heads,
    'hidden_dim': fields['intermediate_size'],
    'activation': known[activation],
    'norm_eps': fields.get('rms_norm_eps', 1e-6),
    'tied_embeddings': fields.get('tie_word_embeddings', family.tied),
  }


def _fields(config: ModelConfig, family: Family) -> dict[str, Any]:
  """A config.json of a family, as far as it can say what the model is."""
  return {
    'architectures': [family.architecture],
    'model_type': family.model_type,
    'vocab_size': config.vocab_size,
    'num_hidden_layers': config.num_layers,
    'hidden_size': config.model_dim,
    'num_attention_heads': config.num_heads,
    'num_key_value_heads': config.num_kv_heads,
    'head_dim': config.head_dim,
    'intermediate_size': config.hidden_dim,
    'hidden_act': _ACTIVATIONS[config.activation],
    'hidden_activation': _ACTIVATIONS[config.activation],
    'rms_norm_eps': config.norm_eps,
    'tie_word_embeddings': config.tied_embeddings,
    'rope_theta': config.rope_theta,
    'rope_scaling': rope_fields(config.rope_scaling),
    'torch_dtype': config.param_dtype,
    **_longest(config.rope_scaling),
    **family.write(config),
  }


def _longest(scaling: RopeScaling | None) -> dict[str, Any]:
  """The longest text that scaled rotations are meant for."""
  if not isinstance(scaling, Llama3Scaling | YarnScaling):
    return {}
  longest = round(scaling.factor * scaling.original_length)
  return {'max_position_embeddings': longest}


def _nothing(given: Any) -> dict[str, Any]:
  del given
  return {}


def _window(config: ModelConfig) -> int | None:
  """The window of the layers that have one."""
  return max(config.windows, default=0) or None


def _layer_types(config: ModelConfig) -> list[str]:
  windows = config.windows or (0,) * config.num_layers
  return ['sliding_attention' if w else 'full_attention' for w in windows]


def _windows(fields: Fields, is_local: Callable[[int], bool]) -> dict[str, Any]:
  """The window of each layer, by its type or else by the family's rule."""
  window, count = fields.get('sliding_window'), fields['num_hidden_layers']
  if window is None:
    return {}
  types = fields.get('layer_types')
  local = (
    [is_local(layer) for layer in range(count)]
    if types is None
    else [kind == 'sliding_attention' for kind in types]
  )
  if not any(local):
    return {}
  return {'windows': tuple(window if each else 0 for each in local)}


def _read_mistral(fields: Fields) -> dict[str, Any]:
  return _windows(fields, lambda layer: True)


def _write_mistral(config: ModelConfig) -> dict[str, Any]:
  return {'sliding_window': _window(config)}


def _read_qwen2(fields: Fields) -> dict[str, Any]:
  found: dict[str, Any] = {'qkv_bias': True}
  if not fields.get('use_sliding_window', False):
    return found
  whole = fields.get('max_window_layers', 28)
  return found | _windows(fields, lambda layer: layer >= whole)


def _read_qwen3(fields: Fields) -> dict[str, Any]:
  return _read_qwen2(fields) | {'qkv_bias': False, 'qk_norm': True}


def _write_qwen(config: ModelConfig) -> dict[str, Any]:
  whole = sum(not window for window in config.windows)
  return {
    'use_sliding_window': any(config.windows),
    'sliding_window': _window(config),
    'max_window_layers': whole if any(config.windows) else config.num_layers,
    'layer_types': _layer_types(config),
  }


def _read_mixtral(fields: Fields) -> dict[str, Any]:
  return _read_mistral(fields) | {
    'experts': Experts(
      count=fields['num_local_experts'], per_token=fields['num_experts_per_tok']
    )
  }


def _write_mixtral(config: ModelConfig) -> dict[str, Any]:
  return _write_mistral(config) | _write_experts(config)


def _read_qwen3_moe(fields: Fields) -> dict[str, Any]:
  if fields.get('mlp_only_layers') or fields.get('decoder_sparse_step', 1) != 1:
    raise ValueError(
      'every layer of a Qwen3MoeForCausalLM must have experts, got'
      f' mlp_only_layers {fields.get("mlp_only_layers")} and'
      f' decoder_sparse_step {fields.get("decoder_sparse_step", 1)}'
    )
  # Newer versions have the name of all mixtures.
  count = fields.get('num_local_experts') or fields['num_experts']
  return _read_qwen3(fields) | {
    'hidden_dim': fields['moe_intermediate_size'],
    'experts': Experts(
      count=count,
      per_token=fields['num_experts_per_tok'],
      normalised=fields.get('norm_topk_prob', False),
    ),
  }


def _write_qwen3_moe(config: ModelConfig) -> dict[str, Any]:
  written = _write_experts(config)
  return _write_qwen(config) | {
    **written,
    'num_experts': written.get('num_local_experts'),
    'moe_intermediate_size': config.hidden_dim,
    'norm_topk_prob': config.experts is not None and config.experts.normalised,
    'decoder_sparse_step': 1,
    'mlp_only_layers': [],
  }


def _write_experts(config: ModelConfig) -> dict[str, Any]:
  if config.experts is None:
    return {'num_local_experts': 1, 'num_experts_per_tok': 1}
  return {
    'num_local_experts': config.experts.count,
    'num_experts_per_tok': config.experts.per_token,
  }


def _read_gemma(fields: Fields) -> dict[str, Any]:
  return {
    'attention_scale': fields['query_pre_attn_scalar'] ** -0.5,
    'attention_soft_cap': fields.get('attn_logit_softcapping'),
    'logit_soft_cap': fields.get('final_logit_softcapping'),
    'unit_offset': True,
    'post_norms': True,
    'scaled_embeddings': True,
  }


def _read_gemma2(fields: Fields) -> dict[str, Any]:
  return _read_gemma(fields) | _windows(fields, lambda layer: layer % 2 == 0)


def _read_gemma3(fields: Fields) -> dict[str, Any]:
  period = fields.get('sliding_window_pattern', 6)
  windows = _windows(fields, lambda layer: (layer + 1) % period != 0)
  found = _read_gemma(fields) | windows | {'qk_norm': True}
  if 'rope_parameters' not in fields:
    theta = fields.get('rope_local_base_freq')
    found['local_rope_theta'] = 10000.0 if theta is None else float(theta)
  return found


def _write_gemma(config: ModelConfig) -> dict[str, Any]:
  scale = config.attention_scale or config.head_dim**-0.5
  return {
    # The inverse of an inverse square root; what was there is a whole number.
    'query_pre_attn_scalar': round(scale**-2),
    'attn_logit_softcapping': config.attention_soft_cap,
    'final_logit_softcapping': config.logit_soft_cap,
    'sliding_window': _window(config),
    'layer_types': _layer_types(config),
    'rope_local_base_freq': config.local_rope_theta,
  }


FAMILIES = (
  Family(
    architecture='LlamaForCausalLM',
    model_type='llama',
    names=names.LLAMA,
    read=_nothing,
    write=_nothing,
  ),
  Family(
    architecture='MistralForCausalLM',
    model_type='mistral',
    names=names.MISTRAL,
    read=_read_mistral,
    write=_write_mistral,
  ),
  Family(
    architecture='Qwen2ForCausalLM',
    model_type='qwen2',
    names=names.QWEN2,
    read=_read_qwen2,
    write=_write_qwen,
  ),
  Family(
    architecture='Qwen3ForCausalLM',
    model_type='qwen3',
    names=names.QWEN3,
    read=_read_qwen3,
    write=_write_qwen,
  ),
  Family(
    architecture='MixtralForCausalLM',
    model_type='mixtral',
    names=names.MIXTRAL,
    read=_read_mixtral,
    write=_write_mixtral,
    theta=1e6,
  ),
  Family(
    architecture='Qwen3MoeForCausalLM',
    model_type='qwen3_moe',
    names=names.QWEN3_MOE,
    read=_read_qwen3_moe,
    write=_write_qwen3_moe,
  ),
  Family(
    architecture='Gemma2ForCausalLM',
    model_type='gemma2',
    names=names.GEMMA2,
    read=_read_gemma2,
    write=_write_gemma,
    tied=True,
  ),
  Family(
    architecture='Gemma3ForCausalLM',
    model_type='gemma3_text',
    names=names.GEMMA3,
    read=_read_gemma3,
    write=_write_gemma,
    tied=True,
    theta=1e6,
  ),
)
