# SPDX-License-Identifier: Apache-2.0
"""Checks of a policy's inputs: parameters, token ids, positions, experts.

Shapes are checked while a program is traced; values are checked only outside of
`jax.jit`, where they are known.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from covrl.array_checks import check_array, concrete_array
from covrl.models.config import ModelConfig
from covrl.models.experts import ExpertRecordSpec


def param_shapes(params: PyTree) -> dict[str, tuple[int, ...]]:
  """Shape of every parameter by its name, such as `layers.mlp.gate`."""
  return {
    jax.tree_util.keystr(path, simple=True, separator='.'): jnp.shape(leaf)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }


def check_params(
  params: PyTree, expected: Mapping[str, tuple[int, ...]]
) -> None:
  """Checks that parameters are those of a policy, by names, shapes and dtypes.

  Other parameters may run without an error: the scan over layers accepts any
  number of layers, and the lookup of embeddings any number of rows.

  Args:
    params: arrays, or their shapes and dtypes.
    expected: shape of each of the policy's parameters, see `param_shapes`.

  Raises:
    TypeError: a parameter is not of floats.
    ValueError: a parameter is missing, unknown or of another shape.

  >>> check_params({'head': jnp.zeros(3)}, {'head': (4,)})
  Traceback (most recent call last):
  ValueError: params must have the shapes of the policy, head (4,), got (3,)
  """
  actual_shapes = param_shapes(params)
  for name in sorted(actual_shapes.keys() | expected.keys()):
    if actual_shapes.get(name) != expected.get(name):
      raise ValueError(
        'params must have the shapes of the policy,'
        f' {name} {expected.get(name, "absent")}, got'
        f' {actual_shapes.get(name, "none")}'
      )
  for name, leaf in zip(actual_shapes, jax.tree.leaves(params), strict=True):
    check_array(f'params.{name}', leaf, 'float', '...')


def check_token_ids(
  tokens: object, axes: str, vocab_size: int
) -> tuple[int, ...]:
  """Refuses token ids outside the vocabulary, which have no embedding.

  Returns:
    The shape.

  Raises:
    TypeError: the ids are not integers.
    ValueError: the axes are others, or an id is outside the vocabulary.
  """
  shape = check_array('tokens', tokens, 'int', axes)
  _check_range('token ids', tokens, 0, vocab_size)
  return shape


def check_rows(
  tokens: object, positions: object, segment_ids: object, vocab_size: int
) -> None:
  """Checks rows of sequences, padded or packed; see `Policy.hidden`.

  Raises:
    TypeError: an array is not of integers.
    ValueError: shapes differ, an id is outside the vocabulary, or a position
      or segment is negative.
  """
  shape = check_token_ids(tokens, 'B T', vocab_size)
  check_array('positions', positions, 'int', 'B T', shape)
  check_array('segment_ids', segment_ids, 'int', 'B T', shape)
  _check_range('positions', positions, 0)
  _check_range('segment_ids', segment_ids, 0)


def check_recorded_experts(
  recorded_experts: object, tokens: object, config: ModelConfig
) -> None:
  """Checks the record of experts that tokens are routed to.

  Raises:
    TypeError: the record is not of integers.
    ValueError: it is of another shape, names an expert that does not exist, or
      one expert twice for a token; or the model has no experts.
  """
  record = ExpertRecordSpec.of(config)
  shape = record.shape(*check_array('tokens', tokens, 'int', 'B T'))
  check_array('recorded_experts', recorded_experts, 'int', 'B T L k', shape)
  assert config.experts is not None
  _check_range(
    'recorded_experts', recorded_experts, 0, config.experts.count + 1
  )
  values = concrete_array(recorded_experts)
  if values is None:
    return
  sorted_values = np.sort(values, axis=-1)
  repeated = sorted_values[..., 1:][
    (sorted_values[..., 1:] == sorted_values[..., :-1])
    & (sorted_values[..., 1:] > 0)
  ]
  if repeated.size:
    raise ValueError(
      'recorded_experts must name different experts for a token, got'
      f' {int(repeated[0])} twice'
    )


def _check_range(
  name: str, values: object, low: int, end: int | None = None
) -> None:
  """Refuses an integer outside [low, end), if the values are known."""
  array = concrete_array(values)
  if array is None or not array.size:
    return
  least, most = int(array.min()), int(array.max())
  invalid = least if least < low else most
  if least < low or (end is not None and most >= end):
    requirement = f'at least {low}' if end is None else f'in [{low}, {end})'
    raise ValueError(f'{name} must be {requirement}, got {invalid}')
