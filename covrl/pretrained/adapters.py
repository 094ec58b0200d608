# SPDX-License-Identifier: Apache-2.0
"""Low-rank adapters in and out, as PEFT writes them.

A directory with `adapter_config.json` and `adapter_model.safetensors` stands
for the model that it names, with the adapters beside its matrices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.models import Lora, Policy
from covrl.models.lora import split_adapters
from covrl.pretrained.atomic_dir import written_whole
from covrl.pretrained.families import Family, describe, family_of
from covrl.pretrained.load_sharded import read_arrays
from covrl.pretrained.names import adapter_names
from covrl.pretrained.param_mapping import places
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import json_fields, resolve
from covrl.pretrained.save import write_tensors
from covrl.pretrained.tensors import Tensors

_CONFIG = 'adapter_config.json'
_WEIGHTS = 'adapter_model'

# What is read, or does not concern the arithmetic. Dropout is for training
# elsewhere, and what is computed must not depend on chance here.
_HARMLESS = {
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
# Other values would change the arithmetic, or the matrices that stay; so would
# any field that is neither here nor above, if it has a value.
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
  'bias': ('none',),
  'init_lora_weights': (True, False, 'gaussian', 'orthogonal', 'eva'),
}


def is_adapter(directory: epath.Path) -> bool:
  """Whether a directory holds adapters, and not a model."""
  return (directory / _CONFIG).is_file()


def base_of(directory: epath.PathLike) -> epath.Path:
  """The directory of the model itself, whose adapters a directory may hold.

  Raises:
    ValueError: adapters do not say of which model they are, or it is not there.
  """
  directory = resolve(directory)
  if not is_adapter(directory):
    return directory
  fields, file = json_fields(directory / _CONFIG)
  named = fields.get('base_model_name_or_path')
  if not named:
    raise ValueError(
      f'{file}: must name its model as base_model_name_or_path, got {named!r}'
    )
  return resolve(named)


def lora_of(directory: epath.PathLike) -> Lora | None:
  """What the adapters of a directory are; `None` of a model without.

  Which matrices have one is what the file holds, whatever it says.

  Raises:
    ValueError: they are of a kind that is not known here.
  """
  directory = resolve(directory)
  if not is_adapter(directory):
    return None
  fields, file = json_fields(directory / _CONFIG)
  if fields.get('peft_type') != 'LORA':
    raise ValueError(
      f'{file}: peft_type must be LORA, got {fields.get("peft_type")}'
    )
  for name in fields.keys() - _HARMLESS:
    allowed = _ALLOWED.get(name)
    if fields[name] and (allowed is None or fields[name] not in allowed):
      wanted = f'{allowed[0]!r}' if allowed else 'absent'
      raise ValueError(
        f'{file}: {name} must be {wanted} for its adapters to be read, got'
        f' {fields[name]!r}'
      )
  for name in ('r', 'lora_alpha'):
    if name not in fields:
      raise ValueError(f'{file}: must state {name}, and does not')
  held = Tensors(directory, _WEIGHTS).files
  names = adapter_names(_family(directory).names)
  targets = [
    path.rpartition('_adapter')[0].rpartition('.')[2]
    for path, stored in names.items()
    if path.endswith('.a') and stored.name.format(0) in held
  ]
  if not targets:
    raise ValueError(
      f'{directory / _WEIGHTS}.safetensors: must hold adapters of some of'
      f' {sorted(stored.name.format(0) for stored in names.values())}, got'
      f' {sorted(held)}'
    )
  return Lora(
    rank=fields['r'],
    alpha=float(fields['lora_alpha']),
    targets=tuple(targets),
    rank_stabilised=bool(fields.get('use_rslora', False)),
  )


def load_adapters(
  directory: epath.PathLike, policy: Policy, mesh: Mesh | None = None
) -> PyTree:
  """The adapters of a directory, nested as a policy's parameters are.

  Args:
    directory: as PEFT writes it.
    policy: with the directory's adapters; see `lora_of`.
    mesh: where they shall live; `None` is the default device.

  Raises:
    ValueError: a tensor is missing, of another shape, or left over.
  """
  directory = resolve(directory)
  _, like = split_adapters(policy.abstract_params(mesh))
  family = _family(directory)
  return read_arrays(
    like,
    adapter_names(family.names),
    Tensors(directory, _WEIGHTS),
    spare=lambda name: False,
    described_by=f'adapter of a {family.architecture} here',
  )


def save_adapters(
  directory: epath.PathLike, policy: Policy, params: PyTree
) -> None:
  """Writes the adapters alone, as PEFT reads them.

  Args:
    directory: must not exist, or be empty.
    policy: was loaded from the model that the adapters stand beside.
    params: all parameters, or the adapters.

  Raises:
    ValueError: something is there already, or the policy has no adapters, or
      comes from nowhere.
  """
  lora = policy.config.lora
  if lora is None:
    raise ValueError('a policy with adapters is required, got one without')
  if not isinstance(policy, PretrainedPolicy) or not policy.origin:
    raise ValueError(
      'adapters alone can be written of a pretrained model only, got a policy'
      ' that was made here; write it without --adapter'
    )
  _, adapters = split_adapters(params)
  names = adapter_names(family_of(_description(policy), 'config.json').names)
  wanted = list(places(adapters, names))
  modules = {place.stored.name.split('.')[-3] for place in wanted}
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
  with written_whole(directory) as draft:
    (draft / _CONFIG).write_text(json.dumps(fields, indent=2) + '\n')
    write_tensors(draft, _WEIGHTS, wanted)


def _description(policy: PretrainedPolicy) -> Mapping[str, Any]:
  """The config.json that the policy came with."""
  stated = policy.files.get('config.json')
  return json.loads(stated) if stated else describe(policy.base.config)


def _family(directory: epath.Path) -> Family:
  """The family of the model that adapters stand beside."""
  return family_of(*json_fields(base_of(directory) / 'config.json'))
