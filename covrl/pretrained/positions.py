# SPDX-License-Identifier: Apache-2.0
"""Number of positions of a pretrained model."""

from __future__ import annotations

from etils import epath

from covrl.models import LinearScaling, YarnScaling
from covrl.pretrained.adapters import base_model_directory
from covrl.pretrained.families.config_json import model_config
from covrl.pretrained.json_files import read_json


def max_positions(directory: epath.PathLike) -> int | None:
  """Returns the length in tokens of the longest sequence that a model supports.

  That is `max_position_embeddings`, or the length to which YaRN or linear
  scaling extends it. In some files it already includes linear scaling; it is taken
  as not included, so that no sequence is refused wrongly.

  Args:
    directory: see `load_pretrained`.

  Returns:
    The number of tokens; `None` if config.json does not state it.

  Raises:
    ValueError: config.json is malformed.
  """
  fields, file = read_json(base_model_directory(directory) / 'config.json')
  scaling = model_config(fields, 'float32', file).rope_scaling
  stated = fields.get('max_position_embeddings')
  if stated is None:
    return None
  match scaling:
    case YarnScaling():
      return max(stated, round(scaling.factor * scaling.original_length))
    case LinearScaling():
      return max(stated, round(scaling.factor * stated))
    case _:
      return stated
