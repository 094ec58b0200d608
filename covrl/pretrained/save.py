# SPDX-License-Identifier: Apache-2.0
"""Weights out: a directory that transformers loads.

Written beside its final place and then renamed: there is the whole directory,
or none.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Array, PyTree, Shaped

from covrl.models import ModelConfig, Policy
from covrl.pretrained.atomic_dir import written_whole
from covrl.pretrained.families import describe, family_of, model_config
from covrl.pretrained.param_mapping import Place, places
from covrl.pretrained.policy import PretrainedPolicy

SHARD_BYTES = 4 * 2**30


def save_pretrained(
  directory: epath.PathLike,
  policy: Policy,
  params: PyTree,
  *,
  shard_bytes: int = SHARD_BYTES,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
  """Writes a Hugging Face directory of a policy.

  The weights keep their dtype: what was loaded and is written again is the
  same to the bit. A `PretrainedPolicy` brings its tokenizer and generation
  config along; another policy is written as the first family that has all its
  features. Adapters are merged into the matrices they stand beside.

  Args:
    directory: must not exist, or be empty.
    policy: whose parameters these are.
    params: all of them.
    shard_bytes: of a file, about; it is held in memory while it is written.
    on_progress: called with the numbers of weight files written and in all.

  Raises:
    ValueError: something is there already, or no family can describe the
      policy.
  """
  policy, params = policy.base, policy.merge(params)
  files = described_files(policy, params)
  family = family_of(json.loads(files['config.json']), 'config.json')
  with written_whole(directory) as draft:
    for name, content in files.items():
      (draft / name).write_bytes(content)
    wanted = list(places(params, family.names))
    write_tensors(draft, 'model', wanted, shard_bytes, on_progress)


def described_files(policy: Policy, params: PyTree) -> dict[str, bytes]:
  """The small files of a policy, a `config.json` that tells the truth included.

  Args:
    policy: without adapters.
    params: whose dtype is stated.

  Raises:
    ValueError: no family can describe the policy.
  """
  files = policy.files if isinstance(policy, PretrainedPolicy) else {}
  dtype = str(jax.tree.leaves(params)[0].dtype)
  fields = _description(policy.config, files, dtype)
  text = json.dumps(fields, indent=2) + '\n'
  return {**files, 'config.json': text.encode()}


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


def write_tensors(
  directory: pathlib.Path,
  name: str,
  wanted: Sequence[Place],
  shard_bytes: int = SHARD_BYTES,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
  """Writes parameters as safetensors, in as many files as their size asks for.

  Args:
    directory: must exist.
    name: of the file, or of the files before their numbers.
    wanted: the parameters, and what they are called there.
    shard_bytes: of a file, about.
    on_progress: called with the numbers of files written and in all.
  """
  from safetensors.numpy import save_file

  shards = _shards(wanted, shard_bytes)
  total = len(shards)
  files: dict[str, str] = {}
  size = 0
  on_progress(0, total)
  for number, shard in enumerate(shards, start=1):
    file = (
      f'{name}.safetensors'
      if total == 1
      else f'{name}-{number:05}-of-{total:05}.safetensors'
    )
    tensors = {
      place.name(entry): _tensor(place, entry) for place, entry in shard
    }
    save_file(tensors, directory / file, metadata={'format': 'pt'})
    files |= dict.fromkeys(tensors, file)
    size += sum(tensor.nbytes for tensor in tensors.values())
    on_progress(number, total)
  if total > 1:
    index = {'metadata': {'total_size': size}, 'weight_map': files}
    path = directory / f'{name}.safetensors.index.json'
    path.write_text(json.dumps(index, indent=2, sort_keys=True) + '\n')


_Item = tuple[Place, tuple[int, ...]]


def _shards(wanted: Sequence[Place], shard_bytes: int) -> list[list[_Item]]:
  """Which tensors go into which file."""
  shards: list[list[_Item]] = [[]]
  size = 0
  for place in wanted:
    entries = list(place.entries)
    width = place.like.size * place.like.dtype.itemsize // len(entries)
    for entry in entries:
      if shards[-1] and size + width > shard_bytes:
        shards.append([])
        size = 0
      shards[-1].append((place, entry))
      size += width
  return shards


def _tensor(place: Place, entry: tuple[int, ...]) -> Shaped[np.ndarray, '...']:
  """One tensor as the checkpoint has it."""
  ours: Array = place.like[entry] if entry else place.like
  return np.ascontiguousarray(place.stored_as(np.asarray(jax.device_get(ours))))
