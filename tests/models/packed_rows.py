# SPDX-License-Identifier: Apache-2.0
"""Random rows of two sequences, and their attention by `attend`."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from covrl.models import tiny
from covrl.models.attention.grouped_query import attend

CONFIG = dataclasses.replace(tiny(16), head_dim=16)
HEADS, KV_HEADS, WIDTH = CONFIG.num_heads, CONFIG.num_kv_heads, CONFIG.head_dim


def normal_array(seed, *shape):
  """Random numbers of a shape, in float32."""
  values = np.random.default_rng(seed).normal(size=shape)
  return jnp.asarray(values, jnp.float32)


def attention_inputs(length, batch=2):
  """Random queries, keys, values and segment ids: two sequences per row, and padding."""
  segments = np.zeros((batch, length), np.int32)
  for row in range(batch):
    start, middle = 3 + 7 * row, length // 2 + 5 * row
    segments[row, start:middle] = 1
    segments[row, middle : length - 4] = 2
  return (
    normal_array(0, batch, length, HEADS, WIDTH),
    normal_array(1, batch, KV_HEADS, length, WIDTH),
    normal_array(2, batch, KV_HEADS, length, WIDTH),
    jnp.asarray(segments),
  )


def expected_attention(queries, keys, values, segments, window=None, cap=None):
  """Causal attention within segments and a sliding window, by `attend`."""
  length = segments.shape[1]
  distance = jnp.arange(length)[:, None] - jnp.arange(length)
  mask = (distance >= 0) & (segments[:, :, None] == segments[:, None, :])
  if window:
    mask &= distance < window
  return attend(queries, keys, values, mask, cap=cap)
