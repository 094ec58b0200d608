# SPDX-License-Identifier: Apache-2.0
"""Truncation of the sampling distribution: top-k, top-p and min-p.

The kept tokens of a row are those above a threshold, and some of the tokens
equal to it. The threshold is found bit by bit with counts and sums over the
vocabulary; nothing is sorted, and the vocabulary may be split over devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt


class Threshold(NamedTuple):
  """The kept tokens of each row.

  Attributes:
    value: tokens with larger logits are kept.
    last_id: tokens whose logits equal `value` are kept up to this id.
  """

  value: Float[Array, ' S']
  last_id: Int[Array, ' S']

  def keeps(
    self, logits: Float[Array, 'S V'], ids: Int[Array, '*S V']
  ) -> Bool[Array, 'S V']:
    """Mask of the kept tokens.

    Args:
      logits: logits of tokens, in the scale that the threshold was found in.
      ids: ids of these tokens.
    """
    value, last_id = self.value[:, None], self.last_id[:, None]
    return (logits > value) | ((logits == value) & (ids <= last_id))


class VocabShard(NamedTuple):
  """The part of the vocabulary that this device holds.

  Attributes:
    first_id: id of its first token.
    vocab_size: number of tokens of the whole vocabulary.
    axes: mesh axes that split the vocabulary, inside of `jax.shard_map`.
  """

  first_id: Int[Array, ''] | int
  vocab_size: int
  axes: tuple[str, ...] = ()

  def sum(self, x: Array) -> Array:
    """Sums over the devices that hold other columns of the same rows."""
    return jax.lax.psum(x, self.axes) if self.axes else x

  def ids(self, count: int) -> Int[Array, '1 V']:
    """Ids of this device's `count` tokens."""
    return self.first_id + jnp.arange(count, dtype=jnp.int32)[None]


def find_threshold(
  logits: Float[Array, 'S V'],
  *,
  top_p: Float[Array, ' S'],
  top_k: Int[Array, ' S'],
  min_p: Float[Array, ' S'],
  shard: VocabShard,
) -> Threshold:
  """Finds the tokens that top-k, top-p and min-p keep.

  First the `top_k` likeliest tokens; of these, renormalised, the smallest set of
  likeliest tokens whose probability reaches `top_p`; of these, the tokens with
  at least `min_p` times the probability of the likeliest. Ties go to the
  smaller token id. The likeliest token is always kept.

  Args:
    logits: differences to the row's largest logit, over all columns, divided by the
      temperature; at most 0.
    top_p: probability to keep, in (0, 1].
    top_k: number of tokens to keep; 0 is all.
    min_p: least probability, relative to the likeliest token's; 0 keeps all tokens.
    shard: the part of the vocabulary that `logits` has.

  References:
    Fan et al., "Hierarchical Neural Story Generation", arXiv:1805.04833
    (top-k). Holtzman et al., "The Curious Case of Neural Text Degeneration",
    arXiv:1904.09751, section 3.1 (top-p). Nguyen et al., "Turning Up the Heat:
    Min-p Sampling for Creative and Coherent LLM Outputs", arXiv:2407.01082.
  """
  weights = jnp.exp(logits)
  sort_keys = _ordered_bits(logits)

  def count(mask: Bool[Array, 'S V']) -> Int[Array, ' S']:
    return shard.sum(jnp.sum(mask, axis=1, dtype=jnp.int32))

  def mass(mask: Bool[Array, 'S V']) -> Float[Array, ' S']:
    return shard.sum(jnp.sum(jnp.where(mask, weights, 0), axis=1))

  # Top-k: the largest key that at least k tokens reach.
  k = jnp.where(
    top_k > 0,
    jnp.minimum(top_k, shard.vocab_size),
    shard.vocab_size,
  )
  sort_key = _find_largest(
    lambda sort_key: count(sort_keys >= sort_key[:, None]) >= k,
    sort_keys.dtype,
    k.shape,
  )
  num_kept_ties = k - count(sort_keys > sort_key[:, None])

  # Top-p: the largest key whose tokens have enough probability.
  value = _from_bits(sort_key, logits.dtype)
  weight = jnp.exp(value)
  top_p_mass = top_p * (
    mass(sort_keys > sort_key[:, None]) + num_kept_ties * weight
  )
  is_below_one = top_p < 1
  nucleus_sort_key = _find_largest(
    lambda sort_key: mass(sort_keys >= sort_key[:, None]) >= top_p_mass,
    sort_keys.dtype,
    k.shape,
  )
  is_higher = is_below_one & (nucleus_sort_key > sort_key)
  sort_key = jnp.where(is_higher, nucleus_sort_key, sort_key)
  num_tied = count(sort_keys == sort_key[:, None])
  weight = jnp.exp(_from_bits(sort_key, logits.dtype))
  missing_ties = (top_p_mass - mass(sort_keys > sort_key[:, None])) / weight
  # The search compares sums and this is a quotient, which rounding may make 0.
  needed_ties = jnp.clip(
    jnp.ceil(missing_ties), 1, num_tied.astype(logits.dtype)
  )
  needed_ties = jnp.where(weight > 0, needed_ties, 1).astype(jnp.int32)
  num_kept_ties = jnp.where(is_higher, num_tied, num_kept_ties)
  num_kept_ties = jnp.where(
    is_below_one, jnp.minimum(needed_ties, num_kept_ties), num_kept_ties
  )

  # Min-p.
  value = _from_bits(sort_key, logits.dtype)
  min_logit = jnp.where(min_p > 0, jnp.log(min_p), -jnp.inf)
  num_kept_ties = jnp.where(min_logit > value, shard.vocab_size, num_kept_ties)
  value = jnp.maximum(value, min_logit)
  return Threshold(
    value, _id_of_tie(logits, value, num_kept_ties, count, shard)
  )


