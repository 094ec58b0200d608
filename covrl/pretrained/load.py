# SPDX-License-Identifier: Apache-2.0
"""Loads pretrained policies from Hugging Face directories and GGUF files."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Mapping

import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import PyTree

from covrl import storage
from covrl.models import Policy
from covrl.pretrained.adapters import (
  base_model_directory,
  is_adapter,
  load_adapters,
  lora_config,
)
from covrl.pretrained.families.config_json import find_family, model_config
from covrl.pretrained.json_files import read_json
from covrl.pretrained.model_files import (
  files_beside_adapters,
  read_model_files,
)
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import resolve
from covrl.pretrained.weights.load_sharded import load_arrays
from covrl.pretrained.weights.orbax_cache import has_orbax, load_orbax
from covrl.pretrained.weights.redundant import (
  has_own_unembedding,
  redundant_tensors,
)
from covrl.pretrained.weights.weight_files import has_tensors, open_tensors


def load_pretrained(
  directory: epath.PathLike,
  mesh: Mesh | None = None,
  dtype: DTypeLike | None = None,
) -> tuple[PretrainedPolicy, PyTree]:
  """Loads a policy and its parameters from a Hugging Face directory or a GGUF file.

  Args:
    directory: a directory with `config.json` and safetensors files, or with a
      PEFT adapter, which is loaded together with its base model; or the name of
      either on the Hugging Face hub; or a GGUF file, whose weights are
      dequantised.
    mesh: mesh to shard the parameters over; the default device unless given.
    dtype: floating-point dtype of parameters and activations, such as
      `jnp.float32` or `'bfloat16'`; the dtype in `config.json` unless given.
      Adapters are float32 or wider.

  Returns:
    The policy, with the directory's configuration and tokenizer files for
    `save_pretrained`, and its parameters.

  Raises:
    ValueError: a file or tensor is missing, incomplete, of another shape, or
      unknown, a number is not finite, or a field of `config.json` is invalid.
      The message names file, tensor or field, expected and actual value.
  """
  policy = load_policy(directory, dtype)
  return policy, load_params(directory, policy, mesh)


def load_policy(
  directory: epath.PathLike, dtype: DTypeLike | None = None
) -> PretrainedPolicy:
  """Loads a policy without its parameters.

  Args:
    directory: see `load_pretrained`.
    dtype: see `load_pretrained`.

  Raises:
    ValueError: see `load_pretrained`.
  """
  requested_dtype = None if dtype is None else dtype_name(dtype)
  model_directory = base_model_directory(directory)
  fields, file = read_json(model_directory / 'config.json')
  stored_dtype = fields.get('dtype') or fields.get('torch_dtype')
  config = model_config(
    fields, requested_dtype or stored_dtype or 'float32', file
  )
  if config.param_dtype == 'float64' and jnp.result_type(float) != jnp.float64:
    raise ValueError(
      f'{file}: JAX_ENABLE_X64 must be 1 for dtype float64, got 0; or pass'
      " another dtype, such as 'float32'"
    )
  files = read_model_files(directory)
  if config.tied_embeddings and has_own_unembedding(
    model_directory, find_family(fields, file)
  ):
    config = dataclasses.replace(config, tied_embeddings=False)
    files = untied_files(files)
  lora = lora_config(directory)
  config = dataclasses.replace(config, lora=lora)
  return PretrainedPolicy(
    config,
    files=files,
    origin=model_origin(directory),
    adapter_files={}
    if lora is None
    else files_beside_adapters(files, directory),
  )


def untied_files(files: Mapping[str, bytes]) -> dict[str, bytes]:
  """Files of a model whose unembedding is not its embedding.

  Args:
    files: configuration and tokenizer files by name; a `config.json` that ties
      both is replaced.
  """
  fields = json.loads(files['config.json'])
  if not model_config(fields, 'float32', 'config.json').tied_embeddings:
    return dict(files)
  untied_fields = fields | {'tie_word_embeddings': False}
  text = f'{json.dumps(untied_fields, indent=2)}\n'
  return {**files, 'config.json': text.encode()}


def dtype_name(dtype: DTypeLike) -> str:
  """Name of a floating-point dtype.

  Args:
    dtype: anything that `jnp.dtype` accepts.

  Raises:
    ValueError: the argument is not a floating-point dtype.

  >>> dtype_name(jnp.bfloat16), dtype_name('float32')
  ('bfloat16', 'float32')
  """
  try:
    parsed_dtype = jnp.dtype(dtype)
  except (TypeError, ValueError):
    parsed_dtype = None
  if parsed_dtype is None or not jnp.issubdtype(parsed_dtype, jnp.floating):
    raise ValueError(
      "dtype must be a floating-point dtype, such as jnp.float32 or 'bfloat16',"
      f' got {dtype!r}'
    )
  return parsed_dtype.name


def model_origin(directory: epath.PathLike) -> str:
  """Path or hub name of a model, or of an adapter's base model."""
  local_directory = resolve(directory)
  if is_adapter(local_directory):
    fields, _ = read_json(local_directory / 'adapter_config.json')
    return model_origin(fields['base_model_name_or_path'])
  path = storage.as_path(directory)
  return str(storage.absolute(path)) if path.exists() else str(directory)


def load_params(
  directory: epath.PathLike,
  policy: Policy,
  mesh: Mesh | None = None,
) -> PyTree:
  """Loads the parameters of a policy, in its `param_dtype`.

  Args:
    directory: see `load_pretrained`.
    policy: the policy of the directory, see `load_policy`.
    mesh: mesh to shard the parameters over; the default device unless given.

  Raises:
    ValueError: see `load_pretrained`; or the policy has other adapters than the
      directory.
  """
  adapter_lora = lora_config(directory)
  if policy.config.lora != adapter_lora:
    raise ValueError(
      f'{directory} must have the adapters of the policy,'
      f' {policy.config.lora}, got {adapter_lora}'
    )
  model_directory = base_model_directory(directory)
  if adapter_lora is None:
    return _load_base_params(model_directory, policy, mesh)
  # The small adapters come first, so that errors in them show at once.
  adapters = load_adapters(directory, policy, mesh)
  base = _load_base_params(model_directory, policy.base, mesh)
  return policy.join(adapters, {'base': base})


def _load_base_params(
  directory: epath.Path, policy: Policy, mesh: Mesh | None
) -> PyTree:
  """Loads the parameters of a model without adapters."""
  if has_orbax(directory):
    if has_tensors(directory):
      warnings.warn(
        f'{directory}: the weights in Orbax format are read, and not the'
        ' safetensors beside them',
        stacklevel=3,
      )
    return load_orbax(directory, policy, mesh)
  family = find_family(*read_json(directory / 'config.json'))
  tensors = open_tensors(directory)
  params = load_arrays(
    policy.abstract_params(mesh),
    family.names,
    tensors,
    redundant=redundant_tensors(tensors, family, policy.config),
    owner=f'{family.architecture} of this config.json',
  )
  tensors.warn_of_zeros()
  return params
