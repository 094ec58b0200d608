# SPDX-License-Identifier: Apache-2.0
"""Mixture of experts: each token is routed to a few feed-forward layers.

No token is dropped, however many are routed to one expert: rows are sorted by
expert and multiplied group by group with `jax.lax.ragged_dot`. On TPUs that is
one grouped kernel, whose work is proportional to the number of rows; elsewhere
it is one masked product per expert, correct and slower.

On a mesh whose `expert` axis splits the experts, every device gathers the tokens
of the devices with other experts, computes the terms of its own experts, and
the sums are scattered back: one all-gather and one reduce-scatter of tokens per
layer, of a fixed size. Sending each token to its experts would need a bound on
the number of tokens per expert.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, UInt

from covrl.models.cache import repeat_rows
from covrl.models.config import Activation, ModelConfig
from covrl.models.layers import activate, normal_param, output_std
from covrl.parallel import sharding
from covrl.types import Scalar


class ExpertRecordSpec(NamedTuple):
  """Shape and dtype of the record of experts that tokens were routed to.

  An entry is the expert's index plus 1, or 0 if it was not recorded.

  Attributes:
    layers: number of layers.
    per_token: number of experts of each token.
    dtype: unsigned integers of as few bytes as the number of experts needs.
  """

  layers: int
  per_token: int
  dtype: str

  @classmethod
  def of(cls, config: ModelConfig) -> ExpertRecordSpec:
    """Shape and dtype of the record for a model.

    Raises:
      ValueError: the model has no experts.

    >>> import dataclasses
    >>> from covrl.models import Experts, tiny
    >>> config = dataclasses.replace(tiny(16), experts=Experts(count=8, per_token=2))
    >>> ExpertRecordSpec.of(config).shape(4, 16), ExpertRecordSpec.of(config).dtype
    ((4, 16, 2, 2), 'uint8')
    """
    if config.experts is None:
      raise ValueError(
        'config must have experts for an ExpertRecordSpec, got a model without'
      )
    dtype = 'uint8' if config.experts.count < 2**8 else 'uint16'
    return cls(config.num_layers, config.experts.per_token, dtype)

  def shape(self, *tokens: int) -> tuple[int, ...]:
    """Shape of the record of tokens, such as rows and columns."""
    return *tokens, self.layers, self.per_token

  def empty(self, *tokens: int) -> np.ndarray:
    """A record of zeros: no token's experts were recorded."""
    return np.zeros(self.shape(*tokens), self.dtype)

  @property
  def bytes_per_token(self) -> int:
    """Bytes of the record of one token."""
    return self.layers * self.per_token * np.dtype(self.dtype).itemsize


class RoutingStats(NamedTuple):
  """Routing statistics of each layer, summed over real tokens.

  Attributes:
    tokens: number of real tokens.
    counts: number of tokens routed to each expert.
    mass: sum of the router's probability of each expert.
    entropy: sum of the entropies of these probabilities, in nats.
  """

  tokens: Int[Array, '*L']
  counts: Int[Array, '*L E']
  mass: Float[Array, '*L E']
  entropy: Float[Array, '*L']

  @classmethod
  def from_choices(
    cls,
    probabilities: Float[Array, 'B T E'],
    chosen: Int[Array, 'B T k'],
    real: Bool[Array, 'B T'],
  ) -> RoutingStats:
    """Statistics of one layer.

    Args:
      probabilities: of the experts, for each token.
      chosen: experts that each token is routed to.
      real: true for tokens that are not padding.
    """
    experts = jnp.arange(probabilities.shape[-1])
    hits = (chosen[..., None] == experts) & real[..., None, None]
    entropies = -jax.scipy.special.xlogy(probabilities, probabilities)
    return cls(
      tokens=jnp.sum(real, dtype=jnp.int32),
      counts=jnp.sum(hits, axis=(0, 1, 2), dtype=jnp.int32),
      mass=jnp.sum(jnp.where(real[..., None], probabilities, 0), axis=(0, 1)),
      entropy=jnp.sum(jnp.where(real[..., None], entropies, 0)),
    )


