# SPDX-License-Identifier: Apache-2.0
"""Model families: converts a config.json to a `ModelConfig` and back.

A family is an architecture of transformers. DeepSeek-Math, for example, is a
`LlamaForCausalLM`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from jax.typing import DTypeLike

from covrl.models import (
  Llama3Scaling,
  ModelConfig,
  RopeScaling,
  YarnScaling,
)
from covrl.pretrained.families import fields as family_fields
from covrl.pretrained.families import tensor_names
from covrl.pretrained.families.config_values import check_values
from covrl.pretrained.families.rope import Fields, read_rope, write_rope
from covrl.pretrained.families.tensor_names import TensorNames

# Activations in `ModelConfig`, and their names in a config.json.
_ACTIVATIONS = {
  'silu': 'silu',
  'gelu_tanh': 'gelu_pytorch_tanh',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """One architecture of transformers.

  Attributes:
    architecture: name of the class in transformers.
    model_type: short name in a config.json.
    names: names of the parameters' tensors.
    read: converts the fields of a config.json to those of a `ModelConfig` in
      which the family differs from Llama.
    write: converts a `ModelConfig` to these fields of a config.json.
    tied: default of `tie_word_embeddings`.
    theta: default of `rope_theta`.
    norm_eps: default of `rms_norm_eps`.
    defaults: values of other fields if they are absent; a field that is null has no
      value.
    activation_field: name of the field with the activation function.
  """

  architecture: str
  model_type: str
  names: TensorNames
  read: Callable[[Fields], dict[str, Any]]
  write: Callable[[ModelConfig], dict[str, Any]]
  tied: bool = False
  theta: float = 10000.0
  norm_eps: float = 1e-6
  defaults: Fields = dataclasses.field(default_factory=dict)
  activation_field: Literal['hidden_act', 'hidden_activation'] = 'hidden_act'


def model_config(fields: Fields, dtype: DTypeLike, file: str) -> ModelConfig:
  """Converts a config.json to a `ModelConfig`.

  Args:
    fields: the fields of the file.
    dtype: name of the dtype of parameters and activations.
    file: name of the file, for errors.

  Raises:
    ValueError: architecture, activation or RoPE scaling are unknown, a field is
      missing or out of range, or the architecture and the model type contradict.
  """
  family = find_family(fields, file)
  try:
    check_values(fields)
    _check_model_type(fields, family)
    fields = _without_nulls({**family.defaults, **fields})
    settings: dict[str, Any] = _read_common(fields, family)
    settings |= read_rope(fields, family.theta) | family.read(fields)
    return ModelConfig(**settings, dtype=dtype, param_dtype=dtype)
  except KeyError as error:
    raise ValueError(
      f'{file}: a {family.architecture} must state {error.args[0]}, got none'
    ) from None
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None


def _check_model_type(fields: Fields, family: Family) -> None:
  """Refuses another family's `model_type`, which decides how transformers reads."""
  model_type = fields.get('model_type')
  if model_type is not None and model_type != family.model_type:
    raise ValueError(
      f'model_type of a {family.architecture} must be {family.model_type}, got'
      f' {str(model_type)[:40]}'
    )


def _without_nulls(fields: Fields) -> dict[str, Any]:
  """The fields that have a value, in nested objects too."""
  return {
    name: _without_nulls(value) if isinstance(value, Mapping) else value
    for name, value in fields.items()
    if value is not None
  }


def find_family(fields: Fields, file: str) -> Family:
  """The family of a config.json.

  Args:
    fields: the fields of the file.
    file: name of the file, for errors.

  Raises:
    ValueError: the architecture is unknown.
  """
  names = fields.get('architectures')
  architecture = names[0] if isinstance(names, list) and names else None
  for family in FAMILIES:
    if architecture == family.architecture:
      return family
  known = ', '.join(family.architecture for family in FAMILIES)
  raise ValueError(
    f'{file}: the architecture must be one of {known}, got {str(architecture)[:80]}'
  )


def config_fields(config: ModelConfig) -> dict[str, Any]:
  """Converts a `ModelConfig` to a config.json of the first suitable family.

  Raises:
    ValueError: no family has all features of the model.
  """
  for family in FAMILIES:
    fields = _write_fields(config, family)
    try:
      restored_config = model_config(fields, config.param_dtype, '')
    except ValueError:
      continue  # The family has other features.
    if restored_config == dataclasses.replace(
      config, dtype=config.param_dtype, remat='nothing'
    ):
      return fields
  raise ValueError(
    f'a model must be one that a family can describe, got {config}'
  )


