# SPDX-License-Identifier: Apache-2.0
"""Saves policies as Hugging Face directories."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, PyTree, Shaped

from covrl.models import ModelConfig, Policy
from covrl.models.input_checks import check_params, param_shapes
from covrl.pretrained.atomic_dir import atomic_directory
from covrl.pretrained.families.config_json import (
  config_fields,
  find_family,
  model_config,
)
from covrl.pretrained.merging import merge_to_write
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.weights.finite import check_finite
from covrl.pretrained.weights.param_mapping import MappedParam, map_params

SHARD_BYTES = 4 * 2**30

# Fields of a config.json that a model with another configuration keeps.
_KEPT_FIELDS = (
  *('bos_token_id', 'eos_token_id', 'pad_token_id'),
  'max_position_embeddings',
)


def save_pretrained(
  directory: epath.PathLike,
  policy: Policy,
  params: PyTree,
  *,
  shard_bytes: int = SHARD_BYTES,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> None:
  """Writes a policy to a directory in the format of transformers.

  Weights keep their dtype, so that saving a loaded model reproduces its weights
  exactly. The tokenizer and generation files of a `PretrainedPolicy` are
  written too. Adapters are merged into the weights. The directory is written
  completely or not at all.

  Args:
    directory: must not exist, or be an empty directory.
    policy: the policy; if it is not pretrained, it is saved in the first model
      family that has all its features.
    params: all parameters of the policy.
    shard_bytes: approximate size of a weight file, which is held in host memory
      while it is written.
    on_progress: called with the number of weight files written so far and the
      total number.

  Raises:
    ValueError: the directory is not empty, no family has all features of the
      policy, or the parameters are not finite or not those of the policy.
  """
  check_params(params, param_shapes(policy.abstract_params()))
  policy, params = merge_to_write(policy, params)
  check_finite(params, 'the weights to write')
  files = model_files(policy, params)
  family = find_family(json.loads(files['config.json']), 'config.json')
  with atomic_directory(directory) as draft:
    for name, content in files.items():
      (draft / name).write_bytes(content)
    mapped_params = list(map_params(params, family.names))
    write_tensors(draft, 'model', mapped_params, shard_bytes, on_progress)


def model_files(policy: Policy, params: PyTree) -> dict[str, bytes]:
  """Configuration and tokenizer files of a policy, by name.

  Args:
    policy: a policy without adapters.
    params: its parameters, whose widest dtype is written to `config.json`.

  Raises:
    ValueError: no family has all features of the policy.
  """
  files = policy.files if isinstance(policy, PretrainedPolicy) else {}
  dtype = str(jnp.result_type(*jax.tree.leaves(params)))
  fields = _config_json(policy.config, files, dtype)
  text = json.dumps(fields, indent=2) + '\n'
  return {**files, 'config.json': text.encode()}


def _config_json(
  config: ModelConfig, files: Mapping[str, bytes], dtype: str
) -> dict[str, Any]:
  """The pretrained model's config.json if it still applies, else a new one.

  A new one keeps the ids of special tokens and the number of positions.
  """
  if 'config.json' in files:
    fields = json.loads(files['config.json'])
    original = model_config(fields, config.dtype, 'config.json')
    if _with_default_dtypes(original) == _with_default_dtypes(config):
      keys = {'dtype', 'torch_dtype'} & fields.keys() or {'torch_dtype'}
      return fields | dict.fromkeys(keys, dtype)
    kept = {name: fields[name] for name in _KEPT_FIELDS if name in fields}
    return kept | config_fields(config) | {'torch_dtype': dtype}
  return config_fields(config) | {'torch_dtype': dtype}


def _with_default_dtypes(config: ModelConfig) -> ModelConfig:
  """The configuration with defaults for dtypes and rematerialisation."""
  return dataclasses.replace(
    config, dtype='float32', param_dtype='float32', remat='nothing'
  )


def write_tensors(
  directory: pathlib.Path,
  name: str,
  params: Sequence[MappedParam],
  shard_bytes: int = SHARD_BYTES,
  on_progress: Callable[[int, int], object] = lambda done, num_files: None,
) -> None:
  """Writes parameters to one or more safetensors files.

  Args:
    directory: an existing directory.
    name: name of the file, without numbers and suffix.
    params: the parameters and their tensor names.
    shard_bytes: approximate size of a file.
    on_progress: called with the number of files written so far and the total
      number.
  """
  from safetensors.numpy import save_file

  shards = _split_into_shards(params, shard_bytes)
  num_files = len(shards)
  files: dict[str, str] = {}
  size = 0
  on_progress(0, num_files)
  for number, shard in enumerate(shards, start=1):
    file = (
      f'{name}.safetensors'
      if num_files == 1
      else f'{name}-{number:05}-of-{num_files:05}.safetensors'
    )
    tensors = {
      param.tensor_name(index): _copy_to_host(param, index)
      for param, index in shard
    }
    save_file(tensors, directory / file, metadata={'format': 'pt'})
    files |= dict.fromkeys(tensors, file)
    size += sum(tensor.nbytes for tensor in tensors.values())
    on_progress(number, num_files)
  if num_files > 1:
    weight_index = {'metadata': {'total_size': size}, 'weight_map': files}
    path = directory / f'{name}.safetensors.index.json'
    path.write_text(json.dumps(weight_index, indent=2, sort_keys=True) + '\n')


# A parameter and the stack index of one of its tensors.
_ParamTensor = tuple[MappedParam, tuple[int, ...]]


def _split_into_shards(
  params: Sequence[MappedParam], shard_bytes: int
) -> list[list[_ParamTensor]]:
  """Assigns tensors to files, in order."""
  shards: list[list[_ParamTensor]] = [[]]
  size = 0
  for param in params:
    indices = list(param.stack_indices)
    tensor_bytes = param.array.nbytes // len(indices)
    for index in indices:
      if shards[-1] and size + tensor_bytes > shard_bytes:
        shards.append([])
        size = 0
      shards[-1].append((param, index))
      size += tensor_bytes
  return shards


def _copy_to_host(
  param: MappedParam, index: tuple[int, ...]
) -> Shaped[np.ndarray, '...']:
  """Copies one tensor to the host, in the checkpoint's shape."""
  param_slice: Array = param.array[index] if index else param.array
  host_slice = np.asarray(jax.device_get(param_slice))
  return np.ascontiguousarray(param.to_tensor(host_slice))
