# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights in: a Hugging Face directory to sharded arrays.

Each device is given its own slices, read from the files one tensor at a time,
so that the host never holds more than the largest tensor.
"""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import (
  Mesh,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)
from jaxtyping import Array, Int, PyTree, Shaped

from covrl.models import ModelConfig, Policy
from covrl.pretrained.copies import has_copy, load_copy
from covrl.pretrained.families import Family, family_of, model_config
from covrl.pretrained.layout import Place, places
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.resolve import resolve, small_files
from covrl.pretrained.tensors import Tensors

# Kept by old conversions; derived from the configuration here.
_DERIVED = ('rotary_emb.inv_freq',)


def load_pretrained(
  directory: str | pathlib.Path,
  mesh: Mesh | None = None,
  dtype: str | None = None,
) -> tuple[PretrainedPolicy, PyTree]:
  """A policy and its parameters, from a directory as transformers writes it.

  Args:
    directory: has `config.json` and safetensors, in one file or several; or
      the name of a repository on the Hugging Face hub, where there is network.
    mesh: where the parameters shall live; `None` is the default device.
    dtype: of parameters and activations, `'float32'` or `'bfloat16'`; the
      file's own unless given.

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
  directory: str | pathlib.Path, dtype: str | None = None
) -> PretrainedPolicy:
  """The policy alone: what its configuration says, without any weights.

  Raises:
    ValueError: as `load_pretrained`.
  """
  directory = resolve(directory)
  fields, file = read_fields(directory)
  stated = fields.get('dtype') or fields.get('torch_dtype')
  config = model_config(fields, dtype or stated or 'float32', file)
  return PretrainedPolicy(config, files=small_files(directory))


def load_params(
  directory: str | pathlib.Path,
  policy: Policy,
  mesh: Mesh | None = None,
) -> PyTree:
  """The parameters alone, in the policy's `param_dtype`.

  Raises:
    ValueError: as `load_pretrained`.
  """
  directory = resolve(directory)
  if has_copy(directory):
    return load_copy(directory, policy, mesh)
  family = family_of(*read_fields(directory))
  tensors = Tensors(directory)
  like = policy.abstract_params(mesh)
  wanted = list(places(like, family.names))
  for place in wanted:
    shape = place.flat[:: -1 if place.stored.inputs else 1]
    for name in place.names:
      tensors.check(name, shape)
  _refuse_others(tensors, wanted, policy.config, family)
  leaves = [_load(place, tensors) for place in wanted]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


def read_fields(directory: pathlib.Path) -> tuple[Mapping[str, Any], str]:
  """The fields of a directory's config.json, and the file's name.

  Raises:
    ValueError: there is none, or it is no JSON.
  """
  file = directory / 'config.json'
  if not file.is_file():
    raise ValueError(f'{directory} must hold config.json, and does not')
  try:
    return json.loads(file.read_text()), str(file)
  except json.JSONDecodeError as error:
    raise ValueError(f'{file}: must be JSON, got {error}') from None


def _refuse_others(
  tensors: Tensors, wanted: Sequence[Place], config: ModelConfig, family: Family
) -> None:
  """Refuses a checkpoint of which something would be left out."""
  known = {name for place in wanted for name in place.names}
  if config.tied_embeddings:
    known.add(family.names['head'].name)
  for name, file in tensors.files.items():
    if name not in known and not name.endswith(_DERIVED):
      raise ValueError(
        f'{file}: holds {name}, which no {family.architecture} of this'
        ' config.json has'
      )


def _load(place: Place, tensors: Tensors) -> Array:
  """One parameter, all its layers."""
  whole: Any = place.like.sharding or SingleDeviceSharding(jax.devices()[0])
  if place.layers is None:
    return _tensor(place, place.names[0], whole, tensors)
  stacked = _zeros(place.like.shape, place.like.dtype, whole)
  for layer, name in enumerate(place.names):
    one = _tensor(place, name, _of_one_layer(whole), tensors)
    stacked = _put(stacked, one, np.int32(layer))
  return stacked


def _tensor(place: Place, name: str, sharding: Any, tensors: Tensors) -> Array:
  """One layer's parameter, each device's part read from the file."""

  def part(index: tuple[slice, ...] | None) -> Shaped[np.ndarray, '...']:
    index = (slice(None),) * len(place.shape) if index is None else index
    shape = [
      len(range(*cut.indices(size)))
      for cut, size in zip(index, place.shape, strict=True)
    ]
    spans = place.spans(index)
    if place.stored.inputs:
      read = tensors.read(name, spans[::-1], place.like.dtype)
    else:
      read = tensors.read(name, spans, place.like.dtype).T
    return read.reshape(shape)

  return jax.make_array_from_callback(place.shape, sharding, part)


def _of_one_layer(sharding: Any) -> Any:
  """The sharding of a layer, from that of all of them."""
  if not isinstance(sharding, NamedSharding):
    return sharding
  return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


def _zeros(
  shape: tuple[int, ...], dtype: np.dtype, sharding: Any
) -> Shaped[Array, 'L ...']:
  make = functools.partial(jnp.zeros, shape, dtype)
  return jax.jit(make, out_shardings=sharding)()


@functools.partial(jax.jit, donate_argnums=0)
def _put(
  stacked: Shaped[Array, 'L ...'],
  one: Shaped[Array, '...'],
  layer: Int[Array, ''],
) -> Shaped[Array, 'L ...']:
  """Writes one layer in place."""
  return jax.lax.dynamic_update_index_in_dim(stacked, one, layer, 0)
