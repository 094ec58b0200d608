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

  If a file has both, `rope_scaling` takes precedence over `rope_parameters`, as
  in transformers.

  Args:
    fields: the fields of the config.json.
    theta: default of `rope_theta`.

  Returns:
    `rope_theta`, `rope_scaling` and, if layers with a window differ,
    `local_rope_theta`.

  Raises:
    ValueError: the type of scaling is unknown or not supported.
  """
  scaling = fields.get('rope_scaling') or {}
  parameters = fields.get('rope_parameters') or {}
  local_theta = fields.get('rope_local_base_freq')
  if parameters.keys() & {'full_attention', 'sliding_attention'}:
    scaling_fields = {**parameters.get('full_attention', {}), **scaling}
    local_fields = parameters.get('sliding_attention', {})
    local_theta = local_fields.get('rope_theta', local_theta)
    if _scaling_type(local_fields) != 'default':
      raise ValueError(
        f'rope_type of sliding_attention must be default, got {dict(local_fields)}'
      )
  else:
    scaling_fields = scaling or parameters
  theta = scaling_fields.get('rope_theta', fields.get('rope_theta', theta))
  rope_fields = {'rope_theta': float(theta)}
  if local_theta is not None:
    rope_fields['local_rope_theta'] = float(local_theta)
  return rope_fields | {'rope_scaling': _read_scaling(scaling_fields, fields)}


def _scaling_type(scaling_fields: Fields) -> str:
  """Type of scaling; older files name the field `type`."""
  scaling_type = scaling_fields.get('rope_type', scaling_fields.get('type'))
  if scaling_type is None and 'factor' in scaling_fields:
    raise ValueError(
      'rope_type must be given with a factor, got'
      f' {str(dict(scaling_fields))[:200]}'
    )
  return scaling_type or 'default'


def _read_scaling(scaling_fields: Fields, fields: Fields) -> RopeScaling | None:
  """Converts a `rope_scaling` dictionary.

  Args:
    scaling_fields: the dictionary.
    fields: the fields of the config.json.
  """
  scaling_type = _scaling_type(scaling_fields)
  for settings in (scaling_fields, fields):
    if settings.get('partial_rotary_factor', 1) != 1:
      raise ValueError(
        'partial_rotary_factor must be 1, got'
        f' {str(settings["partial_rotary_factor"])[:80]}'
      )
  if scaling_type == 'default':
    return None
  if scaling_type == 'linear':
    return LinearScaling(factor=float(scaling_fields['factor']))
  if scaling_type == 'llama3':
    low, high = (
      scaling_fields[f'{end}_freq_factor'] for end in ('low', 'high')
    )
    if not low < high:
      raise ValueError(
        f'low_freq_factor must be below high_freq_factor, got {low} and {high}'
      )
    return Llama3Scaling(
      factor=float(scaling_fields['factor']),
      original_length=_original_length(scaling_fields, fields),
      low=float(low),
      high=float(high),
    )
  if scaling_type == 'yarn' and not scaling_fields.get('mscale'):
    return YarnScaling(
      factor=float(scaling_fields['factor']),
      original_length=_original_length(scaling_fields, fields),
      fast=float(scaling_fields.get('beta_fast') or 32),
      slow=float(scaling_fields.get('beta_slow') or 1),
      attention_factor=scaling_fields.get('attention_factor'),
      rounds_ramp=scaling_fields.get('truncate', True),
    )
  raise ValueError(
    'rope_type must be default, linear, llama3 or yarn (without mscale), got'
    f' {str(dict(scaling_fields))[:200]}'
  )


def _original_length(scaling_fields: Fields, fields: Fields) -> int:
  """Context length before scaling, from the field that transformers takes it from."""
  name = 'original_max_position_embeddings'
  for settings in (fields, scaling_fields):
    if name in settings:
      return settings[name]
  if 'max_position_embeddings' in fields:
    return fields['max_position_embeddings']
  raise KeyError(name)


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
        'truncate': scaling.rounds_ramp,
        'original_max_position_embeddings': scaling.original_length,
      }
