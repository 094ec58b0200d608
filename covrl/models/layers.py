# SPDX-License-Identifier: Apache-2.0
"""Layers of a block: parameters, linear maps, norms, feed-forward, sharding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

from covrl.models.config import Activation, ModelConfig
from covrl.models.lora import Lora
from covrl.parallel import sharding


def normal_param(
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  *,
  scale: float,
  config: ModelConfig,
) -> nnx.Param:
  """Creates a parameter drawn from N(0, scale²).

  Args:
    rngs: source of randomness; its stream `params` is used.
    shape: of the parameter.
    axes: logical axis of each dimension; see `covrl.parallel.sharding`.
    scale: standard deviation.
    config: its `param_dtype` is used.
  """
  values = scale * jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param(values.astype(config.param_dtype), axes=axes)


class Adapter(nnx.Module):
  """Low-rank adapter (LoRA), added to the product with a frozen matrix.

      scale · (x A) B

  A is random and B is 0, so that an adapter initially changes nothing. Both are
  at least float32, even beside a narrower matrix: their updates are small.
  """

  def __init__(
    self, lora: Lora, weight: nnx.Param, num_input_axes: int, rngs: nnx.Rngs
  ) -> None:
    """Creates the adapter of a matrix.

    Args:
      lora: rank and scale.
      weight: the matrix.
      num_input_axes: number of its leading axes that the product sums over.
      rngs: source of randomness; adapters have their own stream, so that the
        matrices do not depend on them.
    """
    self.scale = lora.scale
    rank, dtype = lora.rank, jnp.promote_types(weight.dtype, jnp.float32)
    axes, shape = weight.get_metadata('axes'), weight.shape
    input_shape, output_shape = shape[:num_input_axes], shape[num_input_axes:]
    normals = jax.random.normal(rngs.adapters(), (*input_shape, rank), dtype)
    self.a = nnx.Param(
      normals * math.prod(input_shape) ** -0.5,
      axes=(*axes[:num_input_axes], 'rank'),
    )
    self.b = nnx.Param(
      jnp.zeros((rank, *output_shape), dtype),
      axes=('rank', *axes[num_input_axes:]),
    )

  def __call__(self, x: Float[Array, 'B T ...']) -> Float[Array, 'B T ...']:
    """Computes the term to add to the product of `x` with the matrix."""
    a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
    low_rank = jnp.tensordot(x, a, axes=a.ndim - 1)
    return self.scale * jnp.tensordot(low_rank, b, axes=1)


def make_adapter(
  config: ModelConfig,
  name: str,
  weight: nnx.Param,
  *,
  num_input_axes: int = 1,
  rngs: nnx.Rngs,
) -> Adapter | None:
  """Creates the adapter of a matrix, or `None` if it has none.

  Args:
    config: its `lora` names the adapted matrices.
    name: of the matrix.
    weight: the matrix.
    num_input_axes: number of its leading axes that the product sums over.
    rngs: source of randomness.
  """
  if config.lora is None or name not in config.lora.targets:
    return None
  return Adapter(config.lora, weight, num_input_axes, rngs)


def linear(
  x: Float[Array, 'B T ...'],
  weight: nnx.Param,
  adapter: Adapter | None,
  *,
  num_input_axes: int = 1,
) -> Float[Array, 'B T ...']:
  """Multiplies inputs with a matrix and adds the adapter's term.

  Args:
    x: inputs, in the dtype to multiply in.
    weight: the matrix.
    adapter: the matrix's adapter, or `None`.
    num_input_axes: number of the matrix's leading axes that are summed over.
  """
  result = multiply(x, weight[...].astype(x.dtype), num_input_axes)
  return result if adapter is None else result + adapter(x)


def multiply(
  x: Float[Array, 'B T ...'], matrix: Float[Array, '...'], num_input_axes: int
) -> Float[Array, 'B T ...']:
  """Multiplies inputs with a matrix of several axes.

  On one CPU tokens are rows of one axis: the gradient of a matrix is a sum over
  tokens, before which XLA copies and transposes both factors if it is a sum over
  two axes. A mesh may split the two axes.

  Args:
    x: inputs.
    matrix: the matrix.
    num_input_axes: number of the matrix's leading axes that are summed over.
  """
  if sharding.platform() != 'cpu' or _mesh_has_several_devices():
    return jnp.tensordot(x, matrix, axes=num_input_axes)
  rows = x.reshape(-1, math.prod(x.shape[-num_input_axes:]))
  product = rows @ matrix.reshape(rows.shape[1], -1)
  return product.reshape(
    *x.shape[:-num_input_axes], *matrix.shape[num_input_axes:]
  )


def _mesh_has_several_devices() -> bool:
  """Whether the current mesh has several devices."""
  mesh = jax.sharding.get_abstract_mesh()
  return not mesh.empty and mesh.size > 1


def output_std(fan_in: int, config: ModelConfig) -> float:
  """Standard deviation of a matrix that writes into the residual stream.

      (fan_in · 2 · num_layers)^−1/2

  keeps the stream's variance of order one over the 2 · num_layers writes.
  """
  return 1.0 / math.sqrt(fan_in * 2 * config.num_layers)


def constrain(
  x: Shaped[Array, '...'], *axes: str | None
) -> Shaped[Array, '...']:
  """Constrains the sharding of an activation on the current mesh, if any.

  Mesh and rules are those of `covrl.parallel.sharding.use_mesh` around the
  jitted call. Array axes that the mesh does not divide evenly are not split.

  Args:
    x: any array.
    axes: its logical axes; see `covrl.parallel.sharding`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = sharding.fitted_spec(mesh, axes, x.shape, sharding.current_rules())
  return jax.lax.with_sharding_constraint(x, spec)


