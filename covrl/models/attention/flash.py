# SPDX-License-Identifier: Apache-2.0
"""Flash attention of whole rows on TPU: JAX's splash attention kernels.

They run on each device for its rows and heads and never store all scores.
Blocks of keys that are masked by causality or a window are not read, and the
backward pass computes scores again instead of storing them.
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

# Block sizes of queries and keys, the preferred first. Larger blocks read keys
# less often, and compute more scores that causality masks.
BLOCKS = (512, 256, 128)
# Name of the result and its normaliser in rematerialisation policies.
CHECKPOINT_NAME = 'attended'


def uses_kernel(config: ModelConfig, length: int) -> bool:
  """Whether attention of rows of this length uses the kernels."""
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
  """Causal attention within segments, like `covrl.models.attention.grouped_query.attend`.

  Args:
    queries: `H` heads.
    keys: `K` heads, each shared by `H / K` consecutive query heads.
    values: one per key.
    segment_ids: index of the sequence within the row; tokens attend within
      their segment only, and padding (0) within padding.
    window: sliding window of this layer in tokens, if layers differ in it.
    config: has the windows of all layers, the scale and the soft cap.
    interpret: whether to run the kernels in interpret mode, for tests.
  """
  scale = config.attention_scale or config.head_dim**-0.5
  queries = (queries * scale).astype(queries.dtype).swapaxes(1, 2)
  arrays = (queries, keys, values, segment_ids)

  def attend_within(
    window_size: int, *arrays: Array
  ) -> Float[Array, 'B H T h']:
    return _shard_map(
      functools.partial(
        _attend_local,
        window=window_size,
        cap=config.attention_soft_cap,
        interpret=interpret,
      ),
      *arrays,
    )

  windows = sorted(set(config.windows or (0,)))
  if len(windows) == 1 or window is None:
    attended = attend_within(windows[0], *arrays)
  else:
    # Layers without a window have the largest integer as theirs.
    ordered_windows = [
      window_size for window_size in windows if window_size
    ] + [0] * (0 in windows)
    index = jnp.searchsorted(
      jnp.asarray([size for size in ordered_windows if size]), window
    )
    branches = [
      functools.partial(attend_within, window_size)
      for window_size in ordered_windows
    ]
    attended = jax.lax.switch(index, branches, *arrays)
  return attended.swapaxes(1, 2)


def _shard_map(
  attend: functools.partial[Float[Array, 'B H T h']],
  queries: Float[Array, 'B H T h'],
  keys: Float[Array, 'B K T h'],
  values: Float[Array, 'B K T h'],
  segment_ids: Int[Array, 'B T'],
) -> Float[Array, 'B H T h']:
  """Maps attention over devices, which split rows and heads."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.are_all_axes_manual:
    return attend(queries, keys, values, segment_ids)
  axes = ('batch', 'attention_heads', 'attended', 'head_dim')
  rules = sharding.current_rules()
  heads, kv_heads = (
    sharding.fitted_spec(mesh, axes, x.shape, rules) for x in (queries, keys)
  )
  if heads[1] != kv_heads[1]:
    raise ValueError(
      'query heads must be split like key heads, got '
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


def _attend_local(
  queries: Float[Array, 'B H T h'],
  keys: Float[Array, 'B K T h'],
  values: Float[Array, 'B K T h'],
  segment_ids: Int[Array, 'B T'],
  *,
  window: int,
  cap: float | None,
  interpret: bool,
) -> Float[Array, 'B H T h']:
  """Attention on one device; rows are padded to whole blocks."""
  length = queries.shape[2]
  padded_size = padded_length(length)
  padding = padded_size - length

  def pad(x: Array) -> Array:
    if not padding:
      return x
    return jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0)))

  block = block_size(padded_size)
  kernel: Any = splash.make_splash_mha(
    masks.MultiHeadMask([_block_mask(padded_size, window)] * queries.shape[1]),
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
    residual_checkpoint_name=CHECKPOINT_NAME,
    interpret=interpret,
  )
  ids = segment_ids
  if padding:
    ids = jnp.pad(segment_ids, ((0, 0), (0, padding)))
  # Cost estimates read the window from the scope's name.
  with jax.named_scope(f'window_{window}'):
    attended = jax.vmap(kernel)(
      pad(queries), pad(keys), pad(values), splash.SegmentIds(ids, ids)
    )
  return attended[:, :, :length]


def _block_mask(length: int, window: int) -> masks.Mask:
  """Causal mask, or a sliding window if it is not 0."""
  shape = (length, length)
  if not window:
    return masks.CausalMask(shape)
  return masks.LocalMask(shape, window_size=(window - 1, 0), offset=0)


def padded_length(length: int) -> int:
  """Rounds a row's length up to a multiple of the smallest block.

  >>> padded_length(10239)
  10240
  """
  return math.ceil(length / BLOCKS[-1]) * BLOCKS[-1]


def block_size(length: int) -> int:
  """Largest block size that divides a padded length.

  >>> block_size(10240), block_size(384)
  (512, 128)
  """
  return next(size for size in BLOCKS if length % size == 0)
