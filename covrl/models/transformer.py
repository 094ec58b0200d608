# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer whose layers are stacked and scanned.

The modules only declare parameters and say what to compute; nothing here
knows of training, sampling or meshes beyond the names of logical axes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from covrl.models import decoding, flash, remat
from covrl.models.attention import Attention, Visible
from covrl.models.cache import KVCache, LayerCache
from covrl.models.config import ModelConfig
from covrl.models.decoding import Span
from covrl.models.experts import RoutedMLP, Routing
from covrl.models.layers import GatedMLP, RMSNorm, constrain, normal


class Kind(NamedTuple):
  """What tells one layer from another besides its parameters.

  Attributes:
    frequencies: of its rotations.
    window: tokens it looks back at; `None` where no layer has a window.
  """

  frequencies: Float[Array, '*L pairs']
  window: Int[Array, '*L'] | None

  @classmethod
  def of_all(cls, config: ModelConfig) -> Kind:
    """Of all layers, to be scanned over."""
    windows = None
    if any(config.windows):
      whole = jnp.iinfo(jnp.int32).max
      windows = jnp.array([window or whole for window in config.windows])
    return cls(jnp.asarray(config.frequencies, config.stats_dtype), windows)

  def see(self, visible: Visible, distance: Int[Array, 'T C']) -> Visible:
    """What a layer of this kind sees of what all may."""
    if self.window is None:
      return visible
    if visible.span is not None:
      start, end = visible.span
      start = jnp.minimum(jnp.maximum(start, end - self.window), end)
      return visible._replace(span=Span(start, end))
    if visible.mask is None:
      return visible._replace(window=self.window)
    return visible._replace(mask=visible.mask & (distance < self.window))


class Block(nnx.Module):
  """Attention and feed-forward, each normed and added to the stream."""

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
    visible: Visible,
    frequencies: Float[Array, ' pairs'],
    cache: LayerCache | None = None,
    real: Bool[Array, 'B T'] | None = None,
  ) -> tuple[Float[Array, 'B T D'], LayerCache, Routing | None]:
    """Takes the stream through the block.

    See `Attention` for the arguments. With `real`, which tokens are no
    padding, it is also said how these were sent to experts, if there are any.
    """
    mixed, cache = self.attention(
      self.attention_norm(x), positions, visible, frequencies, cache
    )
    if self.attention_post_norm is not None:
      mixed = self.attention_post_norm(mixed)
    x = constrain(x + mixed, 'batch', 'sequence', 'embed')
    x = checkpoint_name(x, 'mixed')
    normed, routing = self.mlp_norm(x), None
    if isinstance(self.mlp, RoutedMLP):
      changed, routing = self.mlp(normed, real)
    else:
      changed = self.mlp(normed)
    if self.mlp_post_norm is not None:
      changed = self.mlp_post_norm(changed)
    x = constrain(x + changed, 'batch', 'sequence', 'embed')
    return x, cache, routing


