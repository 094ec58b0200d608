# SPDX-License-Identifier: Apache-2.0
"""How training state lies on the mesh.

Every program is told where its state goes, because a layout that the compiler
chose would differ from the one that came in and compile the program again.
"""

from __future__ import annotations

from typing import Any

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import Config, ConfigError
from covrl.models import ModelConfig
from covrl.parallel import sharding


def rollout_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """The sampler's mesh, over the trainer's devices.

  Args:
    mesh: of training.
    tensor: chips that share one copy of the weights; 0 is as many as the
      trainer's `tensor`, on the same mesh.
  """
  if tensor in (0, mesh.shape['tensor']):
    return mesh
  expert = mesh.shape['expert']
  sizes = {'data': -1, 'tensor': tensor, 'expert': expert}
  return sharding.reshaped(mesh, sizes)


def check_mesh(config: Config, model: ModelConfig, mesh: Mesh) -> None:
  """Refuses what cannot be split as a mesh would have it.

  Keys and values are an exception: where there are fewer heads of them than
  shards, each is held several times.

  Raises:
    ConfigError: names what is required of what.
  """
  sizes = dict(mesh.shape)
  sampler = config.rollout.tensor or sizes['tensor']
  shards = sizes['data'] * sizes['fsdp'] * sizes['expert']
  experts = model.experts.count if model.experts else sizes['expert']
  for size, name, axes, parts in (
    (experts, 'the number of experts', 'mesh.expert', sizes['expert']),
    *(
      (
        rows // config.train.micro_batches,
        f'{name} / train.micro_batches',
        'mesh.data × mesh.fsdp × mesh.expert',
        shards,
      )
      for rows, name in (
        (config.train.sequences_per_update, 'train.sequences_per_update'),
        (config.train.packed_rows, 'train.packed_rows'),
      )
    ),
    (
      model.model_dim,
      "the model's width",
      'mesh.fsdp × mesh.context',
      sizes['fsdp'] * sizes['context'],
    ),
    (
      model.num_heads,
      'the number of heads',
      'mesh.tensor × mesh.context',
      sizes['tensor'] * sizes['context'],
    ),
    (model.num_heads, 'the number of heads', 'rollout.tensor', sampler),
    *(
      (size, name, axes, parts)
      for axes, parts in (
        ('mesh.tensor', sizes['tensor']),
        ('rollout.tensor', sampler),
      )
      for size, name in (
        (model.vocab_size, 'the vocabulary'),
        (model.hidden_dim, 'the feed-forward width'),
      )
    ),
  ):
    if size % parts:
      raise ConfigError(
        f'{name} must be a multiple of {axes}, got {size} and {parts}'
      )


def replicated_like(leaf: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """An array's shape, held whole by every device."""
  return jax.ShapeDtypeStruct(
    leaf.shape, leaf.dtype, sharding=sharding.replicated(mesh)
  )


def abstract_opt_state(
  tx: optax.GradientTransformation,
  params: PyTree,
  mesh: Mesh,
  *,
  offload: bool = False,
) -> PyTree:
  """Shapes and shardings of an optimiser's state.

  Moments and the like are laid out as the parameters they belong to.

  Args:
    tx: the parameter chain.
    params: `jax.ShapeDtypeStruct` with shardings.
    mesh: for everything that belongs to no parameter.
    offload: whether what belongs to a parameter is in the host's memory.
  """

  def place(leaf: Any, param: Any) -> jax.ShapeDtypeStruct:
    placed = param.sharding
    if offload:
      placed = placed.with_memory_kind('pinned_host')
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

  return optax.tree.map_params(
    tx,
    place,
    jax.eval_shape(tx.init, params),
    params,
    transform_non_params=lambda leaf: replicated_like(leaf, mesh),
  )


def shardings(abstract: PyTree) -> PyTree:
  """The shardings of abstract arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)
