# SPDX-License-Identifier: Apache-2.0
"""RoPE settings in a config.json.

Older files have `rope_theta` and `rope_scaling`; newer ones `rope_parameters`,
by type of layer if the types differ. Both are read; the older form, which all
versions of transformers understand, is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from covrl.models import (
  LinearScaling,
  Llama3Scaling,
  RopeScaling,
  YarnScaling,
)

Fields = Mapping[str, Any]


def read_rope(fields: Fields, theta: float) -> dict[str, Any]:
  """Converts the RoPE settings of a config.json to fields of a `ModelConfig`.

  Args:
    fields: the fields of the config.json.
    theta: default of `rope_theta`.

  Returns:
    `rope_theta`, `rope_scaling` and, if layers with a window differ,
    `local_rope_theta`.

  Raises:
    ValueError: the type of scaling is unknown.
  """
  parameters = fields.get('rope_parameters')
  if parameters is None:
    scaling = fields.get('rope_scaling') or {}
    found = {'rope_theta': float(fields.get('rope_theta') or theta)}
    if fields.get('rope_local_base_freq') is not None:
      found['local_rope_theta'] = float(fields['rope_local_base_freq'])
  elif 'full_attention' in parameters:
    scaling = parameters['full_attention']
    local = parameters['sliding_attention']
    found = {'rope_theta': float(scaling['rope_theta'])}
    found['local_rope_theta'] = float(local['rope_theta'])
  else:
    scaling = parameters
    found = {'rope_theta': float(parameters['rope_theta'])}
  return found | {'rope_scaling': _read_scaling(scaling, fields)}


def _read_scaling(given: Fields, fields: Fields) -> RopeScaling | None:
  """Converts a `rope_scaling` dictionary.

  Args:
    given: the dictionary.
    fields: the fields of the config.json.
  """
  # Older files name the field `type`.
  kind = given.get('rope_type', given.get('type', 'default'))
  if kind == 'default':
    return None
  if kind == 'linear':
    return LinearScaling(factor=float(given['factor']))
  if kind == 'llama3':
    return Llama3Scaling(
      factor=float(given['factor']),
      original_length=given['original_max_position_embeddings'],
      low=float(given['low_freq_factor']),
      high=float(given['high_freq_factor']),
    )
  if kind == 'yarn' and not given.get('mscale'):
    return YarnScaling(
      factor=float(given['factor']),
      original_length=given.get(
        'original_max_position_embeddings',
        fields.get('max_position_embeddings', 0),
      ),
      fast=float(given.get('beta_fast') or 32),
      slow=float(given.get('beta_slow') or 1),
      attention_factor=given.get('attention_factor'),
      whole=given.get('truncate', True),
    )
  raise ValueError(
    'rope_type must be default, linear, llama3 or yarn (without mscale), got'
    f' {dict(given)}'
  )


def write_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
  """Converts a scaling to the `rope_scaling` of a config.json."""
  match scaling:
    case None:
      return None
    case LinearScaling():
      return {'rope_type': 'linear', 'factor': scaling.factor}
    case Llama3Scaling():
      return {
        'rope_type': 'llama3',
        'factor': scaling.factor,
        'low_freq_factor': scaling.low,
        'high_freq_factor': scaling.high,
        'original_max_position_embeddings': scaling.original_length,
      }
    case YarnScaling():
      return {
        'rope_type': 'yarn',
        'factor': scaling.factor,
        'beta_fast': scaling.fast,
        'beta_slow': scaling.slow,
        'attention_factor': scaling.attention_factor,
        'truncate': scaling.whole,
        'original_max_position_embeddings': scaling.original_length,
      }