class Transformer(nnx.Module):
  """Tokens to hidden states, from which the unembedding makes logits."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    vocab, dim = config.vocab_size, config.model_dim
    self.embedding = normal(
      rngs, (vocab, dim), ('vocab', 'embed'), scale=dim**-0.5, config=config
    )
    self.layers = stack(
      lambda key: Block(config, rngs=streams(key)),
      jax.random.split(rngs.params(), config.num_layers),
    )
    self.final_norm = RMSNorm(config, dim, 'embed')
    self.head = (
      None
      if config.tied_embeddings
      else normal(
        rngs, (dim, vocab), ('embed', 'vocab'), scale=dim**-0.5, config=config
      )
    )

  def __call__(
    self,
    tokens: Int[Array, 'B T'],
    positions: Int[Array, 'B T'],
    segment_ids: Int[Array, 'B T'],
  ) -> tuple[Float[Array, 'B T D'], Routing | None]:
    """Hidden states of whole rows, and what became of their real tokens.

    All tokens at once. Without experts the second is `None`.
    """
    graphdef, layers = nnx.split(self.layers)
    rows, real = visible_of(segment_ids, self.config), segment_ids > 0
    distance = _distances(jnp.arange(tokens.shape[1]), tokens.shape[1])

    def through(
      x: Float[Array, 'B T D'], each: tuple[PyTree, Kind]
    ) -> tuple[Float[Array, 'B T D'], Routing | None]:
      layer, kind = each
      block, visible = nnx.merge(graphdef, layer), kind.see(rows, distance)
      x, _, routing = block(x, positions, visible, kind.frequencies, real=real)
      return x, routing

    through = remat.recomputed(through, self.config.remat)
    each = (layers, Kind.of_all(self.config))
    x, routing = jax.lax.scan(through, self._embed(tokens), each)
    return self.final_norm(x), routing

  def prefill(
    self,
    tokens: Int[Array, 'P T'],
    positions: Int[Array, 'P T'],
    mask: Bool[Array, 'P T'],
    cache_length: int,
  ) -> tuple[Float[Array, 'P D'], KVCache]:
    """Reads prompts; gives the last hidden state and a cache that has room."""
    graphdef, layers = nnx.split(self.layers)
    length = tokens.shape[1]
    rows = visible_of(mask.astype(jnp.int32), self.config)
    distance = _distances(jnp.arange(length), length)

    def through(
      x: Float[Array, 'P T D'], each: tuple[PyTree, Kind]
    ) -> tuple[Float[Array, 'P T D'], tuple[Array, Array]]:
      layer, kind = each
      block, visible = nnx.merge(graphdef, layer), kind.see(rows, distance)
      x, cache, _ = block(x, positions, visible, kind.frequencies)
      return x, cache.read()

    each = (layers, Kind.of_all(self.config))
    x, (keys, values) = jax.lax.scan(through, self._embed(tokens), each)
    cache = KVCache(keys=keys, values=values, mask=mask)
    return self.final_norm(x[:, -1]), cache.extended(cache_length)

  def decode(
    self,
    token: Int[Array, ' S'],
    position: Int[Array, ' S'],
    cache: KVCache,
    index: Int[Array, ''],
    live: Bool[Array, ' S'],
  ) -> tuple[Float[Array, 'S D'], KVCache]:
    """Reads one more token of every row into slot `index` of the cache."""
    graphdef, layers = nnx.split(self.layers)
    ones = jnp.ones((token.shape[0], 1), bool)
    mask = jax.lax.dynamic_update_slice(cache.mask, ones, (0, index))
    before = Visible(mask=mask[:, None, :])
    if decoding.is_used(self.config):
      start = jnp.argmax(mask, axis=1).astype(jnp.int32)
      end = jnp.where(live, index + 1, start)
      before = Visible(span=Span(start, end))
    distance = _distances(index[None], mask.shape[1])
    view = LayerCache(
      keys=cache.keys,
      values=cache.values,
      layer=jnp.zeros((), jnp.int32),
      slot=index,
    )

    def through(
      carry: tuple[Float[Array, 'S 1 D'], LayerCache],
      each: tuple[PyTree, Kind],
    ) -> tuple[tuple[Float[Array, 'S 1 D'], LayerCache], None]:
      (x, view), (layer, kind) = carry, each
      visible = kind.see(before, distance)
      block = nnx.merge(graphdef, layer)
      x, view, _ = block(x, position[:, None], visible, kind.frequencies, view)
      return (x, view._replace(layer=view.layer + 1)), None

    begin = (self._embed(token[:, None]), view)
    each = (layers, Kind.of_all(self.config))
    (x, view), _ = jax.lax.scan(through, begin, each)
    cache = KVCache(keys=view.keys, values=view.values, mask=mask)
    return self.final_norm(x[:, 0]), cache

  def _embed(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Looks tokens up; a table's derivative is summed in its own dtype."""
    tokens = constrain(tokens, 'looked_up', None)
    x = self.embedding[...][tokens].astype(self.config.dtype)
    x = constrain(x, 'looked_up', None, 'embed')
    if self.config.scaled_embeddings:
      x = x * jnp.asarray(self.config.model_dim**0.5, x.dtype)
    return constrain(x, 'batch', 'sequence', 'embed')


def visible_of(segment_ids: Int[Array, 'B T'], config: ModelConfig) -> Visible:
  """What precedes a token in its own segment; padding, 0, is seen by none.

  With kernels, padding is seen by padding.
  """
  length = segment_ids.shape[1]
  if flash.is_used(config, length):
    return Visible(segment_ids=segment_ids)
  causal = jnp.tril(jnp.ones((length, length), bool))
  same = segment_ids[:, :, None] == segment_ids[:, None, :]
  return Visible(mask=causal & same & (segment_ids > 0)[:, None, :])


def streams(key: Key[Array, '']) -> nnx.Rngs:
  """Streams of randomness of which adapters have one of their own."""
  return nnx.Rngs(params=key, adapters=jax.random.fold_in(key, 1))


def _distances(rows: Int[Array, ' T'], length: int) -> Int[Array, 'T C']:
  """How many slots before each query each key stands.

  A sequence's tokens are neighbours in every layout, so that slots tell
  distances as well as positions do.
  """
  return rows[:, None] - jnp.arange(length)[None, :]


def stack(
  make: Callable[[Key[Array, '']], nnx.Module], keys: Key[Array, ' L']
) -> nnx.Module:
  """Makes one module per key and stacks their parameters on a leading axis.

  Args:
    make: builds one module from one key.
    keys: one per module.

  Returns:
    A module whose every parameter has the additional logical axis `'layers'`
    in front; `nnx.split` it and scan over the parameters to run it.
  """
  abstract = nnx.eval_shape(lambda: make(keys[0]))
  params = jax.vmap(lambda key: nnx.to_pure_dict(nnx.state(make(key))))(keys)
  module = nnx.merge(nnx.graphdef(abstract), params)
  for _, param in nnx.iter_graph(module):
    if isinstance(param, nnx.Param):
      param.set_metadata(axes=('layers', *param.get_metadata('axes')))
  return module
