# SPDX-License-Identifier: Apache-2.0
"""Parameters in the dtypes and shardings that decoding reads them in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import P
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, PyTree

from covrl.models.layers import constrain
from covrl.models.policy import Policy
from covrl.parallel import sharding


def place_params(
  policy: Policy, params: PyTree, *, reshard_by_layer: bool
) -> PyTree:
  """Casts and shards parameters for decoding, inside of a compiled program.

  Args:
    policy: the policy.
    params: parameters of the policy, as training stores them.
    reshard_by_layer: see `reshards_by_layer`.
  """
  return jax.tree.map(
    _shard_by_layer if reshard_by_layer else _shard,
    policy.cast_params(params),
    policy.axes,
  )


def placer(policy: Policy, mesh: Mesh | None) -> Callable[[PyTree], PyTree]:
  """Returns a function that casts and shards parameters for decoding.

  Parameters that have these dtypes and shardings are not copied. The function
  is to be called with the mesh in use.
  """
  programs: dict[bool, jax.stages.Wrapped] = {}

  def place(params: PyTree) -> PyTree:
    if is_placed(policy, params, mesh):
      return params
    by_layer = reshards_by_layer(params, mesh)
    if by_layer not in programs:
      programs[by_layer] = _placement_program(policy, params, mesh)
    return programs[by_layer](params)

  return place


def trace_placement(
  policy: Policy, params: PyTree, mesh: Mesh | None
) -> jax.stages.Traced | None:
  """Traces the program of `placer`, from shapes; `None` if it has nothing to do."""
  if is_placed(policy, params, mesh):
    return None
  return _placement_program(policy, params, mesh).trace(params)


def abstract_placed(
  policy: Policy, params: PyTree, mesh: Mesh | None
) -> PyTree:
  """Returns shapes and shardings of parameters as `placer` returns them."""
  cast_params = jax.eval_shape(policy.cast_params, params)
  return abstract_on_mesh(mesh, cast_params, param_specs(policy, params, mesh))


def abstract_on_mesh(
  mesh: Mesh | None, arrays: PyTree, specs: PyTree
) -> PyTree:
  """Returns shapes with the shardings of partition specs on a mesh, if any."""

  def with_sharding(leaf: Any, spec: P) -> jax.ShapeDtypeStruct:
    leaf_sharding = None if mesh is None else NamedSharding(mesh, spec)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf_sharding)

  return jax.tree.map(with_sharding, arrays, specs)


def _placement_program(
  policy: Policy, params: PyTree, mesh: Mesh | None
) -> jax.stages.Wrapped:
  """The program that moves parameters which are sharded like `params`.

  Its results' shardings are stated: with parameters of another mesh, XLA would
  read the sampler's constraints as that mesh's.
  """
  by_layer = reshards_by_layer(params, mesh)
  shardings = None
  if mesh is not None:
    shardings = jax.tree.map(
      functools.partial(NamedSharding, mesh), param_specs(policy, params, mesh)
    )
  return jax.jit(
    functools.partial(place_params, policy, reshard_by_layer=by_layer),
    out_shardings=shardings,
  )


def is_placed(policy: Policy, params: PyTree, mesh: Mesh | None) -> bool:
  """Whether parameters are already as the function of `placer` returns them."""
  dtypes = policy.cast_dtypes(params)
  specs = param_specs(policy, params, mesh)

  def is_leaf_placed(leaf: Any, dtype: Any, spec: P) -> bool:
    if leaf.dtype != dtype:
      return False
    if mesh is None:
      return True
    expected = NamedSharding(mesh, spec)
    return leaf.sharding.is_equivalent_to(expected, leaf.ndim)

  return all(
    jax.tree.leaves(jax.tree.map(is_leaf_placed, params, dtypes, specs))
  )


def param_specs(policy: Policy, params: PyTree, mesh: Mesh | None) -> PyTree:
  """Partition specs of parameters for decoding."""

  def spec(leaf: Any, axes: Sequence[str | None]) -> P:
    if mesh is None:
      return P()
    rules = sharding.ROLLOUT_RULES
    return sharding.fitted_spec(mesh, axes, leaf.shape, rules)

  return jax.tree.map(spec, params, policy.axes)


def reshards_by_layer(params: PyTree, mesh: Mesh | None) -> bool:
  """Whether parameters have other tensor shards than the sampler's mesh.

  XLA cannot express that resharding, and all-gathers them instead; doing it
  layer by layer bounds the memory.
  """
  if mesh is None:
    return False
  shardings = [leaf.sharding for leaf in jax.tree.leaves(params)]
  tensor_shards = {
    leaf_sharding.mesh.shape['tensor']
    for leaf_sharding in shardings
    if isinstance(leaf_sharding, NamedSharding)
  }
  return bool(tensor_shards - {1, mesh.shape['tensor']})


def _shard(leaf: Array, axes: Sequence[str | None]) -> Array:
  """Shards a parameter as the sampler needs it."""
  return constrain(leaf, *axes)


def _shard_by_layer(leaf: Array, axes: Sequence[str | None]) -> Array:
  """Shards stacked parameters layer by layer: at most one layer is gathered."""
  if axes[0] != 'layers':
    return _shard(leaf, axes)
  layers = jax.lax.map(lambda layer: _shard(layer, axes[1:]), leaf)
  return _shard(layers, axes)
