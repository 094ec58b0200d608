# SPDX-License-Identifier: Apache-2.0
"""Pretrained policies in: a Hugging Face directory to sharded arrays."""

from __future__ import annotations

import dataclasses

from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl import storage
from covrl.models import Policy
from covrl.pretrained.adapters import (
  base_of,
  is_adapter,
  load_adapters,
  lora_of,
)
from covrl.pretrained.families import family_of, model_config
from covrl.pretrained.load_sharded import read_arrays
from covrl.pretrained.orbax_cache import has_copy, load_copy
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import json_fields, resolve, small_files
from covrl.pretrained.tensors import Tensors

# Kept by old conversions; derived from the configuration here.
_DERIVED = ('rotary_emb.inv_freq',)


def load_pretrained(
  directory: epath.PathLike,
  mesh: Mesh | None = None,
  dtype: str | None = None,
) -> tuple[PretrainedPolicy, PyTree]:
  """A policy and its parameters, from a directory as transformers writes it.

  Args:
    directory: has `config.json` and safetensors, in one file or several; or is
      an adapter as PEFT writes it, and stands for its model with the adapter;
      or the name of either on the Hugging Face hub, where there is network.
    mesh: where the parameters shall live; `None` is the default device.
    dtype: of parameters and activations, `'float32'` or `'bfloat16'`; the
      file's own unless given. Adapters are float32 at least.

  Returns:
    The policy, which remembers the directory's small files for
    `save_pretrained`, and its parameters.

  Raises:
    ValueError: something is missing, cut short, of another shape, or unknown;
      the sentence names file, tensor, what was expected and what was found.
  """
  policy = load_policy(directory, dtype)
  return policy, load_params(directory, policy, mesh)


def load_policy(
  directory: epath.PathLike, dtype: str | None = None
) -> PretrainedPolicy:
  """The policy alone: what its configuration says, without any weights.

  Raises:
    ValueError: as `load_pretrained`.
  """
  model = base_of(directory)
  fields, file = json_fields(model / 'config.json')
  stated = fields.get('dtype') or fields.get('torch_dtype')
  config = model_config(fields, dtype or stated or 'float32', file)
  config = dataclasses.replace(config, lora=lora_of(directory))
  return PretrainedPolicy(
    config, files=small_files(model), origin=origin_of(directory)
  )


def origin_of(directory: epath.PathLike) -> str:
  """How an adapter names a model: its directory, or its name on the hub."""
  found = resolve(directory)
  if is_adapter(found):
    fields, _ = json_fields(found / 'adapter_config.json')
    return origin_of(fields['base_model_name_or_path'])
  is_here = storage.path_of(directory).is_dir()
  return str(storage.absolute(found)) if is_here else str(directory)


def load_params(
  directory: epath.PathLike,
  policy: Policy,
  mesh: Mesh | None = None,
) -> PyTree:
  """The parameters alone, in the policy's `param_dtype`.

  Raises:
    ValueError: as `load_pretrained`, or the policy's adapters are not the
      directory's.
  """
  found = lora_of(directory)
  if policy.config.lora != found:
    raise ValueError(
      f'{directory}: must have the adapters of the policy,'
      f' {policy.config.lora}, got {found}'
    )
  model = base_of(directory)
  if found is None:
    return _load_model(model, policy, mesh)
  # What is small first: if it does not fit, that is known at once.
  adapters = load_adapters(directory, policy, mesh)
  return policy.join(adapters, {'base': _load_model(model, policy.base, mesh)})


def _load_model(
  directory: epath.Path, policy: Policy, mesh: Mesh | None
) -> PyTree:
  """The parameters of a model without adapters."""
  if has_copy(directory):
    return load_copy(directory, policy, mesh)
  family = family_of(*json_fields(directory / 'config.json'))
  # Of a tied model some files have the embedding twice.
  twice = family.names['head'].name if policy.config.tied_embeddings else None
  return read_arrays(
    policy.abstract_params(mesh),
    family.names,
    Tensors(directory),
    spare=lambda name: name == twice or name.endswith(_DERIVED),
    described_by=f'{family.architecture} of this config.json',
  )
