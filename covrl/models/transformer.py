# SPDX-License-Identifier: Apache-2.0
"""A decoder-only transformer whose layers are stacked and scanned.

The modules only declare parameters and say what to compute; nothing here
knows of training, sampling or meshes beyond the names of logical axes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from covrl.models.attention import Attention
from covrl.models.cache import KVCache, LayerCache
from covrl.models.config import ModelConfig
from covrl.models.layers import RMSNorm, SwiGLU, constrain, normal


class Block(nnx.Module):
  """Attention and feed-forward, each normed and added to the stream."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.attention_norm = RMSNorm(config)
    self.attention = Attention(config, rngs=rngs)
    self.mlp_norm = RMSNorm(config)
    self.mlp = SwiGLU(config, rngs=rngs)

  def __call__(
    self,
    x: Float[Array, 'B T D'],
    positions: Int[Array, 'B T'],
    mask: Bool[Array, 'B T C'],
    cache: LayerCache | None = None,
  ) -> tuple[Float[Array, 'B T D'], LayerCache]:
    """Takes the stream through the block; see `Attention` for the cache."""
    mixed, cache = self.attention(
      self.attention_norm(x), positions, mask, cache
    )
    x = constrain(x + mixed, 'batch', 'sequence', 'embed')
    x = x + self.mlp(self.mlp_norm(x))
    return constrain(x, 'batch', 'sequence', 'embed'), cache


class Transformer(nnx.Module):
  """Tokens to hidden states, from which the unembedding makes logits."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs) -> None:
    self.config = config
    vocab, dim = config.vocab_size, config.model_dim
    self.embedding = normal(
      rngs, (vocab, dim), ('vocab', 'embed'), scale=dim**-0.5, config=config
    )
    self.layers = stack(
      lambda key: Block(config, rngs=nnx.Rngs(params=key)),
      jax.random.split(rngs.params(), config.num_layers),
    )
    self.final_norm = RMSNorm(config)
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
    mask: Bool[Array, 'B T T'],
  ) -> Float[Array, 'B T D']:
    """Hidden states of whole sequences, all tokens at once."""
    graphdef, layers = nnx.split(self.layers)

    def through(
      x: Float[Array, 'B T D'], layer: PyTree
    ) -> tuple[Float[Array, 'B T D'], None]:
      return nnx.merge(graphdef, layer)(x, positions, mask)[0], None

    if self.config.remat:
      through = jax.checkpoint(through, prevent_cse=False)
    x, _ = jax.lax.scan(through, self._embed(tokens), layers)
    return self.final_norm(x)

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
    causal = jnp.tril(jnp.ones((length, length), bool))
    visible = causal & mask[:, None, :]

    def through(
      x: Float[Array, 'P T D'], layer: PyTree
    ) -> tuple[Float[Array, 'P T D'], tuple[Array, Array]]:
      x, cache = nnx.merge(graphdef, layer)(x, positions, visible)
      return x, cache.read()

    x, (keys, values) = jax.lax.scan(through, self._embed(tokens), layers)
    room = cache_length - length
    room_5d = (*((0, 0),) * 3, (0, room), (0, 0))
    cache = KVCache(
      keys=jnp.pad(keys, room_5d),
      values=jnp.pad(values, room_5d),
      mask=jnp.pad(mask, ((0, 0), (0, room))),
    )
    return self.final_norm(x[:, -1]), cache

  def decode(
    self,
    token: Int[Array, ' S'],
    position: Int[Array, ' S'],
    cache: KVCache,
    index: Int[Array, ''],
  ) -> tuple[Float[Array, 'S D'], KVCache]:
    """Reads one more token of every row into slot `index` of the cache."""
    graphdef, layers = nnx.split(self.layers)
    ones = jnp.ones((token.shape[0], 1), bool)
    mask = jax.lax.dynamic_update_slice(cache.mask, ones, (0, index))
    visible = mask[:, None, :]
    view = LayerCache(
      keys=cache.keys,
      values=cache.values,
      layer=jnp.zeros((), jnp.int32),
      slot=index,
    )

    def through(
      carry: tuple[Float[Array, 'S 1 D'], LayerCache], layer: PyTree
    ) -> tuple[tuple[Float[Array, 'S 1 D'], LayerCache], None]:
      x, view = carry
      block = nnx.merge(graphdef, layer)
      x, view = block(x, position[:, None], visible, view)
      return (x, view._replace(layer=view.layer + 1)), None

    start = (self._embed(token[:, None]), view)
    (x, view), _ = jax.lax.scan(through, start, layers)
    cache = KVCache(keys=view.keys, values=view.values, mask=mask)
    return self.final_norm(x[:, 0]), cache

  def _embed(self, tokens: Int[Array, 'B T']) -> Float[Array, 'B T D']:
    """Looks tokens up."""
    # Rows of the table are gathered whole: the activation's model axis is.
    table = constrain(self.embedding[...], 'vocab', None)
    x = table.astype(self.config.dtype)[tokens]
    return constrain(x, 'batch', 'sequence', 'embed')


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
