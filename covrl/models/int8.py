# SPDX-License-Identifier: Apache-2.0
"""Vectors stored as 8-bit integers, for KV caches of half the size."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

# Largest integer that is stored: symmetric, so that 0 and signs are exact.
_LARGEST = 127


class Int8Vectors(NamedTuple):
  """Vectors as integers, each with a scale of its own.

      x ≈ scale · values,    scale = max |x| / 127

  An entry is off by at most half of its vector's scale.

  Attributes:
    values: the integers.
    scale: one per vector, in float32.
  """

  values: Int8[Array, '*N h']
  scale: Float[Array, '*N']

  @classmethod
  def of(cls, x: Float[Array, '*N h']) -> Int8Vectors:
    """Rounds vectors to the nearest multiples of their scales.

    >>> Int8Vectors.of(jnp.array([[0.0, -2.54]])).values.tolist()
    [[0, -127]]
    """
    wide = x.astype(jnp.float32)
    scale = jnp.max(jnp.abs(wide), axis=-1) / _LARGEST
    divisor = jnp.where(scale > 0, scale, 1)[..., None]
    return cls(jnp.round(wide / divisor).astype(jnp.int8), scale)

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the vectors."""
    return self.values.shape

  @property
  def dtype(self) -> Any:
    """Type of the integers."""
    return self.values.dtype


Vectors: TypeAlias = Any
"""Vectors `[*N, h]` as an array, or as `Int8Vectors` of this shape."""


def as_stored(x: Float[Array, '*N h'], stored: Vectors) -> Vectors:
  """Converts vectors to the format of `stored`: an array or `Int8Vectors`."""
  return Int8Vectors.of(x) if isinstance(stored, Int8Vectors) else x


def zeros_stored(shape: tuple[int, ...], stored: Vectors) -> Vectors:
  """Creates vectors of zeros in the format of `stored`.

  Args:
    shape: shape of the vectors.
    stored: an array or `Int8Vectors`.
  """
  zeros = jnp.zeros(shape, stored.dtype)
  if isinstance(stored, Int8Vectors):
    return Int8Vectors(zeros, jnp.zeros(shape[:-1], stored.scale.dtype))
  return zeros


def attention_scores(
  queries: Float[Array, '*B Q h'], keys: Vectors, dtype: Any
) -> Float[Array, '*B Q C']:
  """Products of queries and keys; integers are scaled after the product."""
  key_array = keys.values if isinstance(keys, Int8Vectors) else keys
  scores = jnp.einsum(
    '...qh,...ch->...qc',
    queries,
    key_array.astype(queries.dtype),
    preferred_element_type=dtype,
  )
  if isinstance(keys, Int8Vectors):
    scores = scores * keys.scale[..., None, :].astype(dtype)
  return scores