def _id_of_tie(
  logits: Float[Array, 'S V'],
  value: Float[Array, ' S'],
  num_kept_ties: Int[Array, ' S'],
  count: Callable[[Bool[Array, 'S V']], Int[Array, ' S']],
  shard: VocabShard,
) -> Int[Array, ' S']:
  """Id of the `num_kept_ties`-th token whose logit equals `value`; the last if fewer."""
  ties = logits == value[:, None]
  ids = shard.ids(logits.shape[1])
  bits = max(shard.vocab_size - 1, 1).bit_length()

  def search() -> Int[Array, ' S']:
    # The largest id that fewer than `num_kept_ties` ties precede.
    def step(i: Int[Array, ''], prefix: Int[Array, ' S']) -> Int[Array, ' S']:
      trial = prefix | (1 << (bits - 1 - i))
      fits = count(ties & (ids < trial[:, None])) < num_kept_ties
      return jnp.where(fits, trial, prefix)

    return jax.lax.fori_loop(0, bits, step, jnp.zeros_like(num_kept_ties))

  all_ids = jnp.full_like(num_kept_ties, shard.vocab_size)
  return jax.lax.cond(
    jnp.any(count(ties) > num_kept_ties), search, lambda: all_ids
  )


def _find_largest(
  reaches: Callable[[UInt[Array, ' S']], Bool[Array, ' S']],
  dtype: Any,
  shape: tuple[int, ...],
) -> UInt[Array, ' S']:
  """The largest unsigned integer of each row for which a predicate holds.

  Args:
    reaches: a predicate that holds up to some integer, and for 0.
    dtype: of the integers.
    shape: of the result.
  """
  bits = jnp.iinfo(dtype).bits

  def step(i: Int[Array, ''], prefix: UInt[Array, ' S']) -> UInt[Array, ' S']:
    trial = prefix | (jnp.ones((), dtype) << (bits - 1 - i).astype(dtype))
    return jnp.where(reaches(trial), trial, prefix)

  return jax.lax.fori_loop(0, bits, step, jnp.zeros(shape, dtype))


def _ordered_bits(x: Float[Array, '*S']) -> UInt[Array, '*S']:
  """Unsigned integers in the order of the numbers; −0 counts as 0."""
  width = jnp.finfo(x.dtype).bits
  unsigned = jnp.dtype(f'uint{width}')
  bits = jax.lax.bitcast_convert_type(x + 0.0, unsigned)
  sign = jnp.ones((), unsigned) << jnp.asarray(width - 1, unsigned)
  return jnp.where(bits & sign, ~bits, bits | sign)


def _from_bits(bits: UInt[Array, '*S'], dtype: Any) -> Float[Array, '*S']:
  """Inverse of `_ordered_bits`."""
  width = jnp.iinfo(bits.dtype).bits
  sign = jnp.ones((), bits.dtype) << jnp.asarray(width - 1, bits.dtype)
  bits = jnp.where(bits & sign, bits ^ sign, ~bits)
  return jax.lax.bitcast_convert_type(bits, dtype)
