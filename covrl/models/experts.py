# SPDX-License-Identifier: Apache-2.0
"""A mixture of experts: each token is transformed by the few it is sent to.

No token is dropped, however many go to one expert: the rows are sorted by
expert and multiplied group by group. `jax.lax.ragged_dot` does that: on TPUs
it is one grouped kernel, whose work is that of the rows there are; where there
is no such kernel it is one masked product per expert, right and slower.

On a mesh whose `expert` axis splits the experts, every device collects the
tokens of those it shares them with, computes what its own experts add, and the
sums are scattered back: one gather and one scatter of tokens for each layer,
of a fixed size, where sending each token to its experts would need a bound on
how many an expert may get.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from covrl.models.cache import repeat_rows
from covrl.models.config import ModelConfig
from covrl.models.layers import activate, normal, output_scale
from covrl.parallel import sharding
from covrl.types import Scalar


class Routing(NamedTuple):
  """What became of the real tokens, summed over them, for each layer.

  Attributes:
    tokens: how many there were.
    counts: how often each expert was chosen.
    mass: the probability that the router gave each expert.
    entropy: of these probabilities, in nats.
  """

  tokens: Int[Array, '*L']
  counts: Int[Array, '*L E']
  mass: Float[Array, '*L E']
  entropy: Float[Array, '*L']

  @classmethod
  def of(
    cls,
    probabilities: Float[Array, 'B T E'],
    chosen: Int[Array, 'B T k'],
    real: Bool[Array, 'B T'],
  ) -> Routing:
    """Of one layer."""
    experts = jnp.arange(probabilities.shape[-1])
    hits = (chosen[..., None] == experts) & real[..., None, None]
    surprise = -jax.scipy.special.xlogy(probabilities, probabilities)
    return cls(
      tokens=jnp.sum(real, dtype=jnp.int32),
      counts=jnp.sum(hits, axis=(0, 1, 2), dtype=jnp.int32),
      mass=jnp.sum(jnp.where(real[..., None], probabilities, 0), axis=(0, 1)),
      entropy=jnp.sum(jnp.where(real[..., None], surprise, 0)),
    )


def load_balance(mass: Float[Array, 'L E'], whole: Routing) -> Scalar:
  """How unevenly the experts are used: 1 if alike, more if not.

      (1/L) Σ_l E Σ_e f_le · P_le

  f_le is the share of layer l's choices that fell on expert e, and is not
  differentiated; P_le is the mean probability.

  Args:
    mass: of some of the tokens; the losses of all parts add up.
    whole: of all tokens.

  References:
    Fedus, Zoph & Shazeer, "Switch Transformers: Scaling to Trillion Parameter
    Models with Simple and Efficient Sparsity", arXiv:2101.03961, (4), for one
    expert a token.
  """
  layers, experts = mass.shape
  choices = jnp.maximum(jnp.sum(whole.counts, axis=-1, keepdims=True), 1)
  fraction = jax.lax.stop_gradient(whole.counts / choices)
  tokens = jnp.maximum(whole.tokens, 1)[:, None]
  return experts * jnp.sum(fraction * mass / tokens) / layers


class RoutedMLP(nnx.Module):
  """Gated feed-forward layers of which a router chooses some for each token.

      p = softmax(x W_router),    y = Σ_e p_e expert_e(x) over the k likeliest

  p is divided by its sum over these, where the model says so.

  References:
    Shazeer et al., "Outrageously Large Neural Networks: The Sparsely-Gated
    Mixture-of-Experts Layer", arXiv:1701.06538.
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
    into, out = ('expert', 'embed', 'mlp'), ('expert', 'mlp', 'embed')
    shape = (count, dim, hidden)
    self.router = normal(
      rngs, (dim, count), ('embed', None), scale=scale, config=config
    )
    self.gate = normal(rngs, shape, into, scale=scale, config=config)
    self.up = normal(rngs, shape, into, scale=scale, config=config)
    self.down = normal(
      rngs,
      (count, hidden, dim),
      out,
      scale=output_scale(hidden, config),
      config=config,
    )

  def __call__(
    self, x: Float[Array, 'B T D'], real: Bool[Array, 'B T'] | None
  ) -> tuple[Float[Array, 'B T D'], Routing | None]:
    """Transforms each token by itself.

    Args:
      x: normed residual stream.
      real: tokens to keep statistics of; `None` keeps none.
    """
    wide = self.config.stats_dtype
    logits = jnp.einsum(
      'btd,de->bte',
      x,
      self.router[...].astype(x.dtype),
      preferred_element_type=wide,
    )
    probabilities = jax.nn.softmax(logits, axis=-1)
    shares, chosen = jax.lax.top_k(probabilities, self.experts.per_token)
    if self.experts.normalised:
      shares = shares / jnp.sum(shares, axis=-1, keepdims=True)
    weights = (
      weight[...].astype(x.dtype) for weight in (self.gate, self.up, self.down)
    )
    y = mix(x, chosen, shares, *weights, activation=self.config.activation)
    if real is None:
      return y, None
    return y, Routing.of(probabilities, chosen, real)


