# SPDX-License-Identifier: Apache-2.0
"""Types and ranges of the fields of a config.json.

They are checked before anything is computed or allocated from them. The bounds
are far beyond published models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_MAX_LENGTH = 2**31  # of a context or a window, in tokens

# Least and largest value of integers.
_INTEGER_RANGES: Mapping[str, tuple[int, int]] = {
  'vocab_size': (1, 2**24),
  'num_hidden_layers': (1, 2**12),
  'hidden_size': (1, 2**18),
  'num_attention_heads': (1, 2**12),
  'num_key_value_heads': (1, 2**12),
  'head_dim': (1, 2**12),
  'intermediate_size': (1, 2**20),
  'moe_intermediate_size': (1, 2**20),
  'num_experts': (1, 2**12),
  'num_local_experts': (1, 2**12),
  'num_experts_per_tok': (1, 2**12),
  'decoder_sparse_step': (0, 2**12),
  'max_window_layers': (0, _MAX_LENGTH),
  'sliding_window': (0, _MAX_LENGTH),
  'sliding_window_pattern': (1, 2**12),
  'max_position_embeddings': (1, _MAX_LENGTH),
  'original_max_position_embeddings': (1, _MAX_LENGTH),
  # Of a PEFT adapter.
  'r': (1, 2**16),
}
# Least and largest value of other numbers.
_NUMBER_RANGES: Mapping[str, tuple[float, float]] = {
  'rms_norm_eps': (1e-30, 1.0),
  'rope_theta': (1.0, 1e15),
  'rope_local_base_freq': (1.0, 1e15),
  'query_pre_attn_scalar': (1e-6, 1e9),
  'attn_logit_softcapping': (1e-6, 1e9),
  'final_logit_softcapping': (1e-6, 1e9),
  'factor': (1e-6, 1e6),
  'low_freq_factor': (1e-6, 1e6),
  'high_freq_factor': (1e-6, 1e6),
  'beta_fast': (1e-6, 1e6),
  'beta_slow': (1e-6, 1e6),
  'attention_factor': (1e-6, 1e6),
  'lora_alpha': (1e-30, 1e9),
}
_FLAG_FIELDS = (
  'attention_bias',
  'mlp_bias',
  'norm_topk_prob',
  'tie_word_embeddings',
  'truncate',
  'use_rslora',
  'use_sliding_window',
)
_TEXT_FIELDS = (
  'base_model_name_or_path',
  'dtype',
  'hidden_act',
  'hidden_activation',
  'rope_type',
  'torch_dtype',
  'type',
)
_TEXT_LIST_FIELDS = ('architectures', 'layer_types')
_OBJECT_FIELDS = ('rope_parameters', 'rope_scaling')
# Rotary parameters by type of layer.
_LAYER_TYPES = ('full_attention', 'sliding_attention')


def check_values(fields: Mapping[str, Any]) -> None:
  """Checks the fields that are read; `None` is treated as absent.

  Args:
    fields: the fields of a config.json or adapter_config.json.

  Raises:
    ValueError: a value has the wrong type or is out of range.

  >>> check_values({'num_hidden_layers': 10**9})
  Traceback (most recent call last):
  ValueError: num_hidden_layers must be an integer of 1 to 4096, got 1000000000
  """
  for name, value in fields.items():
    if value is not None:
      _check_value(name, value)
  _check_layer_types(fields)


def _check_value(name: str, value: Any) -> None:
  """Checks one field."""
  requirement = ''
  if name in _INTEGER_RANGES:
    low, high = _INTEGER_RANGES[name]
    if type(value) is not int or not low <= value <= high:
      requirement = f'an integer of {low} to {high}'
  elif name in _NUMBER_RANGES:
    low, high = _NUMBER_RANGES[name]
    is_number = type(value) in (int, float)
    if not is_number or not low <= value <= high or math.isnan(value):
      requirement = f'a number of {low:g} to {high:g}'
  elif name in _FLAG_FIELDS:
    requirement = '' if type(value) is bool else 'true or false'
  elif name in _TEXT_FIELDS:
    requirement = '' if isinstance(value, str) else 'a text'
  elif name in _TEXT_LIST_FIELDS:
    is_list = isinstance(value, list)
    if not is_list or not all(isinstance(text, str) for text in value):
      requirement = 'a list of texts'
  elif name in _OBJECT_FIELDS or name in _LAYER_TYPES:
    if isinstance(value, Mapping):
      check_values(value)
    else:
      requirement = 'an object'
  if requirement:
    raise ValueError(f'{name} must be {requirement}, got {str(value)[:80]}')


def _check_layer_types(fields: Mapping[str, Any]) -> None:
  """Checks that each layer has a type, and a known one."""
  layer_types, num_layers = (
    fields.get('layer_types'),
    fields.get('num_hidden_layers'),
  )
  if layer_types is None or num_layers is None:
    return
  if len(layer_types) != num_layers:
    raise ValueError(
      f'layer_types must name a type for each of {num_layers} layers, got'
      f' {len(layer_types)}'
    )
  unknown_types = sorted(set(layer_types) - set(_LAYER_TYPES))
  if unknown_types:
    raise ValueError(
      f'layer_types must be some of {_LAYER_TYPES}, got {unknown_types[0][:40]!r}'
    )
