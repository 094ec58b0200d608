# SPDX-License-Identifier: Apache-2.0
"""Attention of whole rows on TPU, without an array of all products.

JAX's splash kernels, on each device for its own rows and heads: blocks of keys
that causality or a window hides are never read, and backward they are computed
once more rather than kept.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as masks,
)
from jaxtyping import Array, Float, Int

from covrl.models.config import ModelConfig
from covrl.parallel import sharding

# Queries and keys of a block, the preferred first. Larger blocks reread keys
# less often, and compute more that causality hides.
BLOCKS = (512, 256, 128)
# What a checkpoint policy knows the result and its normaliser by.
NAME = 'attended'


def is_used(config: ModelConfig, length: int) -> bool:
  """Whether rows of this length are attended to by the kernels."""
  return (
    sharding.platform() == 'tpu'
    and length >= BLOCKS[-1]
    and jnp.finfo(config.dtype).bits <= 32
  )


def attend_rows(
  queries: Float[Array, 'B T H h'],
  keys: Float[Array, 'B K T h'],
  values: Float[Array, 'B K T h'],
  segment_ids: Int[Array, 'B T'],
  window: Int[Array, ''] | None,
  config: ModelConfig,
  *,
  interpret: bool = False,
) -> Float[Array, 'B T H h']:
  """As `attend`, every token seeing what precedes it in its own segment.

  Args:
    queries: `H` heads.
    keys: `K` heads, each serving `H / K` consecutive query heads.
    values: laid out like the keys.
    segment_ids: which sequence of the row; tokens of a number see only those
      of the same number, padding too.
    window: how far this layer looks back, if the model has layers of several
      windows.
    config: says which windows there are, scale and cap.
    interpret: whether to run the kernels in Python, for tests off TPU.
  """
  scale = config.attention_scale or config.head_dim**-0.5
  queries = (queries * scale).astype(queries.dtype).swapaxes(1, 2)
  arrays = (queries, keys, values, segment_ids)

  def among(size: int, *arrays: Array) -> Float[Array, 'B H T h']:
    return _on_devices(
      functools.partial(
        _attend,
        window=size,
        cap=config.attention_soft_cap,
        interpret=interpret,
      ),
      *arrays,
    )

  sizes = sorted(set(config.windows or (0,)))
  if len(sizes) == 1 or window is None:
    mixed = among(sizes[0], *arrays)
  else:
    # The window of layers that see everything is the largest integer.
    order = [size for size in sizes if size] + [0] * (0 in sizes)
    index = jnp.searchsorted(jnp.asarray([s for s in order if s]), window)
    branches = [functools.partial(among, size) for size in order]
    mixed = jax.lax.switch(index, branches, *arrays)
  return mixed.swapaxes(1, 2)


def _on_devices(
  attend: functools.partial[Float[Array, 'B H T h']],
  queries: Float[Array, 'B H T h'],
  keys: Float[Array, 'B K T h'],
  values: Float[Array, 'B K T h'],
  segment_ids: Int[Array, 'B T'],
) -> Float[Array, 'B H T h']:
  """Runs it on every device's rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.are_all_axes_manual:
    return attend(queries, keys, values, segment_ids)
  axes = ('batch', 'attention_heads', 'attended', 'head_dim')
  rules = sharding.rules_in_use()
  heads, kv_heads = (
    sharding.fitted_spec(mesh, axes, x.shape, rules) for x in (queries, keys)
  )
  if heads[1] != kv_heads[1]:
    raise ValueError(
      'heads must be split as their keys are, got '
      f'{queries.shape[1]} heads over {heads[1]} and {keys.shape[1]} keys over '
      f'{kv_heads[1]}'
    )
  rows = jax.P(heads[0], None)
  return jax.shard_map(
    attend,
    mesh=mesh,
    in_specs=(heads, kv_heads, kv_heads, rows),
    out_specs=heads,
    check_vma=False,
  )(queries, keys, values, segment_ids)


def _attend(
  queries: Float[Array, 'B H T h'],
  keys: Float[Array, 'B K T h'],
  values: Float[Array, 'B K T h'],
  segment_ids: Int[Array, 'B T'],
  *,
  window: int,
  cap: float | None,
  interpret: bool,
) -> Float[Array, 'B H T h']:
  """A device's part; rows are filled up to whole blocks."""
  length = queries.shape[2]
  size = padded_length(length)
  room = size - length

  def fill(x: Array) -> Array:
    return jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))) if room else x

  block = block_size(size)
  kernel: Any = splash.make_splash_mha(
    masks.MultiHeadMask([_mask(size, window)] * queries.shape[1]),
    block_sizes=splash.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      use_fused_bwd_kernel=True,
    ),
    head_shards=1,
    q_seq_shards=1,
    attn_logits_soft_cap=cap,
    residual_checkpoint_name=NAME,
    interpret=interpret,
  )
  ids = jnp.pad(segment_ids, ((0, 0), (0, room))) if room else segment_ids
  # The name tells how much of the products is computed.
  with jax.named_scope(f'window_{window}'):
    mixed = jax.vmap(kernel)(
      fill(queries), fill(keys), fill(values), splash.SegmentIds(ids, ids)
    )
  return mixed[:, :, :length]


def _mask(length: int, window: int) -> masks.Mask:
  """What a token sees of its row."""
  shape = (length, length)
  if not window:
    return masks.CausalMask(shape)
  return masks.LocalMask(shape, window_size=(window - 1, 0), offset=0)


def padded_length(length: int) -> int:
  """A row's length, filled up to whole blocks of the smallest size.

  >>> padded_length(10239)
  10240
  """
  return math.ceil(length / BLOCKS[-1]) * BLOCKS[-1]


def block_size(length: int) -> int:
  """The largest blocks that rows of a padded length consist of.

  >>> block_size(10240), block_size(384)
  (512, 128)
  """
  return next(size for size in BLOCKS if length % size == 0)
