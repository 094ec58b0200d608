# SPDX-License-Identifier: Apache-2.0
"""Decoder-only transformer with stacked, scanned layers.

The modules declare parameters with logical axes and define the forward pass,
prefill and decoding; they are independent of training and sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, Num, PyTree, UInt

from covrl.models import flash, remat
from covrl.models.attention import (
  Attention,
  AttentionMask,
  LayerKeys,
  uses_lengths,
)
from covrl.models.cache import DecodeCache, PromptCache
from covrl.models.config import ModelConfig
from covrl.models.decode_attention import CachedTokens, list_prompts
from covrl.models.experts import RoutedMLP, Routing
from covrl.models.layers import GatedMLP, RMSNorm, constrain, normal_param
from covrl.models.value_head import ValueHead
from covrl.parallel import sharding

# Layers of a model, at most, that are compiled one by one on CPUs.
UNROLLED_LAYERS = 4


class LayerOptions(NamedTuple):
  """Options that differ between layers, beside their parameters.

  Attributes:
    frequencies: rotary frequencies, in radians per position.
    window: sliding window in tokens; `None` if no layer has one.
  """

  frequencies: Float[Array, '*L pairs']
  window: Int[Array, '*L'] | None

  @classmethod
  def stacked(cls, config: ModelConfig) -> LayerOptions:
    """Options of all layers, stacked to scan over."""
    windows = None
    if any(config.windows):
      unlimited = jnp.iinfo(jnp.int32).max
      windows = jnp.array([window or unlimited for window in config.windows])
    return cls(jnp.asarray(config.frequencies, config.stats_dtype), windows)

  def apply_window(
    self, mask: AttentionMask, distance: Int[Array, 'T T'] | None
  ) -> AttentionMask:
    """Restricts the mask of all layers to this layer's window.

    Args:
      mask: keys that layers without a window attend to.
      distance: tokens from each key to each query; not read with `cached`.
    """
    if self.window is None:
      return mask
    if mask.cached is not None:
      return mask._replace(cached=mask.cached._replace(window=self.window))
    if mask.lengths is not None:
      return mask
    if mask.mask is None:
      return mask._replace(window=self.window)
    if distance is None:
      raise TypeError('a mask of whole rows needs distances, got None')
    return mask._replace(mask=mask.mask & (distance < self.window))


class BlockOutputs(NamedTuple):
  """Outputs of a block.

  Attributes:
    x: residual stream.
    keys: the tokens' keys and values.
    routing: routing statistics, if they were asked for and there are experts.
    record: record of the tokens' experts, see `ExpertRecord`; `None` without
      experts.
  """

  x: Float[Array, 'B T D']
  keys: LayerKeys
  routing: Routing | None
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
    positions: Int[Array, 'B T'],
    mask: AttentionMask,
    frequencies: Float[Array, ' pairs'],
    real: Bool[Array, 'B T'] | None = None,
    recorded: UInt[Array, 'B T k'] | None = None,
  ) -> BlockOutputs:
    """Applies the block to the residual stream.

    Args:
      x: residual stream.
      positions: index of each token within its sequence.
      mask: keys that each query attends to.
      frequencies: rotary frequencies, in radians per position.
      real: true for tokens that are not padding; with it, routing statistics
        of these tokens are computed if there are experts.
      recorded: experts to route each token to; see `RoutedMLP`.
    """
    attended, keys = self.attention(
      self.attention_norm(x), positions, mask, frequencies
    )
    if self.attention_post_norm is not None:
      attended = self.attention_post_norm(attended)
    x = constrain(x + attended, 'batch', 'sequence', 'embed')
    x = checkpoint_name(x, 'mixed')
    normed, routing, record = self.mlp_norm(x), None, None
    if isinstance(self.mlp, RoutedMLP):
      output, routing, record = self.mlp(normed, real, recorded)
    else:
      output = self.mlp(normed)
    if self.mlp_post_norm is not None:
      output = self.mlp_post_norm(output)
    x = constrain(x + output, 'batch', 'sequence', 'embed')
    return BlockOutputs(x, keys, routing, record)


class Transformer(nnx.Module):
  """Computes hidden states of tokens; the unembedding turns them into logits."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    vocab, dim = config.vocab_size, config.model_dim
    self.embedding = normal_param(
      rngs, (vocab, dim), ('vocab', 'embed'), scale=dim**-0.5, config=config
    )
    self.layers = stack_layers(
      lambda key: Block(config, rngs=make_rngs(key)),
      jax.random.split(rngs.params(), config.num_layers),
    )
    self.final_norm = RMSNorm(config, dim, 'embed')
    self.value_head = ValueHead(config) if config.value_head else None
    self.head = (
      None
      if config.tied_embeddings or config.value_head
      else normal_param(
        rngs, (dim, vocab), ('embed', 'vocab'), scale=dim**-0.5, config=config
      )
    )

  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    segment_ids: Int[Array, 'B T'],
    *,
    one_sequence: bool = False,
    recorded: UInt[Array, 'B T L k'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], Routing | None]:
    """Hidden states of whole rows, and routing statistics of real tokens.

    The routing statistics are `None` without experts.

    Args:
      tokens: rows of one or several sequences.
      positions: index within the sequence, from 0.
      segment_ids: index of the sequence within the row, from 1; 0 is padding.
      one_sequence: whether no row has several sequences; padding may be on both
        sides.
      recorded: experts to route each token to; see `RoutedMLP`.
    """
    graphdef, layers = nnx.split(self.layers)
    start = None
    if one_sequence and uses_lengths(self.config):
      start = jnp.argmax(segment_ids > 0, axis=1)
      tokens, positions, segment_ids = (
        roll_rows(x, -start) for x in (tokens, positions, segment_ids)
      )
      if recorded is not None:
        recorded = roll_rows(recorded, -start)
      lengths = jnp.sum(segment_ids > 0, axis=1, dtype=jnp.int32)
      all_layers = AttentionMask(lengths=lengths)
    else:
      all_layers = segment_mask(segment_ids, self.config)
    real = segment_ids > 0
    distance = _distances(tokens.shape[1])

    def run_layer(
      x: Float[Array, 'B T D'], each: tuple[PyTree, LayerOptions, PyTree]
    ) -> tuple[Float[Array, 'B T D'], Routing | None]:
      layer, options, given = each
      block, mask = (
        nnx.merge(graphdef, layer),
        options.apply_window(all_layers, distance),
      )
      found = block(
        x, positions, mask, options.frequencies, real=real, recorded=given
      )
      return found.x, found.routing

    run_layer = remat.with_remat(run_layer, self.config.remat)
    by_layer = None if recorded is None else jnp.moveaxis(recorded, 2, 0)
    each = (layers, LayerOptions.stacked(self.config), by_layer)
    x, routing = self._scan_layers(run_layer, self._embed(tokens), each)
    x = self.final_norm(x)
    return (x if start is None else roll_rows(x, start)), routing

  def prefill(
    self,
    tokens: Int[Array, 'P T'],
    positions: Int[Array, 'P T'],
    mask: Bool[Array, 'P T'],
    *,
    record_experts: bool = False,
  ) -> tuple[Float[Array, 'P D'], PromptCache]:
    """Prefill: the last hidden state of prompts, and their cache."""
    graphdef, layers = nnx.split(self.layers)
    length = tokens.shape[1]
    all_layers = segment_mask(mask.astype(jnp.int32), self.config)
    distance = _distances(length)

    def run_layer(
      x: Float[Array, 'P T D'], each: tuple[PyTree, LayerOptions]
    ) -> tuple[Float[Array, 'P T D'], tuple[LayerKeys, Array | None]]:
      layer, options = each
      block, mask = (
        nnx.merge(graphdef, layer),
        options.apply_window(all_layers, distance),
      )
      found = block(x, positions, mask, options.frequencies)
      return found.x, (found.keys, found.record if record_experts else None)

    each = (layers, LayerOptions.stacked(self.config))
    x, (keys, record) = self._scan_layers(run_layer, self._embed(tokens), each)
    cache = PromptCache(
      *keys,
      lengths=jnp.sum(mask, axis=1, dtype=jnp.int32),
      experts=_by_token(record),
    )
    return self.final_norm(x[:, -1]), cache

  def decode(
    self,
    token: Int[Array, ' S'],
    cache: DecodeCache,
    live: Bool[Array, ' S'],
    *,
    record_experts: bool = False,
  ) -> tuple[Float[Array, 'S D'], DecodeCache]:
    """Decodes one more token of every live row."""
    graphdef, layers = nnx.split(self.layers)
    positions = cache.position()[:, None]
    cached = CachedTokens(
      cache=cache,
      live=live,
      reads=list_prompts(cache, live),
      layer=jnp.zeros((), jnp.int32),
      window=None,
    )

    def run_layer(
      x: Float[Array, 'S 1 D'],
      each: tuple[Int[Array, ''], PyTree, LayerOptions],
    ) -> tuple[Float[Array, 'S 1 D'], tuple[LayerKeys, Array | None]]:
      index, layer, options = each
      mask = AttentionMask(cached=cached._replace(layer=index))
      mask = options.apply_window(mask, None)
      block = nnx.merge(graphdef, layer)
      found = block(x, positions, mask, options.frequencies)
      return found.x, (found.keys, found.record if record_experts else None)

    start = self._embed(token[:, None])
    indices = jnp.arange(self.config.num_layers, dtype=jnp.int32)
    each = (indices, layers, LayerOptions.stacked(self.config))
    x, ((keys, values), record) = jax.lax.scan(run_layer, start, each)
    cache = cache.append(keys[:, :, :, 0], values[:, :, :, 0], live)
    record = _by_token(record)
    if record is not None:
      cache = cache._replace(experts=record[:, 0])
    return self.final_norm(x[:, 0]), cache

  def _scan_layers(
    self,
    run_layer: Callable[[Array, Any], tuple[Array, Any]],
    x: Float[Array, 'B T D'],
    each: PyTree,
  ) -> tuple[Float[Array, 'B T D'], Any]:
    """Runs the layers one after another: one compiled body for all of them.

    On CPUs a few layers are written out instead: the loop's copies of stacked
    arrays cost more time there than its body saves in compilation.
    """
    few = self.config.num_layers <= UNROLLED_LAYERS
    unroll = few and sharding.platform() == 'cpu'
    return jax.lax.scan(run_layer, x, each, unroll=unroll or 1)

  def _embed(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Looks up embeddings; their gradient is summed in the parameter's dtype."""
    tokens = constrain(tokens, 'looked_up', None)
    x = self.embedding[...][tokens].astype(self.config.dtype)
    x = constrain(x, 'looked_up', None, 'embed')
    if self.config.scaled_embeddings:
      x = x * jnp.asarray(self.config.model_dim**0.5, x.dtype)
    return constrain(x, 'batch', 'sequence', 'embed')


def _by_token(
  record: UInt[Array, 'L B T k'] | None,
) -> UInt[Array, 'B T L k'] | None:
  """Moves the axis of layers of a record of experts behind the tokens."""
  return None if record is None else jnp.moveaxis(record, 0, 2)


@jax.custom_vjp
def roll_rows(
  x: Num[Array, 'B T ...'], shift: Int[Array, ' B']
) -> Num[Array, 'B T ...']:
  """Rolls each row to the right by its own number of tokens.

  >>> roll_rows(jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([1, -1])).tolist()
  [[3, 1, 2], [5, 6, 4]]
  """
  return jax.vmap(lambda row, by: jnp.roll(row, by, axis=0))(x, shift)


def _roll_forward(
  x: Num[Array, 'B T ...'], shift: Int[Array, ' B']
) -> tuple[Num[Array, 'B T ...'], Int[Array, ' B']]:
  return roll_rows(x, shift), shift


def _roll_backward(
  shift: Int[Array, ' B'], cotangent: Num[Array, 'B T ...']
) -> tuple[Num[Array, 'B T ...'], None]:
  # Autodiff would scatter and add.
  return roll_rows(cotangent, -shift), None


roll_rows.defvjp(_roll_forward, _roll_backward)


def segment_mask(
  segment_ids: Int[Array, 'B T'], config: ModelConfig
) -> AttentionMask:
  """Causal mask within segments; no token attends to padding (segment 0).

  With the TPU kernels, padding attends to padding.
  """
  length = segment_ids.shape[1]
  if flash.uses_kernel(config, length):
    return AttentionMask(segment_ids=segment_ids)
  causal = jnp.tril(jnp.ones((length, length), bool))
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return AttentionMask(mask=causal & same & (segment_ids > 0)[:, None, :])


def make_rngs(key: Key[Array, '']) -> nnx.Rngs:
  """Creates random streams, with a separate one for adapters."""
  return nnx.Rngs(params=key, adapters=jax.random.fold_in(key, 1))


def _distances(length: int) -> Int[Array, 'T T']:
  """Number of tokens from each key to each query of a row.

  The tokens of a sequence are contiguous in every layout, so that differences
  of indices equal differences of positions.
  """
  return jnp.arange(length)[:, None] - jnp.arange(length)[None, :]


def stack_layers(
  make: Callable[[Key[Array, '']], nnx.Module], keys: Key[Array, ' L']
) -> nnx.Module:
  """Creates one module per key and stacks their parameters on a leading axis.

  Args:
    make: creates one module from one key.
    keys: one per module.

  Returns:
    A module whose parameters have an additional first logical axis `'layers'`;
    to run it, `nnx.split` it and scan over the parameters.
  """
  abstract = nnx.eval_shape(lambda: make(keys[0]))
  params = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(make(key))))(keys)
  module = nnx.merge(nnx.graphdef(abstract), params)
  for _, param in nnx.iter_graph(module):
    if isinstance(param, nnx.Param):
      param.set_metadata(axes=('layers', *param.get_metadata('axes')))
  return module