def mix(
  x: Float[Array, 'B T D'],
  chosen: Int[Array, 'B T k'],
  shares: Float[Array, 'B T k'],
  gate: Float[Array, 'E D F'],
  up: Float[Array, 'E D F'],
  down: Float[Array, 'E F D'],
  *,
  activation: str,
) -> Float[Array, 'B T D']:
  """What each token's experts make of it, weighted by their shares.

  Args:
    x: the tokens.
    chosen: their experts.
    shares: weight of each.
    gate: matrices of every expert.
    up: likewise.
    down: likewise.
    activation: of the gate.
  """
  run = functools.partial(_mix, activation=activation)
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return run(x, chosen, shares, gate, up, down)
  rules = sharding.rules_in_use()
  tokens, into, out = (
    sharding.fitted_spec(mesh, axes, array.shape, rules)
    for axes, array in (
      (('batch', 'sequence', None), x),
      (('expert', None, 'mlp'), gate),
      (('expert', 'mlp', None), down),
    )
  )
  experts, hidden = (
    sharding.mesh_axes_of(into[0]),
    sharding.mesh_axes_of(into[2]),
  )
  # Devices that have different experts may have different tokens, too.
  gathered = tuple(e for e in experts if e in sharding.mesh_axes_of(tokens[0]))

  def on_a_device(
    x: Float[Array, 'B T D'],
    chosen: Int[Array, 'B T k'],
    shares: Float[Array, 'B T k'],
    *weights: Float[Array, 'E _ _'],
  ) -> Float[Array, 'B T D']:
    if gathered:
      x, chosen, shares = (
        jax.lax.all_gather(each, gathered, tiled=True)
        for each in (x, chosen, shares)
      )
    if experts:
      chosen = chosen - jax.lax.axis_index(experts) * len(weights[0])
    y = run(x, chosen, shares, *weights)
    if gathered:
      y = jax.lax.psum_scatter(y, gathered, tiled=True)
    rest = tuple(name for name in experts if name not in gathered) + hidden
    return jax.lax.psum(y, rest) if rest else y

  return jax.shard_map(
    on_a_device,
    mesh=mesh,
    in_specs=(tokens, tokens, tokens, into, into, out),
    out_specs=tokens,
  )(x, chosen, shares, gate, up, down)


def _mix(
  x: Float[Array, 'B T D'],
  chosen: Int[Array, 'B T k'],
  shares: Float[Array, 'B T k'],
  gate: Float[Array, 'E D F'],
  up: Float[Array, 'E D F'],
  down: Float[Array, 'E F D'],
  *,
  activation: str,
) -> Float[Array, 'B T D']:
  """`mix` of the choices among these experts; others, out of range, add 0."""
  count, per_token = len(gate), chosen.shape[-1]
  flat = chosen.reshape(-1)
  is_here = (flat >= 0) & (flat < count)
  # Rows sorted by expert, those of no expert here after all others.
  order = jnp.argsort(jnp.where(is_here, flat, count), stable=True)
  sizes = jnp.sum(flat == jnp.arange(count)[:, None], axis=1, dtype=jnp.int32)
  rows = repeat_rows(x.reshape(-1, x.shape[-1]), per_token)
  # Beyond the groups a grouped product may leave anything, on the way back too.
  rows = jnp.where(is_here[:, None], rows, 0)[order]
  gated = checkpoint_name(jax.lax.ragged_dot(rows, gate, sizes), 'gate')
  raised = checkpoint_name(jax.lax.ragged_dot(rows, up, sizes), 'up')
  hidden = activate(gated, activation) * raised
  result = jax.lax.ragged_dot(hidden, down, sizes)[jnp.argsort(order)]
  result = jnp.where(is_here[:, None], result, 0)
  result = result.reshape(*chosen.shape, x.shape[-1])
  return jnp.einsum('btkd,btk->btd', result, shares).astype(x.dtype)
