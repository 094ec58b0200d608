# SPDX-License-Identifier: Apache-2.0
"""Sharding of the training state, and checks of the mesh's sizes.

Every program has explicit output shardings: a sharding that the compiler chose
could differ from the input's and cause another compilation.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import PyTree

from covrl.config import Config, ConfigError
from covrl.config.divisors import divisor_hint, divisors, multiples, nearest
from covrl.models import ModelConfig
from covrl.parallel import sharding
from covrl.train.rollout_batch import row_width


def rollout_mesh(mesh: Mesh, tensor: int) -> Mesh:
  """Returns the sampler's mesh over the trainer's devices.

  Args:
    mesh: the trainer's mesh.
    tensor: size of the sampler's `tensor` axis; 0 takes the trainer's mesh.
  """
  if tensor in (0, mesh.shape['tensor']):
    return mesh
  expert = mesh.shape['expert']
  sizes = {'data': -1, 'tensor': tensor, 'expert': expert}
  return sharding.reshape_mesh(mesh, sizes)


def check_mesh(
  config: Config, model: ModelConfig, mesh: Mesh | AbstractMesh
) -> None:
  """Checks that batches and model dimensions divide evenly over the mesh.

  Key and value heads need not: if there are fewer heads than shards, each is
  replicated.

  Raises:
    ConfigError: a size is not a multiple of its mesh axes.
  """
  axes = dict(mesh.shape)
  tensor, context = axes['tensor'], axes['context']
  experts = model.experts.count if model.experts else axes['expert']
  _check_rows(config, axes['data'] * axes['fsdp'] * axes['expert'])
  _check_row_width(config, context)
  for name, size, divisor_name, divisor in (
    ('the number of experts', experts, 'mesh.expert', axes['expert']),
    (
      "the model's width",
      model.model_dim,
      'mesh.fsdp × mesh.context',
      axes['fsdp'] * context,
    ),
    (
      'the number of heads',
      model.num_heads,
      'mesh.tensor × mesh.context',
      tensor * context,
    ),
    *(
      (name, size, axis, count)
      for axis, count in (
        ('mesh.tensor', tensor),
        ('rollout.tensor', config.rollout.tensor or tensor),
      )
      for name, size in (
        ('the number of heads', model.num_heads),
        ('the vocabulary', model.vocab_size),
        ('the feed-forward width', model.hidden_dim),
      )
    ),
  ):
    if size % divisor:
      # An axis of a mesh also divides the number of devices.
      possible = divisors(math.gcd(size, mesh.size))
      raise ConfigError(
        f'{name} must be a multiple of {divisor_name}, got {size} and {divisor}'
        f'{divisor_hint(divisor_name, nearest(possible, divisor))}'
      )


def _check_rows(config: Config, shards: int) -> None:
  """Checks that rows of a micro-batch and of the warm start divide over the mesh."""
  train = config.train
  count = train.micro_batches
  # Rows that every number of micro-batches has to divide.
  rows = math.gcd(train.sequences_per_update, train.packed_rows)
  for name, size in (
    ('train.sequences_per_update', train.sequences_per_update),
    ('train.packed_rows', train.packed_rows),
  ):
    if size // count % shards:
      if rows % shards:
        advice = divisor_hint(name, multiples(shards * count, size))
      else:
        possible = divisors(rows // shards)
        advice = divisor_hint('train.micro_batches', nearest(possible, count))
      raise ConfigError(
        f'{name} / train.micro_batches must be a multiple of mesh.data × '
        f'mesh.fsdp × mesh.expert, got {size // count} and {shards}{advice}'
      )
  warm_start, field = config.warm_start, 'warm_start.batch_size'
  size = warm_start.batch_size
  if warm_start.steps and not warm_start.from_run and size % shards:
    raise ConfigError(
      f'{field} must be a multiple of mesh.data × mesh.fsdp × mesh.expert, got'
      f' {size} and {shards}{divisor_hint(field, multiples(shards, size))}'
    )


def _check_row_width(config: Config, shards: int) -> None:
  """Checks that the tokens of a row divide over the shards of the context."""
  width, field = row_width(config), 'rollout.max_response_length'
  if width % shards:
    response = config.rollout.max_response_length
    prompt = width - response
    lengths = multiples(shards, width)
    possible = [length - prompt for length in lengths if length > prompt]
    raise ConfigError(
      f'{field} + {prompt} tokens of the prompt must be a multiple of mesh.context,'
      f' got {response} + {prompt} and {shards}{divisor_hint(field, possible)}'
    )


def replicated_like(leaf: Any, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """Returns an array's shape with a replicated sharding."""
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
  """Returns shapes and shardings of an optimiser's state.

  Moments are sharded like their parameters; everything else is replicated.

  Args:
    tx: the parameter chain.
    params: `jax.ShapeDtypeStruct` with shardings.
    mesh: the mesh of the replicated leaves.
    offload: whether the moments are in host memory.
  """

  def like_param(leaf: Any, param: Any) -> jax.ShapeDtypeStruct:
    leaf_sharding = param.sharding
    if offload:
      leaf_sharding = leaf_sharding.with_memory_kind('pinned_host')
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)

  return optax.tree.map_params(
    tx,
    like_param,
    jax.eval_shape(tx.init, params),
    params,
    transform_non_params=lambda leaf: replicated_like(leaf, mesh),
  )


def shardings(abstract: PyTree) -> PyTree:
  """Returns the shardings of a tree of abstract arrays."""
  return jax.tree.map(lambda leaf: leaf.sharding, abstract)
