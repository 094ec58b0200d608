# SPDX-License-Identifier: Apache-2.0
"""Online softmax: attention whose keys are added in chunks."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from covrl.models.int8 import Int8Vectors


class OnlineSoftmax(NamedTuple):
  """Attention of queries to the keys so far, at least one each.

  Attributes:
    peak: the largest score of each query.
    total: sum of exp(score − peak).
    weighted_values: sum of exp(score − peak) · value.

  References:
    Milakov and Gimelshein, "Online normalizer calculation for softmax",
    arXiv:1805.02867, algorithm 3.
  """

  peak: Float[Array, '*B Q']
  total: Float[Array, '*B Q']
  weighted_values: Float[Array, '*B Q h']

  def add(
    self,
    scores: Float[Array, '*B Q C'],
    values: Float[Array, '*B C h'] | Int8Vectors,
    dtype: Any = None,
  ) -> OnlineSoftmax:
    """Adds keys; those with a score of −∞ change no bit.

    Args:
      scores: score of each query and key.
      values: values of the keys, finite.
      dtype: type in which int8 values are multiplied; others keep their own.
    """
    peak = jnp.maximum(self.peak, jnp.max(scores, axis=-1))
    shrink = jnp.exp(self.peak - peak)
    weights = jnp.exp(scores - peak[..., None])
    total = self.total * shrink + jnp.sum(weights, axis=-1)
    if isinstance(values, Int8Vectors):
      weights = weights * values.scale[..., None, :]
      values = values.values.astype(dtype)
    weighted_values = jnp.einsum(
      '...qc,...ch->...qh',
      weights.astype(values.dtype),
      values,
      preferred_element_type=self.weighted_values.dtype,
    )
    return OnlineSoftmax(
      peak=peak,
      total=total,
      weighted_values=self.weighted_values * shrink[..., None]
      + weighted_values,
    )

  def result(self) -> Float[Array, '*B Q h']:
    """Softmax-weighted mean of the values."""
    return self.weighted_values / self.total[..., None]
