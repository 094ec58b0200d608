# SPDX-License-Identifier: Apache-2.0
"""Weights out: a directory that transformers loads.

Written beside its final place and then renamed: there is the whole directory,
or none.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree, Shaped

from covrl.models import ModelConfig, Policy
from covrl.pretrained.families import (
  Family,
  describe,
  family_of,
  model_config,
)
from covrl.pretrained.layout import Place, places
from covrl.pretrained.policy import PretrainedPolicy

SHARD_BYTES = 4 * 2**30


def save_pretrained(
  directory: str | pathlib.Path,
  policy: Policy,
  params: PyTree,
  *,
  shard_bytes: int = SHARD_BYTES,
) -> None:
  """Writes a Hugging Face directory of a policy.

  The weights keep their dtype: what was loaded and is written again is the
  same to the bit. A `PretrainedPolicy` brings its tokenizer and generation
  config along; another policy is written as the first family that has all its
  features.

  Args:
    directory: must not exist, or be empty.
    policy: whose parameters these are.
    params: all of them.
    shard_bytes: of a file, about; it is held in memory while it is written.

  Raises:
    ValueError: something is there already, or no family can describe the
      policy.
  """
  target = pathlib.Path(directory).absolute()
  if target.exists() and (not target.is_dir() or any(target.iterdir())):
    raise ValueError(f'{target} must not exist or be empty, and is not')
  files = policy.files if isinstance(policy, PretrainedPolicy) else {}
  dtype = str(jax.tree.leaves(params)[0].dtype)
  fields = _description(policy.config, files, dtype)
  family = family_of(fields, 'config.json')
  target.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{target.name}.', dir=target.parent
  ) as temporary:
    draft = pathlib.Path(temporary) / 'draft'
    draft.mkdir()
    for name, content in files.items():
      (draft / name).write_bytes(content)
    (draft / 'config.json').write_text(json.dumps(fields, indent=2) + '\n')
    _write_weights(draft, params, family, shard_bytes)
    if target.exists():
      target.rmdir()
    os.replace(draft, target)


def _description(
  config: ModelConfig, files: Mapping[str, bytes], dtype: str
) -> dict[str, Any]:
  """The config.json: as it came if it still tells the truth, or a new one."""
  if 'config.json' in files:
    fields = json.loads(files['config.json'])
    told = model_config(fields, config.dtype, 'config.json')
    if _shape(told) == _shape(config):
      key = 'dtype' if 'dtype' in fields else 'torch_dtype'
      return fields | {key: dtype}
  return describe(config) | {'torch_dtype': dtype}


def _shape(config: ModelConfig) -> ModelConfig:
  """A configuration without what does not concern the weights."""
  return dataclasses.replace(
    config, dtype='float32', param_dtype='float32', remat='nothing'
  )


def _write_weights(
  directory: pathlib.Path, params: PyTree, family: Family, shard_bytes: int
) -> None:
  """All tensors, in as many files as their size asks for."""
  from safetensors.numpy import save_file

  shards = _shards(params, family, shard_bytes)
  total = len(shards)
  files: dict[str, str] = {}
  size = 0
  for number, shard in enumerate(shards, start=1):
    name = (
      'model.safetensors'
      if total == 1
      else f'model-{number:05}-of-{total:05}.safetensors'
    )
    tensors = {tensor: _tensor(place, layer) for tensor, place, layer in shard}
    save_file(tensors, directory / name, metadata={'format': 'pt'})
    files |= dict.fromkeys(tensors, name)
    size += sum(tensor.nbytes for tensor in tensors.values())
  if total > 1:
    index = {'metadata': {'total_size': size}, 'weight_map': files}
    path = directory / 'model.safetensors.index.json'
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')


_Item = tuple[str, Place, int]


def _shards(
  params: PyTree, family: Family, shard_bytes: int
) -> list[list[_Item]]:
  """Which tensors go into which file."""
  shards: list[list[_Item]] = [[]]
  size = 0
  for place in places(params, family.names):
    count = place.layers or 1
    width = place.like.size * place.like.dtype.itemsize // count
    for layer, name in enumerate(place.names):
      if shards[-1] and size + width > shard_bytes:
        shards.append([])
        size = 0
      shards[-1].append((name, place, layer))
      size += width
  return shards


def _tensor(place: Place, layer: int) -> Shaped[np.ndarray, '...']:
  """One tensor as the checkpoint has it."""
  ours: Array = place.like if place.layers is None else place.like[layer]
  flat = np.asarray(jax.device_get(ours)).reshape(place.flat)
  return np.ascontiguousarray(flat.T if place.stored.inputs else flat)
