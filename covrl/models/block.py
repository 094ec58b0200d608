# SPDX-License-Identifier: Apache-2.0
"""A layer of the transformer: attention and feed-forward, and its options."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, UInt

from covrl.models.attention.grouped_query import (
  Attention,
  AttentionMask,
  KeyValues,
)
from covrl.models.config import ModelConfig
from covrl.models.experts import RoutedMLP, RoutingStats
from covrl.models.layers import GatedMLP, RMSNorm, constrain
from covrl.models.rope import Rotation


class LayerOptions(NamedTuple):
  """Options that differ between layers, beside their parameters.

  Attributes:
    rotation_index: index of the layer's rotation among those of the model; `None` if
      all layers have the same.
    window: sliding window in tokens; `None` if no layer has one.
  """

  rotation_index: Int[Array, '*L'] | None
  window: Int[Array, '*L'] | None

  @classmethod
  def stacked(cls, config: ModelConfig) -> LayerOptions:
    """Options of all layers, stacked to scan over."""
    windows = None
    if any(config.windows):
      unlimited = jnp.iinfo(jnp.int32).max
      windows = jnp.array([window or unlimited for window in config.windows])
    distinct, indices = config.distinct_frequencies
    index = jnp.asarray(indices) if len(distinct) > 1 else None
    return cls(index, windows)

  def choose_rotation(self, rotations: Rotation) -> Rotation:
    """This layer's rotation: the only one, or one along the first axis."""
    if self.rotation_index is None:
      return rotations
    cos, sin = rotations
    return Rotation(cos[self.rotation_index], sin[self.rotation_index])

  def apply_window(
    self, mask: AttentionMask, distance: Int[Array, 'T T'] | None
  ) -> AttentionMask:
    """Restricts the mask of all layers to this layer's window.

    Args:
      mask: keys that layers without a window attend to.
      distance: tokens from each key to each query, for a mask of whole rows.
    """
    if self.window is None:
      return mask
    if mask.cached is not None:
      return mask._replace(cached=mask.cached._replace(window=self.window))
    if mask.chunk is not None:
      return mask._replace(chunk=mask.chunk._replace(window=self.window))
    if mask.lengths is not None:
      return mask
    if mask.mask is None:
      return mask._replace(window=self.window)
    if distance is None:
      raise TypeError(
        'distance must be given with a mask of whole rows, got None'
      )
    return mask._replace(mask=mask.mask & (distance < self.window))


class BlockOutputs(NamedTuple):
  """Outputs of a block.

  Attributes:
    x: residual stream.
    key_values: the tokens' keys and values.
    routing: routing statistics, if they were requested and there are experts.
    record: record of the tokens' experts, see `ExpertRecordSpec`; `None` without
      experts.
  """

  x: Float[Array, 'B T D']
  key_values: KeyValues
  routing: RoutingStats | None
  record: UInt[Array, 'B T k'] | None


class Block(nnx.Module):
  """Attention and feed-forward layers, each pre-normed and residual."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    dim = config.model_dim
    self.attention_norm = RMSNorm(config, dim, 'embed')
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config, dim, 'embed')
    self.mlp = (
      GatedMLP(config, rngs=rngs)
      if config.experts is None
      else RoutedMLP(config, rngs=rngs)
    )
    post = config.post_norms
    self.attention_post_norm = RMSNorm(config, dim, 'embed') if post else None
    self.mlp_post_norm = RMSNorm(config, dim, 'embed') if post else None

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    rotation: Rotation,
    mask: AttentionMask,
    real: Bool[Array, 'B T'] | None = None,
    recorded_experts: UInt[Array, 'B T k'] | None = None,
  ) -> BlockOutputs:
    """Applies the block to the residual stream.

    Args:
      x: residual stream.
      rotation: rotation of each token.
      mask: keys that each query attends to.
      real: true for tokens that are not padding; with it, routing statistics
        of these tokens are computed if there are experts.
      recorded_experts: experts to route each token to; see `RoutedMLP`.
    """
    attended, key_values = self.attention(
      self.attention_norm(x), rotation, mask
    )
    if self.attention_post_norm is not None:
      attended = self.attention_post_norm(attended)
    x = constrain(x + attended, 'batch', 'sequence', 'embed')
    x = checkpoint_name(x, 'attention_residual')
    normed, routing, record = self.mlp_norm(x), None, None
    if isinstance(self.mlp, RoutedMLP):
      output, routing, record = self.mlp(normed, real, recorded_experts)
    else:
      output = self.mlp(normed)
    if self.mlp_post_norm is not None:
      output = self.mlp_post_norm(output)
    x = constrain(x + output, 'batch', 'sequence', 'embed')
    return BlockOutputs(x, key_values, routing, record)
