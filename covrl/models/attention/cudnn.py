# SPDX-License-Identifier: Apache-2.0
"""cuDNN's fused attention on GPUs, for rows of one sequence, without a mask."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from covrl.models.config import ModelConfig
from covrl.parallel import sharding


def attend_unpacked(
  queries: Float[Array, 'B T H h'],
  keys: Float[Array, 'B T K h'],
  values: Float[Array, 'B T K h'],
  lengths: Int[Array, ' B'],
  config: ModelConfig,
  *,
  implementation: Literal['cudnn', 'xla'] = 'cudnn',
) -> Float[Array, 'B T H h']:
  """Causal attention of rows of one sequence each, without a mask in memory.

  Scores that causality or the ends of the sequences mask are not computed. A
  mask would be an array of B × T × T, which cuDNN differentiates, too. Padding
  gets zeros.

  Args:
    queries: `H` heads.
    keys: `K` heads, each shared by `H / K` consecutive query heads.
    values: one per key.
    lengths: tokens of each row, in its first columns.
    config: has the scale, and the window of all layers.
    implementation: `'xla'` is for tests.
  """
  real = jnp.arange(queries.shape[1]) < lengths[:, None]
  real = real[:, :, None, None]
  # cuDNN leaves padding undefined, in the result and in cotangents.
  queries, keys, values = (
    jnp.where(real, x, 0) for x in (queries, keys, values)
  )
  window = config.windows[0] if config.windows else 0
  attended = jax.nn.dot_product_attention(
    queries,
    keys,
    values,
    is_causal=True,
    scale=config.attention_scale or config.head_dim**-0.5,
    query_seq_lengths=lengths,
    key_value_seq_lengths=lengths,
    local_window_size=(window - 1, 0) if window else None,
    implementation=implementation,
  )
  return jnp.where(real, attended, 0)


def attends_without_mask(config: ModelConfig) -> bool:
  """Whether rows of one sequence each use `attend_unpacked`, without a mask.

  Layers must not differ in their windows, nor devices split rows.
  """
  mesh = jax.sharding.get_abstract_mesh()
  whole_rows = dict(mesh.shape).get('context', 1) == 1
  return (
    whole_rows
    and len(set(config.windows)) < 2
    and cudnn_supports(
      jnp.dtype(config.dtype), config.head_dim, config.attention_soft_cap
    )
  )


def cudnn_supports(dtype: jnp.dtype, head_dim: int, cap: float | None) -> bool:
  """Whether to use cuDNN's fused attention, on GPUs.

  It supports float16 and bfloat16, heads of up to 128 features, and no soft cap.
  """
  return (
    sharding.platform() == 'gpu'
    and dtype in (jnp.bfloat16, jnp.float16)
    and head_dim <= 128
    and head_dim % 8 == 0
    and cap is None
  )