class RMSNorm(nnx.Module):
  """Root-mean-square norm with a learnt scale per feature.

      y = x / √(mean(x²) + ε) · scale

  or · (1 + scale) with `unit_offset`; the factor is initially 1.
  """

  def __init__(self, config: ModelConfig, size: int, axis: str) -> None:
    self.config = config
    initializer = jnp.zeros if config.unit_offset else jnp.ones
    self.scale = nnx.Param(
      initializer((size,), config.param_dtype), axes=(axis,)
    )

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """Normalises the last axis."""
    wide = x.astype(self.config.stats_dtype)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(mean_square + self.config.norm_eps)
    scale = self.scale[...].astype(self.config.stats_dtype)
    if self.config.unit_offset:
      scale = 1 + scale
    return (y * scale).astype(self.config.dtype)


class GatedMLP(nnx.Module):
  """Gated feed-forward layer.

      y = (activation(x W_gate) ⊙ x W_up) W_down

  References:
    Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, (6).
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    dim, hidden = config.model_dim, config.hidden_dim
    scale = dim**-0.5
    up_axes, down_axes = ('embed', 'mlp'), ('mlp', 'embed')
    self.gate = normal_param(
      rngs, (dim, hidden), up_axes, scale=scale, config=config
    )
    self.up = normal_param(
      rngs, (dim, hidden), up_axes, scale=scale, config=config
    )
    self.down = normal_param(
      rngs,
      (hidden, dim),
      down_axes,
      scale=output_std(hidden, config),
      config=config,
    )
    self.gate_adapter = make_adapter(config, 'gate', self.gate, rngs=rngs)
    self.up_adapter = make_adapter(config, 'up', self.up, rngs=rngs)
    self.down_adapter = make_adapter(config, 'down', self.down, rngs=rngs)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """Applies the layer to each token."""
    gate = checkpoint_name(linear(x, self.gate, self.gate_adapter), 'gate')
    up = checkpoint_name(linear(x, self.up, self.up_adapter), 'up')
    hidden = apply_gate(gate, up, self.config.activation)
    hidden = constrain(hidden, 'batch', 'sequence', 'mlp')
    return linear(hidden, self.down, self.down_adapter)


def apply_gate(
  gate: Float[Array, '*B F'], up: Float[Array, '*B F'], activation: Activation
) -> Float[Array, '*B F']:
  """Computes activation(gate) ⊙ up.

  On CPUs the backward pass computes the activation again: to write and to read
  arrays of its intermediate values costs more. Accelerators have `remat`.
  """

  def gated(
    gate: Float[Array, '*B F'], up: Float[Array, '*B F']
  ) -> Float[Array, '*B F']:
    return activate(gate, activation) * up

  if sharding.platform() == 'cpu':
    gated = jax.checkpoint(gated)
  return gated(gate, up)


def activate(
  x: Float[Array, '*B F'], activation: Activation
) -> Float[Array, '*B F']:
  """Applies the gate's activation: SiLU, or GELU in its tanh approximation."""
  if activation == 'silu':
    return jax.nn.silu(x)
  return jax.nn.gelu(x, approximate=True)


def soft_cap(x: Float[Array, '*B'], bound: float | None) -> Float[Array, '*B']:
  """Soft cap to ±bound; the identity if `None`.

  bound · tanh(x / bound)
  """
  return x if bound is None else bound * jnp.tanh(x / bound)
