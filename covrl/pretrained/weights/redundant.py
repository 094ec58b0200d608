# SPDX-License-Identifier: Apache-2.0
"""Tensors that repeat or contradict other parts of a checkpoint."""

from __future__ import annotations

import re
import warnings

import numpy as np
from etils import epath

from covrl.models import ModelConfig
from covrl.models.rope import base_frequencies
from covrl.pretrained.families.config_json import Family
from covrl.pretrained.weights.orbax_cache import has_orbax
from covrl.pretrained.weights.tensors import Tensors
from covrl.pretrained.weights.weight_files import has_tensors, open_tensors

# Largest relative rounding error of frequencies that are stored in bfloat16.
_TOLERANCE = 2**-7


def has_own_unembedding(directory: epath.Path, family: Family) -> bool:
  """Whether a checkpoint holds an unembedding that differs from the embedding.

  If a `config.json` ties them and the checkpoint does not, transformers keeps
  both, with a warning, and so does covrl.

  Args:
    directory: directory of the model.
    family: the model's family.
  """
  if has_orbax(directory) or not has_tensors(directory):
    return False
  tensors = open_tensors(directory)
  head, embedding = (family.names[name].name for name in ('head', 'embedding'))
  if head not in tensors.files or embedding not in tensors.files:
    return False
  if tensors.equal(head, embedding):
    return False
  warnings.warn(
    f'{tensors.files[head]}: {head} differs from {embedding}, which config.json'
    ' ties; both are kept, and tie_word_embeddings is taken as false',
    stacklevel=2,
  )
  return True


def redundant_tensors(
  tensors: Tensors, family: Family, config: ModelConfig
) -> set[str]:
  """Names of tensors that the model does not need.

  These are an unembedding that equals the embedding that it is tied to, and the
  rotary frequencies in older checkpoints. Frequencies that differ from those of
  the `config.json` are named in a warning: transformers ignores them.

  Args:
    tensors: the checkpoint.
    family: the model's family.
    config: the model's configuration.

  Raises:
    ValueError: the configuration ties embeddings that differ.
  """
  redundant: set[str] = set()
  head, embedding = (family.names[name].name for name in ('head', 'embedding'))
  if config.tied_embeddings and {head, embedding} <= tensors.files.keys():
    if not tensors.equal(head, embedding):
      raise ValueError(
        f'{tensors.files[head]}: {head} must equal {embedding} for a policy'
        ' with tied embeddings, got another tensor'
      )
    redundant.add(head)
  for name, file in tensors.files.items():
    if re.fullmatch(
      r'model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq', name
    ):
      redundant.add(name)
      if not _are_rotary_frequencies(tensors, name, config):
        warnings.warn(
          f'{file}: {name} is not used, and differs from the frequencies that'
          f' config.json gives by rope_theta {config.rope_theta:g}',
          stacklevel=2,
        )
  return redundant


def _are_rotary_frequencies(
  tensors: Tensors, name: str, config: ModelConfig
) -> bool:
  """Whether a tensor holds the rotary frequencies, scaled or not."""
  unscaled = base_frequencies(config.rope_theta, config.head_dim)
  if tensors.shape(name) != unscaled.shape:
    return False
  stored_frequencies = tensors.read_rows(name, 0, len(unscaled)).astype(
    np.float64
  )
  return any(
    np.allclose(stored_frequencies, expected, rtol=_TOLERANCE, atol=0)
    for expected in (unscaled, *config.frequencies)
  )
