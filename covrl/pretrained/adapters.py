# SPDX-License-Identifier: Apache-2.0
"""Loads and saves LoRA adapters in PEFT's format.

A directory with `adapter_config.json` and `adapter_model.safetensors` stands
for its base model with the adapters applied.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.models import Lora, Policy
from covrl.models.input_checks import check_params, param_shapes
from covrl.models.lora import split_adapters
from covrl.pretrained.atomic_dir import atomic_directory
from covrl.pretrained.families.config_json import (
  Family,
  config_fields,
  find_family,
)
from covrl.pretrained.families.config_values import check_values
from covrl.pretrained.families.tensor_names import (
  StoredTensor,
  adapter_tensor_names,
)
from covrl.pretrained.json_files import read_json
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import resolve
from covrl.pretrained.save import write_tensors
from covrl.pretrained.weights.finite import check_finite
from covrl.pretrained.weights.load_sharded import load_arrays
from covrl.pretrained.weights.param_mapping import map_params
from covrl.pretrained.weights.tensors import SafetensorsFiles

_CONFIG_FILE = 'adapter_config.json'
_WEIGHTS_NAME = 'adapter_model'

# Fields that are read, or do not affect the result. Dropout is a setting of
# PEFT's own training; training here applies none.
_SUPPORTED_FIELDS = {
  'auto_mapping',
  'base_model_name_or_path',
  'eva_config',
  'exclude_modules',
  'inference_mode',
  'layers_pattern',
  'lora_alpha',
  'lora_dropout',
  'megatron_core',
  'peft_type',
  'peft_version',
  'qalora_group_size',
  'r',
  'target_modules',
  'task_type',
  'use_rslora',
}
# Supported values of further fields. All other fields must be absent or false.
_SUPPORTED_VALUES: Mapping[str, tuple[Any, ...]] = {
  'bias': ('none',),
  'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),
}


def is_adapter(directory: epath.Path) -> bool:
  """Whether a directory holds adapters rather than a model."""
  return (directory / _CONFIG_FILE).is_file()


def base_model_directory(directory: epath.PathLike) -> epath.Path:
  """Directory of an adapter's base model; of a model, its own directory.

  Args:
    directory: see `load_pretrained`.

  Raises:
    ValueError: the base model is not given or cannot be found.
  """
  directory = resolve(directory)
  if not is_adapter(directory):
    return directory
  fields, file = read_json(directory / _CONFIG_FILE)
  base = fields.get('base_model_name_or_path')
  if not base or not isinstance(base, str):
    raise ValueError(
      f'{file} must name its model as base_model_name_or_path, got {str(base)[:80]!r}'
    )
  return resolve(base)


def lora_config(directory: epath.PathLike) -> Lora | None:
  """LoRA configuration of a directory's adapters, or `None` for a model.

  The targets are taken from the tensors, not from `target_modules`.

  Args:
    directory: see `load_pretrained`.

  Raises:
    ValueError: the adapters use an unsupported feature of PEFT.
  """
  directory = resolve(directory)
  if not is_adapter(directory):
    return None
  fields, file = read_json(directory / _CONFIG_FILE)
  try:
    check_values(fields)
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None
  _check_supported(fields, file)
  stored_names = SafetensorsFiles(directory, _WEIGHTS_NAME).files
  names = adapter_tensor_names(_base_family(directory).names)
  targets = [
    path.rpartition('_adapter')[0].rpartition('.')[2]
    for path, tensor in names.items()
    if path.endswith('.a') and tensor.name.format(0) in stored_names
  ]
  if not targets:
    raise ValueError(
      f'{directory / _WEIGHTS_NAME}.safetensors must hold adapters of some of'
      f' {sorted(tensor.name.format(0) for tensor in names.values())}, got'
      f' {sorted(stored_names)}'
    )
  _check_targets(fields, file, stored_names, names.values())
  return Lora(
    rank=fields['r'],
    alpha=float(fields['lora_alpha']),
    targets=tuple(targets),
    rank_stabilised=bool(fields.get('use_rslora', False)),
  )


def _check_targets(
  fields: Mapping[str, Any],
  file: str,
  stored_names: Collection[str],
  tensors: Iterable[StoredTensor],
) -> None:
  """Checks that all modules of `target_modules` have tensors.

  Otherwise a file without some of them would load as adapters of the others. Names of
  modules that the model does not have are ignored, as by PEFT; a regular expression
  is not evaluated.

  Raises:
    ValueError: a module has no tensors.
  """
  targets, excluded = (
    fields.get(name) or () for name in ('target_modules', 'exclude_modules')
  )
  for tensor in tensors:
    name = tensor.name.format(0)
    module = name.partition('.lora_')[0]
    if (
      name not in stored_names
      and (targets == 'all-linear' or _has_suffix(module, targets))
      and not _has_suffix(module, excluded)
    ):
      raise ValueError(
        f'{file}: all modules of target_modules must have adapters, got none of'
        f' {module.rpartition(".")[2]}'
      )


def _has_suffix(module: str, names: str | Sequence[str]) -> bool:
  """Whether one of a list of names is a module's or that of a part of its path."""
  return not isinstance(names, str) and any(
    f'.{module}'.endswith(f'.{name}') for name in names
  )


