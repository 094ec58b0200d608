# SPDX-License-Identifier: Apache-2.0
"""Converts the metadata of a GGUF file to a config.json."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from covrl.models import Llama3Scaling
from covrl.models.rope import base_frequencies
from covrl.pretrained.families.config_values import check_values
from covrl.pretrained.gguf.header import GgufTensor
from covrl.pretrained.gguf.metadata import Metadata
from covrl.pretrained.gguf.tensors import ROPE_FACTORS, read_vector

# Architectures in GGUF, with their classes and model types in transformers.
_ARCHITECTURES: Mapping[str, tuple[str, str]] = {
  'llama': ('LlamaForCausalLM', 'llama'),
  'qwen2': ('Qwen2ForCausalLM', 'qwen2'),
  'qwen3': ('Qwen3ForCausalLM', 'qwen3'),
  'qwen3moe': ('Qwen3MoeForCausalLM', 'qwen3_moe'),
}
# Fields, without the prefix of the architecture's name, that are read or have no effect.
_KNOWN_FIELDS = {
  'attention.head_count',
  'attention.head_count_kv',
  'attention.key_length',
  'attention.layer_norm_rms_epsilon',
  'attention.value_length',
  'block_count',
  'context_length',
  'embedding_length',
  'expert_count',
  'expert_feed_forward_length',
  'expert_used_count',
  'feed_forward_length',
  'rope.dimension_count',
  'rope.freq_base',
  'rope.scaling.attn_factor',
  'rope.scaling.factor',
  'rope.scaling.finetuned',
  'rope.scaling.original_context_length',
  'rope.scaling.type',
  'rope.scaling.yarn_beta_fast',
  'rope.scaling.yarn_beta_slow',
  'tensor_data_layout',
  'vocab_size',
}
# `low_freq_factor` and `high_freq_factor` of Llama 3's scaling, between which it
# interpolates linearly; the same in all versions.
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0


def config_fields(
  file: epath.Path, metadata: Metadata, tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
  """The fields of a config.json that describes the model of a file.

  Args:
    file: the file.
    metadata: the file's metadata.
    tensors: positions of the file's tensors.

  Raises:
    ValueError: the architecture or a setting is not supported, or a field is
      missing; the message names the field.
  """
  architecture = metadata.text('general.architecture')
  if architecture not in _ARCHITECTURES:
    raise metadata.error(
      'general.architecture', f'one of {", ".join(_ARCHITECTURES)}'
    )
  if metadata.integer('split.count', 1) != 1:
    raise metadata.error('split.count', '1, the whole model in one file')
  _warn_of_unknown_fields(metadata, architecture)
  class_name, model_type = _ARCHITECTURES[architecture]
  heads = metadata.integer(f'{architecture}.attention.head_count')
  dim = metadata.integer(f'{architecture}.embedding_length')
  if heads < 1:
    raise metadata.error(f'{architecture}.attention.head_count', 'at least 1')
  head_dim = metadata.integer(
    f'{architecture}.attention.key_length', dim // heads
  )
  for field in ('attention.value_length', 'rope.dimension_count'):
    if metadata.integer(f'{architecture}.{field}', head_dim) != head_dim:
      raise metadata.error(
        f'{architecture}.{field}', f'{head_dim}, the width of a head'
      )
  embedding = tensors.get('token_embd.weight')
  if embedding is None:
    raise ValueError(
      f'{file} must hold token_embd.weight, got a file without it'
    )
  embedding_type = embedding.type.name
  fields = {
    'architectures': [class_name],
    'model_type': model_type,
    'vocab_size': embedding.shape[0],
    'hidden_size': dim,
    'intermediate_size': metadata.integer(
      f'{architecture}.feed_forward_length'
    ),
    'num_hidden_layers': metadata.integer(f'{architecture}.block_count'),
    'num_attention_heads': heads,
    'num_key_value_heads': metadata.integer(
      f'{architecture}.attention.head_count_kv', heads
    ),
    'head_dim': head_dim,
    'hidden_act': 'silu',
    'rms_norm_eps': metadata.number(
      f'{architecture}.attention.layer_norm_rms_epsilon'
    ),
    'max_position_embeddings': metadata.integer(
      f'{architecture}.context_length'
    ),
    'tie_word_embeddings': 'output.weight' not in tensors,
    # Float32 represents all numbers of float16 and of the quantised types.
    'torch_dtype': 'bfloat16' if embedding_type == 'BF16' else 'float32',
    'rope_theta': metadata.number(f'{architecture}.rope.freq_base', 10000.0),
    **_expert_fields(metadata, architecture),
  }
  try:
    check_values(fields)
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None
  scaling = _rope_scaling(file, metadata, tensors, fields)
  return fields | ({'rope_scaling': scaling} if scaling else {})


def _warn_of_unknown_fields(metadata: Metadata, architecture: str) -> None:
  """Warns of settings of the model that are not read."""
  known = {f'{architecture}.{name}' for name in _KNOWN_FIELDS}
  unknown = [
    f'{name} ({str(value)[:40]})'
    for name, value in metadata.fields.items()
    if name.startswith(f'{architecture}.') and name not in known
  ]
  if unknown:
    warnings.warn(
      f'{metadata.file}: settings of the model that are not used:'
      f' {", ".join(unknown)}',
      stacklevel=2,
    )


def _expert_fields(metadata: Metadata, architecture: str) -> dict[str, Any]:
  """Settings of a mixture of experts."""
  field = f'{architecture}.expert_count'
  count = metadata.integer(field, 0)
  if architecture != 'qwen3moe':
    if count:
      raise metadata.error(field, f'0 for the architecture {architecture}')
    return {}
  return {
    'num_experts': count,
    'num_experts_per_tok': metadata.integer(
      f'{architecture}.expert_used_count'
    ),
    'moe_intermediate_size': metadata.integer(
      f'{architecture}.expert_feed_forward_length'
    ),
    'norm_topk_prob': True,
  }


def _rope_scaling(
  file: epath.Path,
  metadata: Metadata,
  tensors: Mapping[str, GgufTensor],
  fields: Mapping[str, Any],
) -> dict[str, Any] | None:
  """Scaling of the rotary frequencies, or `None`."""
  prefix = f'{metadata.text("general.architecture")}.rope.scaling'
  scaling_type = metadata.text(f'{prefix}.type', 'none')
  if ROPE_FACTORS in tensors:
    if scaling_type != 'none':
      raise metadata.error(f'{prefix}.type', f'none beside {ROPE_FACTORS}')
    factors = read_vector(file, tensors[ROPE_FACTORS])
    head_dim = fields['head_dim']
    scaling = _llama3_scaling(factors, fields['rope_theta'], head_dim)
    if scaling is None:
      raise ValueError(
        f'{file}: {ROPE_FACTORS} must hold {head_dim // 2} factors of Llama 3'
        f' scaling, got {str(factors.tolist())[:80]}'
      )
    return scaling
  if scaling_type == 'none':
    return None
  if scaling_type not in ('linear', 'yarn'):
    raise metadata.error(f'{prefix}.type', 'none, linear or yarn')
  factor = metadata.number(f'{prefix}.factor')
  if factor < 1:
    raise metadata.error(f'{prefix}.factor', 'at least 1')
  if scaling_type == 'linear':
    return {'rope_type': scaling_type, 'factor': factor}
  magnitude = metadata.number(f'{prefix}.attn_factor', 1.0)
  return {
    'rope_type': scaling_type,
    'factor': factor,
    'original_max_position_embeddings': metadata.integer(
      f'{prefix}.original_context_length'
    ),
    'beta_fast': metadata.number(f'{prefix}.yarn_beta_fast', 32.0),
    'beta_slow': metadata.number(f'{prefix}.yarn_beta_slow', 1.0),
    'attention_factor': magnitude * (0.1 * math.log(factor) + 1),
  }


def _llama3_scaling(
  factors: np.ndarray, theta: float, head_dim: int
) -> dict[str, Any] | None:
  """Llama 3's scaling, from the divisors of the frequencies in a file.

  A file holds the divisors alone. They determine the scaling, since the ends of
  its ramp are always the same.

  Args:
    factors: divisor of each frequency.
    theta: base of the frequencies.
    head_dim: width of a head.

  Returns:
    A `rope_scaling` for a config.json; `None` if no scaling has these divisors.
  """
  unscaled = base_frequencies(theta, head_dim)
  if factors.shape != unscaled.shape or not np.isfinite(factors).all():
    return None
  if not (factors >= 1).all() or factors.max() == 1:
    return None
  factor = float(factors.max())
  # On the ramp, 1 / divisor = s + (1 − s) / factor.
  unscaled_share = (1 / factors - 1 / factor) / (1 - 1 / factor)
  on_ramp = np.flatnonzero(
    (unscaled_share > 1e-3) & (unscaled_share < 1 - 1e-3)
  )
  lengths = (
    2
    * np.pi
    / unscaled
    * (
      unscaled_share * (_HIGH_FREQ_FACTOR - _LOW_FREQ_FACTOR) + _LOW_FREQ_FACTOR
    )
  )
  # Without a frequency on the ramp, several lengths give the same divisors.
  first_scaled = np.flatnonzero(factors == factor)[0]
  length = round(
    float(np.median(lengths[on_ramp if on_ramp.size else [first_scaled]]))
  )
  if length < 1:
    return None
  scaling = Llama3Scaling(
    factor=factor,
    original_length=length,
    low=_LOW_FREQ_FACTOR,
    high=_HIGH_FREQ_FACTOR,
  )
  if not np.allclose(unscaled / scaling(unscaled, theta), factors, rtol=1e-3):
    return None
  return {
    'rope_type': 'llama3',
    'factor': factor,
    'low_freq_factor': _LOW_FREQ_FACTOR,
    'high_freq_factor': _HIGH_FREQ_FACTOR,
    'original_max_position_embeddings': length,
  }