def _read_common(fields: Fields, family: Family) -> dict[str, Any]:
  """The fields of a `ModelConfig` that are read in the same way for all families."""
  heads, dim = fields['num_attention_heads'], fields['hidden_size']
  for bias_field in ('attention_bias', 'mlp_bias'):
    if fields.get(bias_field):
      raise ValueError(
        f'{bias_field} must be false for a {family.architecture}, got true'
      )
  # Embedding models of the same architectures have no causal mask.
  for mask_field, value_if_causal in (
    ('is_causal', True),
    ('use_bidirectional_attention', False),
  ):
    if fields.get(mask_field, value_if_causal) != value_if_causal:
      raise ValueError(
        f'{mask_field} must be {str(value_if_causal).lower()}, got {str(fields[mask_field])[:40]}'
      )
  if fields.get('quantization_config'):
    raise ValueError(
      'quantization_config must be absent, since quantised weights are not read,'
      f' got {str(fields["quantization_config"])[:80]}'
    )
  name = fields.get(family.activation_field)
  activations = {name: activation for activation, name in _ACTIVATIONS.items()}
  if name not in activations:
    raise ValueError(
      f'the activation must be one of {sorted(activations)}, got {name!r}'
    )
  return {
    'vocab_size': fields['vocab_size'],
    'num_layers': fields['num_hidden_layers'],
    'model_dim': dim,
    'num_heads': heads,
    'num_kv_heads': fields.get('num_key_value_heads') or heads,
    'head_dim': fields.get('head_dim') or dim // heads,
    'hidden_dim': fields['intermediate_size'],
    'activation': activations[name],
    'norm_eps': fields.get('rms_norm_eps', family.norm_eps),
    'tied_embeddings': fields.get('tie_word_embeddings', family.tied),
  }


def _write_fields(config: ModelConfig, family: Family) -> dict[str, Any]:
  """A config.json of a family, without features that the family lacks."""
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
    'rope_scaling': write_rope(config.rope_scaling),
    'torch_dtype': config.param_dtype,
    **_max_length_field(config.rope_scaling),
    **family.write(config),
  }


def _max_length_field(scaling: RopeScaling | None) -> dict[str, Any]:
  """Length of the longest sequence after RoPE scaling, if it is known."""
  if not isinstance(scaling, Llama3Scaling | YarnScaling):
    return {}
  length = round(scaling.factor * scaling.original_length)
  return {'max_position_embeddings': length}


_WINDOW_DEFAULTS = {'sliding_window': 4096}
_GELU_DEFAULTS = {'hidden_activation': 'gelu_pytorch_tanh'}

FAMILIES = (
  Family(
    architecture='LlamaForCausalLM',
    model_type='llama',
    names=tensor_names.LLAMA,
    read=family_fields.read_llama,
    write=family_fields.write_llama,
  ),
  Family(
    architecture='MistralForCausalLM',
    model_type='mistral',
    names=tensor_names.MISTRAL,
    read=family_fields.read_mistral,
    write=family_fields.write_mistral,
    defaults=_WINDOW_DEFAULTS,
  ),
  Family(
    architecture='Qwen2ForCausalLM',
    model_type='qwen2',
    names=tensor_names.QWEN2,
    read=family_fields.read_qwen2,
    write=family_fields.write_qwen,
    defaults=_WINDOW_DEFAULTS,
  ),
  Family(
    architecture='Qwen3ForCausalLM',
    model_type='qwen3',
    names=tensor_names.QWEN3,
    read=family_fields.read_qwen3,
    write=family_fields.write_qwen,
    defaults=_WINDOW_DEFAULTS,
  ),
  Family(
    architecture='MixtralForCausalLM',
    model_type='mixtral',
    names=tensor_names.MIXTRAL,
    read=family_fields.read_mixtral,
    write=family_fields.write_mixtral,
    theta=1e6,
    norm_eps=1e-5,
  ),
  Family(
    architecture='Qwen3MoeForCausalLM',
    model_type='qwen3_moe',
    names=tensor_names.QWEN3_MOE,
    read=family_fields.read_qwen3_moe,
    write=family_fields.write_qwen3_moe,
    defaults=_WINDOW_DEFAULTS,
  ),
  Family(
    architecture='Gemma2ForCausalLM',
    model_type='gemma2',
    names=tensor_names.GEMMA2,
    read=family_fields.read_gemma2,
    write=family_fields.write_gemma,
    tied=True,
    defaults={
      **_WINDOW_DEFAULTS,
      **_GELU_DEFAULTS,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
    },
    activation_field='hidden_activation',
  ),
  Family(
    architecture='Gemma3ForCausalLM',
    model_type='gemma3_text',
    names=tensor_names.GEMMA3,
    read=family_fields.read_gemma3,
    write=family_fields.write_gemma,
    tied=True,
    theta=1e6,
    defaults={**_WINDOW_DEFAULTS, **_GELU_DEFAULTS},
    activation_field='hidden_activation',
  ),
)
