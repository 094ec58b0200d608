# SPDX-License-Identifier: Apache-2.0
"""Division of requests over a mesh: shards, slots, and the state's shardings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
from jax import P
from jax.sharding import Mesh

from covrl.parallel import sharding
from covrl.rollout.slots import State

# Least number of slots that a shard is reduced to, and largest number of sizes,
# the first included.
MIN_SLOTS = 8
MAX_SLOT_SIZES = 4


class Layout(NamedTuple):
  """Static division of requests into shards and slots.

  Attributes:
    shards_per_prompt: shards that process each prompt, each for a part of its group.
    shards: number of shards.
    slots: sizes of a shard in slots, in descending order: the first one, and
      those that it is reduced to.
  """

  shards_per_prompt: int
  shards: int
  slots: tuple[int, ...]


def divide_requests(
  mesh: Mesh | None, count: int, group_size: int, *, slots: int, shrinks: bool
) -> Layout:
  """Divides the requests of some prompts over a mesh.

  A prompt is processed on several shards, each with a part of its group, if
  that uses more devices.

  Args:
    mesh: the sampler's mesh; `None` is one device.
    count: number of prompts.
    group_size: requests per prompt.
    slots: requests that are decoded together, at most; 0 for all.
    shrinks: whether the number of slots is reduced as requests end.
  """
  shards_per_prompt, shards = 1, 1
  if mesh is not None:
    shards_of = {
      n: math.prod(mesh.shape[name] for name in row_axes(mesh, count * n))
      for n in range(1, group_size + 1)
      if group_size % n == 0
    }
    shards_per_prompt = max(shards_of, key=lambda n: (shards_of[n], -n))
    shards = shards_of[shards_per_prompt]
  rows_per_shard = count * group_size // shards
  sizes = [
    min(rows_per_shard, -(-slots // shards)) if slots else rows_per_shard
  ]
  while shrinks and len(sizes) < MAX_SLOT_SIZES and sizes[-1] // 2 >= MIN_SLOTS:
    sizes.append(-(-sizes[-1] // 2))
  return Layout(
    shards_per_prompt=shards_per_prompt, shards=shards, slots=tuple(sizes)
  )


def state_specs(mesh: Mesh | None, state: State, shards: int) -> State:
  """Partition specs of a state; rows of one shard are on one device.

  Args:
    mesh: the sampler's mesh.
    state: arrays or shapes.
    shards: number of shards.
  """
  if mesh is None:
    return jax.tree.map(lambda _: P(), state)
  rows = P(row_axes(mesh, shards))
  axes = (None, None, 'attention_heads', None, None)

  def cache_spec(leaf: Any) -> P:
    if leaf.ndim < 4:
      return rows if leaf.ndim else P()
    # Keys and values, and the scales of integers.
    heads = sharding.fitted_spec(
      mesh, axes[: leaf.ndim], leaf.shape, sharding.ROLLOUT_RULES
    )[2]
    return P(None, rows[0], heads)

  specs = jax.tree.map(
    lambda leaf: rows if leaf.ndim else P(), state._replace(cache=None)
  )
  return specs._replace(cache=jax.tree.map(cache_spec, state.cache))


def constrain_state(mesh: Mesh | None, state: State, shards: int) -> State:
  """Constrains a state to its shardings, inside of a compiled program."""
  if mesh is None:
    return state
  specs = state_specs(mesh, state, shards)
  return jax.tree.map(jax.lax.with_sharding_constraint, state, specs)


def count_shards(mesh: Mesh | None) -> int:
  """Number of devices along the mesh axes that rows may be split over."""
  if mesh is None:
    return 1
  axes = sharding.mesh_axes_of(sharding.ROLLOUT_RULES['batch'])
  return math.prod(mesh.shape[name] for name in axes)


def row_axes(mesh: Mesh, count: int) -> tuple[str, ...]:
  """Mesh axes that split `count` rows."""
  spec = sharding.fitted_spec(
    mesh, ('batch',), (count,), sharding.ROLLOUT_RULES
  )
  return sharding.mesh_axes_of(spec[0])
