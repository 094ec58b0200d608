# SPDX-License-Identifier: Apache-2.0
"""Decoder-only transformer with stacked, scanned layers.

The modules declare parameters with logical axes and define the forward pass,
prefill and decoding; they are independent of training and sampling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from covrl.models import remat
from covrl.models.attention import flash
from covrl.models.attention.chunk import ChunkContext
from covrl.models.attention.cudnn import attends_without_mask
from covrl.models.attention.grouped_query import (
  AttentionMask,
  KeyValues,
  kv_head_copies,
)
from covrl.models.block import Block, LayerOptions
from covrl.models.cache import DecodeCache, LayerIndices, PromptCache
from covrl.models.cached_tokens import CachedTokens, list_prompts
from covrl.models.config import ModelConfig
from covrl.models.experts import ExpertRecordSpec, RoutingStats
from covrl.models.layers import RMSNorm, constrain, normal_param
from covrl.models.roll import roll_rows
from covrl.models.rope import Rotation
from covrl.models.value_head import ValueHead
from covrl.parallel import sharding

# Layers of a model, at most, that are compiled one by one on CPUs.
UNROLLED_LAYERS = 6


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
    recorded_experts: UInt[Array, 'B T L k'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], RoutingStats | None]:
    """Hidden states of whole rows, and routing statistics of real tokens.

    The routing statistics are `None` without experts.

    Args:
      tokens: rows of one or several sequences.
      positions: index within the sequence, from 0.
      segment_ids: index of the sequence within the row, from 1; 0 is padding.
      one_sequence: whether no row has several sequences; padding may be on both
        sides.
      recorded_experts: experts to route each token to; see `RoutedMLP`.
    """
    graphdef, layers = nnx.split(self.layers)
    first_column = None
    if one_sequence and attends_without_mask(self.config):
      first_column = jnp.argmax(segment_ids > 0, axis=1)
      tokens, positions, segment_ids = (
        roll_rows(x, -first_column) for x in (tokens, positions, segment_ids)
      )
      if recorded_experts is not None:
        recorded_experts = roll_rows(recorded_experts, -first_column)
      lengths = jnp.sum(segment_ids > 0, axis=1, dtype=jnp.int32)
      mask_of_all_layers = AttentionMask(lengths=lengths)
    else:
      mask_of_all_layers = segment_mask(segment_ids, self.config)
    real, rotations = segment_ids > 0, self._rotations(positions)
    distance = _distances(tokens.shape[1])

    def run_layer(
      x: Float[Array, 'B T D'], scanned: tuple[PyTree, LayerOptions, PyTree]
    ) -> tuple[Float[Array, 'B T D'], RoutingStats | None]:
      layer, options, layer_experts = scanned
      block, mask = (
        nnx.merge(graphdef, layer),
        options.apply_window(mask_of_all_layers, distance),
      )
      output = block(
        x,
        options.choose_rotation(rotations),
        mask,
        real=real,
        recorded_experts=layer_experts,
      )
      return output.x, output.routing

    run_layer = remat.with_remat(run_layer, self.config.remat)
    experts_by_layer = (
      None if recorded_experts is None else jnp.moveaxis(recorded_experts, 2, 0)
    )
    scanned = (layers, LayerOptions.stacked(self.config), experts_by_layer)
    x, routing = self._scan_layers(run_layer, self._embed(tokens), scanned)
    x = self.final_norm(x)
    return (x if first_column is None else roll_rows(x, first_column)), routing

  def prefill(
    self,
    tokens: Int[Array, 'P T'],
    positions: Int[Array, 'P T'],
    mask: Bool[Array, 'P T'],
    *,
    chunk: int = 0,
    record_experts: bool = False,
  ) -> tuple[Float[Array, 'P D'], PromptCache]:
    """Prefill: the last hidden state of prompts, and their cache."""
    if 0 < chunk < tokens.shape[1]:
      arrays = tokens, positions, mask
      return self._prefill_chunks(*arrays, chunk, record_experts)
    graphdef, layers = nnx.split(self.layers)
    length = tokens.shape[1]
    mask_of_all_layers = segment_mask(mask.astype(jnp.int32), self.config)
    distance, rotations = _distances(length), self._rotations(positions)

    def run_layer(
      x: Float[Array, 'P T D'], scanned: tuple[PyTree, LayerOptions]
    ) -> tuple[Float[Array, 'P T D'], tuple[KeyValues, Array | None]]:
      layer, options = scanned
      block, mask = (
        nnx.merge(graphdef, layer),
        options.apply_window(mask_of_all_layers, distance),
      )
      output = block(x, options.choose_rotation(rotations), mask)
      return output.x, (
        output.key_values,
        output.record if record_experts else None,
      )

    scanned = (layers, LayerOptions.stacked(self.config))
    x, (key_values, record) = self._scan_layers(
      run_layer, self._embed(tokens), scanned
    )
    cache = PromptCache(
      *key_values,
      lengths=jnp.sum(mask, axis=1, dtype=jnp.int32),
      experts=_by_token(record),
    )
    return self.final_norm(x[:, -1]), cache

  def _prefill_chunks(
    self,
    tokens: Int[Array, 'P T'],
    positions: Int[Array, 'P T'],
    mask: Bool[Array, 'P T'],
    chunk: int,
    record_experts: bool,
  ) -> tuple[Float[Array, 'P D'], PromptCache]:
    """`prefill`, `chunk` columns at a time; the first two may overlap."""
    graphdef, layers = nnx.split(self.layers)
    length, options = tokens.shape[1], LayerOptions.stacked(self.config)
    count = -(-length // chunk)

    def run_chunk(
      cache: PromptCache, index: Int[Array, '']
    ) -> tuple[PromptCache, Float[Array, 'P D']]:
      start = jnp.maximum(length - (count - index) * chunk, 0)
      token, position = (
        jax.lax.dynamic_slice_in_dim(x, start, chunk, axis=1)
        for x in (tokens, positions)
      )
      rotations = self._rotations(position)

      def run_layer(
        x: Float[Array, 'P c D'],
        scanned: tuple[PyTree, LayerOptions, KeyValues],
      ) -> tuple[Float[Array, 'P c D'], tuple[KeyValues, Array | None]]:
        layer, options, cached = scanned
        block, chunk_mask = (
          nnx.merge(graphdef, layer),
          AttentionMask(
            chunk=ChunkContext(cached.keys, cached.values, mask, start)
          ),
        )
        chunk_mask = options.apply_window(chunk_mask, None)
        output = block(x, options.choose_rotation(rotations), chunk_mask)
        return output.x, (
          output.key_values,
          output.record if record_experts else None,
        )

      scanned = (layers, options, KeyValues(cache.keys, cache.values))
      x, (chunk_key_values, record) = self._scan_layers(
        run_layer, self._embed(token), scanned
      )
      cache = cache.with_columns(
        chunk_key_values.keys, chunk_key_values.values, _by_token(record), start
      )
      return cache, x[:, -1]

    empty = self._empty_prompts(mask, record_experts)
    cache, last_states = jax.lax.scan(run_chunk, empty, jnp.arange(count))
    return self.final_norm(last_states[-1]), cache

  def _empty_prompts(
    self, mask: Bool[Array, 'P T'], record_experts: bool
  ) -> PromptCache:
    """The cache of prompts none of whose tokens is processed."""
    config, (rows, length) = self.config, mask.shape
    heads = config.num_kv_heads * kv_head_copies(config)
    shape = (config.num_layers, rows, heads, length, config.head_dim)
    experts = None
    if record_experts and config.experts is not None:
      record = ExpertRecordSpec.of(config)
      experts = jnp.zeros(record.shape(rows, length), record.dtype)
    zeros = constrain(
      jnp.zeros(shape, config.dtype),
      *('layers', 'batch', 'attention_heads', None, None),
    )
    lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
    return PromptCache(zeros, zeros, lengths, experts)

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
    rotations = self._rotations(cache.position()[:, None])
    cached = CachedTokens(
      cache=cache,
      live=live,
      reads=list_prompts(cache, live),
      layer=jnp.zeros((), jnp.int32),
      window=None,
    )

    def run_layer(
      x: Float[Array, 'S 1 D'],
      scanned: tuple[LayerIndices, PyTree, LayerOptions],
    ) -> tuple[Float[Array, 'S 1 D'], tuple[KeyValues, Array | None]]:
      indices, layer, options = scanned
      mask = AttentionMask(cached=cached._replace(**indices._asdict()))
      mask = options.apply_window(mask, None)
      block = nnx.merge(graphdef, layer)
      output = block(x, options.choose_rotation(rotations), mask)
      return output.x, (
        output.key_values,
        output.record if record_experts else None,
      )

    start = self._embed(token[:, None])
    windows = self.config.windows
    scanned = (
      cache.layer_indices(windows),
      layers,
      LayerOptions.stacked(self.config),
    )
    x, ((keys, values), record) = jax.lax.scan(run_layer, start, scanned)
    cache = cache.append(keys[:, :, :, 0], values[:, :, :, 0], live, windows)
    record = _by_token(record)
    if record is not None:
      cache = cache._replace(experts=record[:, 0])
    return self.final_norm(x[:, 0]), cache

  def _scan_layers(
    self,
    run_layer: Callable[[Array, Any], tuple[Array, Any]],
    x: Float[Array, 'B T D'],
    scanned: PyTree,
  ) -> tuple[Float[Array, 'B T D'], Any]:
    """Runs the layers one after another: one compiled body for all of them.

    On CPUs a few layers are written out instead: the loop's copies of stacked
    arrays cost more time there than its body saves in compilation. Not with
    rematerialisation, which saves memory in a loop only.
    """
    few = self.config.num_layers <= UNROLLED_LAYERS
    no_remat = self.config.remat == 'nothing'
    unroll = few and no_remat and sharding.platform() == 'cpu'
    return jax.lax.scan(run_layer, x, scanned, unroll=unroll or 1)

  def _rotations(self, positions: Int[Array, 'B T']) -> Rotation:
    """Rotation of tokens; with a leading axis if layers have different ones.

    It is computed once for all layers and heads: sines take longer than products.
    """
    config = self.config
    distinct, _ = config.distinct_frequencies
    return Rotation.of(
      positions,
      distinct if len(distinct) > 1 else distinct[0],
      magnitude=config.rope_magnitude,
      dtype=config.stats_dtype,
    )

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
  same_segment = segment_ids[:, :, None] == segment_ids[:, None, :]
  return AttentionMask(
    mask=causal & same_segment & (segment_ids > 0)[:, None, :]
  )


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