def _check_supported(fields: Mapping[str, Any], file: str) -> None:
  """Checks that an adapter_config.json uses supported features only."""
  if fields.get('peft_type') != 'LORA':
    raise ValueError(
      f'{file}: peft_type must be LORA, got {fields.get("peft_type")}'
    )
  for name in fields.keys() - _SUPPORTED_FIELDS:
    supported = _SUPPORTED_VALUES.get(name)
    if fields[name] and (supported is None or fields[name] not in supported):
      allowed = f'{supported[0]!r}' if supported else 'absent'
      raise ValueError(
        f'{file}: {name} must be {allowed} for its adapters to be read, got'
        f' {fields[name]!r}'
      )
  for name in ('r', 'lora_alpha'):
    if fields.get(name) is None:
      raise ValueError(f'{file} must state {name}, got none')


def load_adapters(
  directory: epath.PathLike, policy: Policy, mesh: Mesh | None = None
) -> PyTree:
  """Loads the adapters of a directory, nested as a policy's parameters.

  Args:
    directory: a directory in PEFT's format.
    policy: a policy with the directory's adapters; see `lora_config`.
    mesh: mesh to shard the adapters over; the default device unless given.

  Raises:
    ValueError: a tensor is missing, has another shape, or is unknown.
  """
  directory = resolve(directory)
  _, abstract_adapters = split_adapters(policy.abstract_params(mesh))
  family = _base_family(directory)
  return load_arrays(
    abstract_adapters,
    adapter_tensor_names(family.names),
    SafetensorsFiles(directory, _WEIGHTS_NAME),
    owner=f'adapter of a {family.architecture}',
  )


def save_adapters(
  directory: epath.PathLike, policy: Policy, params: PyTree
) -> None:
  """Writes the adapters of a policy, without its base model, for PEFT.

  A tokenizer, chat template and end tokens that differ from those of the base model
  are written beside them.

  Args:
    directory: must not exist, or be an empty directory.
    policy: a policy with adapters on a pretrained model.
    params: all parameters, or the adapters alone.

  Raises:
    ValueError: the directory is not empty, the policy has no adapters or no
      pretrained base model, or the adapters are not finite or not those of the
      policy.
  """
  lora = policy.config.lora
  if lora is None:
    raise ValueError('the policy must have adapters, got one without')
  if not isinstance(policy, PretrainedPolicy) or not policy.origin:
    raise ValueError(
      'the policy must be of a pretrained model with --adapter, got one without;'
      ' write it without --adapter'
    )
  _, adapters = split_adapters(params)
  check_params(
    adapters, param_shapes(split_adapters(policy.abstract_params())[1])
  )
  check_finite(adapters, 'the weights to write')
  family = find_family(_base_config_fields(policy), 'config.json')
  mapped_params = list(map_params(adapters, adapter_tensor_names(family.names)))
  modules = {param.tensor.name.split('.')[-3] for param in mapped_params}
  fields = {
    'peft_type': 'LORA',
    'task_type': 'CAUSAL_LM',
    'base_model_name_or_path': policy.origin,
    'r': lora.rank,
    'lora_alpha': lora.alpha,
    'target_modules': sorted(modules),
    'use_rslora': lora.rank_stabilised,
    'lora_dropout': 0.0,
    'bias': 'none',
    'fan_in_fan_out': False,
    'inference_mode': True,
  }
  with atomic_directory(directory) as draft:
    for name, content in policy.adapter_files.items():
      (draft / name).write_bytes(content)
    (draft / _CONFIG_FILE).write_text(json.dumps(fields, indent=2) + '\n')
    write_tensors(draft, _WEIGHTS_NAME, mapped_params)


def _base_config_fields(policy: PretrainedPolicy) -> Mapping[str, Any]:
  """The fields of the base model's config.json."""
  text = policy.files.get('config.json')
  return json.loads(text) if text else config_fields(policy.base.config)


def _base_family(directory: epath.Path) -> Family:
  """The family of an adapter's base model."""
  return find_family(
    *read_json(base_model_directory(directory) / 'config.json')
  )
