# SPDX-License-Identifier: Apache-2.0
"""Memory traffic of decode attention as compiled for a GPU that is not attached.

  pip install 'covrl[gpu-compile]'
  PYTHONPATH=. python tests/benchmarks/gpu_decode.py [--topology=h100:1]

Four layers of Qwen2.5-7B's attention over full caches of 64 rows with prompts of
2k and responses of 8k tokens; groups of 16 rows share a prompt. Traffic is relative
to reading every key and value once in bfloat16, prompts once per group. For
comparison, cuDNN's attention by `jax.nn.dot_product_attention` over a cache that
has the prompt once per row: it returns the softmax normaliser in the dtype of the
queries, so attention to a shared prompt and to the response cannot be merged in
float32.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Callable
from typing import Any

os.environ['JAX_PLATFORMS'] = 'cpu'

import jax
import jax.numpy as jnp

from covrl.compile.cost import cost_of
from covrl.compile.hlo import parse
from covrl.models import tiny
from covrl.models.attention.decode import attend_token
from covrl.models.cache import DecodeCache, PromptCache
from covrl.models.cached_tokens import CachedTokens, list_prompts
from covrl.models.int8 import Int8Vectors
from covrl.parallel import sharding, topologies

# Numbers of layers, rows and prompts, and tokens of a prompt and of a response.
LAYERS, ROWS, PROMPTS, PROMPT, RESPONSE = 4, 64, 4, 2048, 8192
HEADS, KV_HEADS, WIDTH = 28, 4, 128
CONFIG = dataclasses.replace(
  tiny(16),
  num_layers=LAYERS,
  num_heads=HEADS,
  num_kv_heads=KV_HEADS,
  head_dim=WIDTH,
  dtype='bfloat16',
)


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--topology', default='h100:1')
  topology = topologies.find_topology(parser.parse_args().topology)
  devices = topologies.compile_only_devices(topology, 1)
  mesh = sharding.make_mesh(None, devices)
  replicated = jax.sharding.NamedSharding(mesh, jax.P())

  def shape(*sizes: int, dtype: Any = jnp.bfloat16) -> Any:
    return jax.ShapeDtypeStruct(sizes, dtype, sharding=replicated)

  def as_int8(keys: Any) -> Any:
    scale = shape(*keys.shape[:-1], dtype=jnp.float32)
    return Int8Vectors(shape(*keys.shape, dtype=jnp.int8), scale)

  row_integers, new_vectors = (
    shape(ROWS, dtype=jnp.int32),
    shape(ROWS, KV_HEADS, WIDTH),
  )
  prompt_shape = shape(LAYERS, PROMPTS, KV_HEADS, PROMPT, WIDTH)
  row_shape = shape(LAYERS, ROWS, KV_HEADS, RESPONSE, WIDTH)
  tokens_first = shape(LAYERS, ROWS, PROMPT + RESPONSE, KV_HEADS, WIDTH)
  heads_first = shape(LAYERS, ROWS, KV_HEADS, PROMPT + RESPONSE, WIDTH)
  lengths = shape(PROMPTS, dtype=jnp.int32)
  queries = shape(ROWS, HEADS, WIDTH)

  def cache(convert: Callable[[Any], Any]) -> DecodeCache:
    prompts = PromptCache(convert(prompt_shape), convert(prompt_shape), lengths)
    return DecodeCache(
      prompts,
      row_integers,
      convert(row_shape),
      convert(row_shape),
      row_integers,
    )

  live = shape(ROWS, dtype=bool)
  programs: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    'covrl, bfloat16': (
      covrl_attention,
      (queries, new_vectors, new_vectors, cache(lambda x: x), live),
    ),
    'covrl, int8': (
      covrl_attention,
      (queries, new_vectors, new_vectors, cache(as_int8), live),
    ),
    'cuDNN, tokens before heads': (
      cudnn_attention,
      (queries, tokens_first, tokens_first, row_integers),
    ),
    'cuDNN, heads before tokens': (
      cudnn_attention_heads_first,
      (queries, heads_first, heads_first, row_integers),
    ),
  }
  tokens = ROWS * RESPONSE + PROMPTS * PROMPT
  minimum_bytes = 2 * 2 * LAYERS * KV_HEADS * WIDTH * tokens
  print('| attention, cache | traffic | temporaries, MiB |\n|---|---:|---:|')
  for name, (attend, arguments) in programs.items():
    with (
      topologies.no_compilation_cache(),
      sharding.use_mesh(mesh, sharding.ROLLOUT_RULES),
    ):
      compiled = jax.jit(attend).lower(*arguments).compile()
    module = parse(compiled.as_text() or '', topology.platform)
    moved_bytes = cost_of(module, module.entry).bytes
    memory = compiled.memory_analysis()
    assert memory is not None
    temporary_mib = memory.temp_size_in_bytes / 2**20
    print(
      f'| {name} | {moved_bytes / minimum_bytes:.2f} | {temporary_mib:,.0f} |',
      flush=True,
    )


def covrl_attention(
  queries: jax.Array,
  keys: jax.Array,
  values: jax.Array,
  cache: DecodeCache,
  live: jax.Array,
) -> jax.Array:
  """covrl's attention, layer after layer."""
  reads = list_prompts(cache, live)

  def layer(x: jax.Array, index: jax.Array) -> tuple[jax.Array, None]:
    cached = CachedTokens(cache, live, reads, layer=index, window=None)
    return attend_token(x, keys, values, cached, CONFIG), None

  return jax.lax.scan(layer, queries, jnp.arange(LAYERS, dtype=jnp.int32))[0]


def cudnn_attention(
  queries: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array
) -> jax.Array:
  """cuDNN's attention, layer after layer."""

  def layer(
    x: jax.Array, layer_cache: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, None]:
    attended = jax.nn.dot_product_attention(
      x[:, None],
      *layer_cache,
      query_seq_lengths=jnp.ones_like(lengths),
      key_value_seq_lengths=lengths,
      implementation='cudnn',
    )
    return attended[:, 0], None

  return jax.lax.scan(layer, queries, (keys, values))[0]


def cudnn_attention_heads_first(
  queries: jax.Array, keys: jax.Array, values: jax.Array, lengths: jax.Array
) -> jax.Array:
  """cuDNN's attention over a cache with heads before tokens, as in covrl."""
  return cudnn_attention(
    queries, keys.swapaxes(2, 3), values.swapaxes(2, 3), lengths
  )


if __name__ == '__main__':
  main()
