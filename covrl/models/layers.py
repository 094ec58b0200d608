# SPDX-License-Identifier: Apache-2.0
"""The small parts of a block: parameters, norm, feed-forward, sharding."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Shaped

from covrl.models.config import ModelConfig
from covrl.models.lora import Lora
from covrl.parallel import sharding


def normal(
  rngs: nnx.Rngs,
  shape: tuple[int, ...],
  axes: tuple[str | None, ...],
  *,
  scale: float,
  config: ModelConfig,
) -> nnx.Param:
  """A parameter drawn from N(0, scale²), its axes named by what they mean."""
  values = scale * jax.random.normal(rngs.params(), shape, jnp.float32)
  return nnx.Param(values.astype(config.param_dtype), axes=axes)


class Adapter(nnx.Module):
  """What is added to a product whose matrix stays.

      scale · (x A) B

  A is drawn and B is nothing, so that an adapter begins as no change. Both are
  float32 at least, however narrow the matrix: their steps are small.
  """

  def __init__(
    self, lora: Lora, weight: nnx.Param, inputs: int, rngs: nnx.Rngs
  ) -> None:
    """Takes its shape from the matrix.

    Args:
      lora: rank and scale.
      weight: the matrix.
      inputs: how many of its leading axes a product sums over.
      rngs: have a stream of their own for adapters, so that the matrices are
        the same with and without.
    """
    self.scale = lora.scale
    rank, dtype = lora.rank, jnp.promote_types(weight.dtype, jnp.float32)
    axes, shape = weight.get_metadata('axes'), weight.shape
    into, out = shape[:inputs], shape[inputs:]
    drawn = jax.random.normal(rngs.adapters(), (*into, rank), dtype)
    self.a = nnx.Param(
      drawn * math.prod(into) ** -0.5, axes=(*axes[:inputs], 'rank')
    )
    self.b = nnx.Param(
      jnp.zeros((rank, *out), dtype), axes=('rank', *axes[inputs:])
    )

  def __call__(self, x: Float[Array, 'B T ...']) -> Float[Array, 'B T ...']:
    """The addition to the product of these inputs."""
    a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
    narrow = jnp.tensordot(x, a, axes=a.ndim - 1)
    return self.scale * jnp.tensordot(narrow, b, axes=1)


def adapter(
  config: ModelConfig,
  name: str,
  weight: nnx.Param,
  *,
  inputs: int = 1,
  rngs: nnx.Rngs,
) -> Adapter | None:
  """The adapter of a matrix, where it is to have one."""
  if config.lora is None or name not in config.lora.targets:
    return None
  return Adapter(config.lora, weight, inputs, rngs)


def product(
  x: Float[Array, 'B T ...'],
  weight: nnx.Param,
  change: Adapter | None,
  *,
  inputs: int = 1,
) -> Float[Array, 'B T ...']:
  """Inputs times a matrix, and what its adapter adds to that.

  Args:
    x: in the dtype to multiply in.
    weight: the matrix.
    change: its adapter, if it has one.
    inputs: how many of the matrix's leading axes are summed over.
  """
  result = jnp.tensordot(x, weight[...].astype(x.dtype), axes=inputs)
  return result if change is None else result + change(x)


def output_scale(fan_in: int, config: ModelConfig) -> float:
  """Standard deviation of a matrix that writes into the residual stream.

      (fan_in · 2 · num_layers)^−1/2

  keeps the stream's variance of order one over the 2 · num_layers writes.
  """
  return 1.0 / math.sqrt(fan_in * 2 * config.num_layers)


def constrain(
  x: Shaped[Array, '...'], *axes: str | None
) -> Shaped[Array, '...']:
  """States how an activation lies on the mesh in use; without one, nothing.

  Mesh and table are those that `covrl.parallel.sharding.in_use` put in use around the
  jitted call.
  Axes that it cannot divide are left whole.

  Args:
    x: any array.
    axes: its logical axes; see `covrl.parallel.sharding`.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return x
  spec = sharding.fitted_spec(mesh, axes, x.shape, sharding.rules_in_use())
  return jax.lax.with_sharding_constraint(x, spec)


class RMSNorm(nnx.Module):
  """Divides by the root mean square, then scales each feature.

      y = x / √(mean(x²) + ε) · scale

  or · (1 + scale) with `unit_offset`; either begins at 1.
  """

  def __init__(self, config: ModelConfig, size: int, axis: str) -> None:
    self.config = config
    start = jnp.zeros if config.unit_offset else jnp.ones
    self.scale = nnx.Param(start((size,), config.param_dtype), axes=(axis,))

  def __call__(self, x: Float[Array, '*B D']) -> Float[Array, '*B D']:
    """Norms the last axis."""
    wide = x.astype(self.config.stats_dtype)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(mean_square + self.config.norm_eps)
    scale = self.scale[...].astype(self.config.stats_dtype)
    if self.config.unit_offset:
      scale = 1 + scale
    return (y * scale).astype(self.config.dtype)


class GatedMLP(nnx.Module):
  """The gated feed-forward layer.

      y = (activation(x W_gate) ⊙ x W_up) W_down

  References:
    Shazeer, "GLU Variants Improve Transformer", arXiv:2002.05202, (6).
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    dim, hidden = config.model_dim, config.hidden_dim
    scale = dim**-0.5
    into, out = ('embed', 'mlp'), ('mlp', 'embed')
    self.gate = normal(rngs, (dim, hidden), into, scale=scale, config=config)
    self.up = normal(rngs, (dim, hidden), into, scale=scale, config=config)
    self.down = normal(
      rngs,
      (hidden, dim),
      out,
      scale=output_scale(hidden, config),
      config=config,
    )
    self.gate_adapter = adapter(config, 'gate', self.gate, rngs=rngs)
    self.up_adapter = adapter(config, 'up', self.up, rngs=rngs)
    self.down_adapter = adapter(config, 'down', self.down, rngs=rngs)

  def __call__(self, x: Float[Array, 'B T D']) -> Float[Array, 'B T D']:
    """Transforms each token by itself."""
    gate = checkpoint_name(product(x, self.gate, self.gate_adapter), 'gate')
    up = checkpoint_name(product(x, self.up, self.up_adapter), 'up')
    opened = activate(gate, self.config.activation)
    hidden = constrain(opened * up, 'batch', 'sequence', 'mlp')
    return product(hidden, self.down, self.down_adapter)


def activate(x: Float[Array, '*B F'], activation: str) -> Float[Array, '*B F']:
  """The gate's nonlinearity: silu, or gelu by its tanh approximation."""
  if activation == 'silu':
    return jax.nn.silu(x)
  return jax.nn.gelu(x, approximate=True)


def soft_cap(x: Float[Array, '*B'], bound: float | None) -> Float[Array, '*B']:
  """Keeps values within ±bound smoothly; `None` keeps them as they are.

  bound · tanh(x / bound)
  """
  return x if bound is None else bound * jnp.tanh(x / bound)