def load_balancing_loss(
  mass: Float[Array, 'L E'], routing: RoutingStats
) -> Scalar:
  """Load-balancing loss: 1 if experts are used equally, more otherwise.

      (1/L) Σ_l E Σ_e f_le · P_le

  f_le is the share of layer l's choices that fell on expert e, and is not
  differentiated; P_le is the mean probability.

  Args:
    mass: `RoutingStats.mass` of some of the tokens; losses of disjoint sets add up.
    routing: routing statistics of all tokens.

  References:
    Fedus, Zoph & Shazeer, "Switch Transformers: Scaling to Trillion Parameter
    Models with Simple and Efficient Sparsity", arXiv:2101.03961, (4), for one
    expert per token.
  """
  layers, experts = mass.shape
  choices = jnp.maximum(jnp.sum(routing.counts, axis=-1, keepdims=True), 1)
  fraction = jax.lax.stop_gradient(routing.counts / choices)
  tokens = jnp.maximum(routing.tokens, 1)[:, None]
  return experts * jnp.sum(fraction * mass / tokens) / layers


class RoutedMLP(nnx.Module):
  """Gated feed-forward layers, some of which a router chooses for each token.

      p = softmax(x W_router),    y = Σ_e p_e expert_e(x) over the k likeliest

  With `Experts.normalised`, p is divided by its sum over these k. With routing
  replay the k experts are those that the sampler recorded, instead of the likeliest;
  p is that of the router, which is trained as without replay.

  References:
    Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer", arXiv:1701.06538.
    Ma et al., "Stabilizing MoE Reinforcement Learning by Aligning Training and
    Inference Routers", arXiv:2510.11370 (routing replay).
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    assert config.experts is not None
    self.config = config
    self.experts = config.experts
    count, dim, hidden = (
      config.experts.count,
      config.model_dim,
      config.hidden_dim,
    )
    scale = dim**-0.5
    up_axes, down_axes = ('expert', 'embed', 'mlp'), ('expert', 'mlp', 'embed')
    shape = (count, dim, hidden)
    self.router = normal_param(
      rngs, (dim, count), ('embed', None), scale=scale, config=config
    )
    self.gate = normal_param(rngs, shape, up_axes, scale=scale, config=config)
    self.up = normal_param(rngs, shape, up_axes, scale=scale, config=config)
    self.down = normal_param(
      rngs,
      (count, hidden, dim),
      down_axes,
      scale=output_std(hidden, config),
      config=config,
    )

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    real: Bool[Array, 'B T'] | None,
    recorded_experts: UInt[Array, 'B T k'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], RoutingStats | None, UInt[Array, 'B T k']]:
    """Applies the layer to each token.

    Args:
      x: normalised residual stream.
      real: true for tokens to compute routing statistics of; `None` computes
        none.
      recorded_experts: experts to route each token to, see `ExpertRecordSpec`; those that
        were not recorded, and all if `None`, are the router's likeliest.

    Returns:
      The term to add to the residual stream, the statistics or `None`, and the
      record of the experts.
    """
    stats_dtype = self.config.stats_dtype
    logits = jnp.einsum(
      'btd,de->bte',
      x,
      self.router[...].astype(x.dtype),
      preferred_element_type=stats_dtype,
    )
    probabilities = jax.nn.softmax(logits, axis=-1)
    shares, chosen = jax.lax.top_k(probabilities, self.experts.per_token)
    if recorded_experts is not None:
      recorded_ids = recorded_experts.astype(chosen.dtype) - 1
      chosen = jnp.where(recorded_ids < 0, chosen, recorded_ids)
      shares = jnp.take_along_axis(probabilities, chosen, axis=-1)
    if self.experts.normalised:
      shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    weights = (
      weight[...].astype(x.dtype) for weight in (self.gate, self.up, self.down)
    )
    y = mix_experts(
      x, chosen, shares, *weights, activation=self.config.activation
    )
    record = (chosen + 1).astype(ExpertRecordSpec.of(self.config).dtype)
    if real is None:
      return y, None, record
    return y, RoutingStats.from_choices(probabilities, chosen, real), record


def mix_experts(
  x: Float[Array, 'B T D'],
  chosen: Int[Array, 'B T k'],
  shares: Float[Array, 'B T k'],
  gate: Float[Array, 'E D F'],
  up: Float[Array, 'E D F'],
  down: Float[Array, 'E F D'],
  *,
  activation: Activation,
) -> Float[Array, 'B T D']:
  """Sum of the outputs of each token's experts, weighted by their shares.

  Args:
    x: the tokens.
    chosen: experts of each token.
    shares: weights of these experts.
    gate: gate matrix of each expert.
    up: up-projection of each expert.
    down: down-projection of each expert.
    activation: activation of the gate.
  """
  mix_local = functools.partial(_mix_local, activation=activation)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return mix_local(x, chosen, shares, gate, up, down)
  rules = sharding.current_rules()
  token_spec, up_spec, down_spec = (
    sharding.fitted_spec(mesh, axes, array.shape, rules)
    for axes, array in (
      (('batch', 'sequence', None), x),
      (('expert', None, 'mlp'), gate),
      (('expert', 'mlp', None), down),
    )
  )
  expert_axes, hidden_axes = (
    sharding.mesh_axes_of(up_spec[0]),
    sharding.mesh_axes_of(up_spec[2]),
  )
  # Devices with different experts may also have different tokens.
  gathered_axes = tuple(
    e for e in expert_axes if e in sharding.mesh_axes_of(token_spec[0])
  )

  def on_device(
    x: Float[Array, 'B T D'],
    chosen: Int[Array, 'B T k'],
    shares: Float[Array, 'B T k'],
    *weights: Float[Array, 'E _ _'],
  ) -> Float[Array, 'B T D']:
    if gathered_axes:
      x, chosen, shares = (
        jax.lax.all_gather(array, gathered_axes, tiled=True)
        for array in (x, chosen, shares)
      )
    if expert_axes:
      chosen = chosen - jax.lax.axis_index(expert_axes) * len(weights[0])
    y = mix_local(x, chosen, shares, *weights)
    if gathered_axes:
      y = jax.lax.psum_scatter(y, gathered_axes, tiled=True)
    summed_axes = (
      tuple(name for name in expert_axes if name not in gathered_axes)
      + hidden_axes
    )
    return jax.lax.psum(y, summed_axes) if summed_axes else y

  return jax.shard_map(
    on_device,
    mesh=mesh,
    in_specs=(token_spec, token_spec, token_spec, up_spec, up_spec, down_spec),
    out_specs=token_spec,
  )(x, chosen, shares, gate, up, down)


def _mix_local(
  x: Float[Array, 'B T D'],
  chosen: Int[Array, 'B T k'],
  shares: Float[Array, 'B T k'],
  gate: Float[Array, 'E D F'],
  up: Float[Array, 'E D F'],
  down: Float[Array, 'E F D'],
  *,
  activation: Activation,
) -> Float[Array, 'B T D']:
  """`mix_experts` on one device; choices out of range add 0."""
  count, per_token = len(gate), chosen.shape[-1]
  flat_choices = chosen.reshape(-1)
  is_local = (flat_choices >= 0) & (flat_choices < count)
  # Rows sorted by expert, those without a local expert last.
  order = jnp.argsort(jnp.where(is_local, flat_choices, count), stable=True)
  group_sizes = jnp.sum(
    flat_choices == jnp.arange(count)[:, None], axis=1, dtype=jnp.int32
  )
  rows = repeat_rows(x.reshape(-1, x.shape[-1]), per_token)
  # Rows beyond the groups are undefined in grouped products, backward too.
  rows = jnp.where(is_local[:, None], rows, 0)[order]
  gated = checkpoint_name(jax.lax.ragged_dot(rows, gate, group_sizes), 'gate')
  projected = checkpoint_name(jax.lax.ragged_dot(rows, up, group_sizes), 'up')
  hidden = activate(gated, activation) * projected
  result = jax.lax.ragged_dot(hidden, down, group_sizes)[jnp.argsort(order)]
  result = jnp.where(is_local[:, None], result, 0)
  result = result.reshape(*chosen.shape, x.shape[-1])
  return jnp.einsum('btkd,btk->btd', result, shares).astype(x.dtype)
