# SPDX-License-Identifier: Apache-2.0
"""Exact top-k and random selection of sharded tokens without sort or gather.

Ties go to the token whose identity (sequence, position) comes first, so the
chosen set does not depend on mesh, packing or order. `covrl.entropy.search`
finds the k-th largest score by counting.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from covrl.array_checks import check_array, check_number
from covrl.context_checks import check_key
from covrl.entropy.base import check_minimum
from covrl.entropy.search import (
  RankedTokens,
  full_interval,
  kth_largest,
  select_largest,
)
from covrl.statistics.exact import check_mask, count_true, float_key, sum_each
from covrl.types import Scalar

OptionalIds = Int[Array, 'B T'] | None


def select_top(
  scores: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  fraction: ArrayLike,
  sequence_ids: OptionalIds = None,
  positions: OptionalIds = None,
  minimum: ArrayLike = 0,
) -> Bool[Array, 'B T']:
  """Selects the highest-scoring tokens of the whole batch.

  Equal to a stable descending sort on one device, with any sharding.

  Args:
    scores: any float dtype; NaN and −inf are never selected.
    mask: tokens that may be selected, of which `fraction` is taken.
    fraction: share of the tokens under `mask`, in [0, 1]; may be traced.
    sequence_ids: index of each token's sequence; its row if absent.
    positions: index within the sequence; its column if absent. No two tokens may
      have the same sequence and position, or ties may exceed the quota.
    minimum: smallest quota; public implementations use 1.

  Returns:
    True for the `max(minimum, ⌊fraction · N⌋)` best, or all eligible if fewer.
    Inside of `jax.pmap` and `jax.shard_map` the batch is the device's part.

  Raises:
    TypeError: if an argument has another type than its annotation.
    ValueError: if the fraction is a number outside [0, 1], the minimum is
      negative, or shapes differ. A traced fraction is clamped, NaN to 0.

  >>> scores = jnp.array([[0.1, 0.9, 0.5, 0.9]])
  >>> select_top(scores, jnp.ones((1, 4), bool), fraction=0.25)
  Array([[False,  True, False, False]], dtype=bool)
  """
  check_array('scores', scores, 'real', 'B T')
  check_mask(mask, scores)
  _check_ids(scores, sequence_ids, positions)
  tokens = _ScoredTokens(scores, mask, sequence_ids, positions)
  num_masked, num_eligible = sum_each(mask, _rank_by_score(tokens).eligible)
  k = _quota_of(num_masked, fraction, minimum)
  return select_largest(_rank_by_score, tokens, k, num_eligible)


def select_random(
  eligible: Bool[Array, 'B T'],
  *,
  fraction: ArrayLike,
  key: Array,
  step: ArrayLike,
  sequence_ids: OptionalIds = None,
  positions: OptionalIds = None,
  mask: Bool[Array, 'B T'] | None = None,
  minimum: ArrayLike = 0,
) -> Bool[Array, 'B T']:
  """Selects a random subset of the eligible tokens of the whole batch.

  Each token's random number is a hash of (key, step, sequence, position) alone,
  so the subset does not depend on mesh, packing or order.

  Args:
    eligible: tokens that may be selected.
    fraction: share in [0, 1]; may be traced.
    key: PRNG key of the run.
    step: optimiser update; another step draws another subset.
    sequence_ids: as in `select_top`.
    positions: as in `select_top`.
    mask: tokens of which `fraction` is taken; the eligible ones if absent.
    minimum: smallest quota.

  Returns:
    True for `max(minimum, ⌊fraction · N⌋)` eligible tokens, all if fewer.

  Raises:
    TypeError: if an argument has another type than its annotation.
    ValueError: if the fraction is a number outside [0, 1], the minimum is
      negative, or shapes differ. A traced fraction is clamped, NaN to 0.

  >>> eligible = jnp.array([[True, False, True, True]])
  >>> drawn = select_random(
  ...     eligible, fraction=0.5, key=jax.random.key(0), step=3)
  >>> int(drawn.sum()), bool((drawn & ~eligible).any())
  (1, False)
  """
  check_array('eligible', eligible, 'bool', 'B T')
  check_array('step', step, 'int', '')
  check_number('step', step, 0)
  check_key(key)
  if mask is not None:
    check_mask(mask, eligible)
  _check_ids(eligible, sequence_ids, positions)
  salt = jax.random.bits(jax.random.fold_in(key, step), (2,), jnp.uint32)
  tokens = _SaltedTokens(eligible, salt, sequence_ids, positions)
  num_masked, num_eligible = sum_each(
    eligible if mask is None else mask, eligible
  )
  k = _quota_of(num_masked, fraction, minimum)
  return select_largest(_rank_by_hash, tokens, k, num_eligible)


def quota(
  mask: Bool[Array, '...'], fraction: ArrayLike, minimum: ArrayLike = 0
) -> Int[Array, '']:
  """Number of tokens to select of those under a mask: max(minimum, ⌊f · N⌋).

  Raises:
    ValueError: if the fraction is a number outside [0, 1], or the minimum is
      negative. A traced fraction is clamped, NaN to 0.
  """
  return _quota_of(count_true(mask), fraction, minimum)


# Jitted, so that outside a jit it is compiled once and not at every call.
@functools.partial(jax.jit, inline=True)
def exact_quantile(
  values: Float[Array, '*shape'],
  mask: Bool[Array, '*shape'],
  level: float | Scalar,
) -> Scalar:
  """Quantile of the values under a mask, found by counting.

  The smallest value that at least a share `level` of the values does not
  exceed; NaN for an empty mask, a level outside [0, 1], and if a value under the
  mask is NaN.
  """
  check_mask(mask, values)
  total, unknown = sum_each(mask, mask & jnp.isnan(values))
  rank = jnp.ceil(level * total).astype(jnp.int32)
  k = jnp.clip(total - rank + 1, 1, jnp.maximum(total, 1))
  tokens = jax.lax.stop_gradient((mask, values))
  start = full_interval(float_key(values).dtype, total)
  low = kth_largest(_key_of_value, tokens, k, start).low
  at_or_above = mask & (float_key(values) >= low)
  lowest = jnp.min(jnp.where(at_or_above, values, jnp.inf), initial=jnp.inf)
  is_valid_level = (level >= 0) & (level <= 1)
  return jnp.where(
    (total > 0) & (unknown == 0) & is_valid_level, lowest, jnp.nan
  )


class _ScoredTokens(NamedTuple):
  """Tokens to be ranked by score.

  Attributes:
    scores: score of each token; −inf is never selected.
    mask: tokens that may be selected.
    sequence_ids: sequence of each token.
    positions: position of each token in its sequence.
  """

  scores: Float[Array, 'B T']
  mask: Bool[Array, 'B T']
  sequence_ids: OptionalIds
  positions: OptionalIds


class _SaltedTokens(NamedTuple):
  """Tokens to be ranked by a hash of their identity.

  Attributes:
    eligible: tokens that may be selected.
    salt: two words of 32 random bits, which the hash depends on.
    sequence_ids: sequence of each token.
    positions: position of each token in its sequence.
  """

  eligible: Bool[Array, 'B T']
  salt: UInt[Array, '2']
  sequence_ids: OptionalIds
  positions: OptionalIds


def _rank_by_score(tokens: _ScoredTokens) -> RankedTokens:
  """Ranks by finite and +inf scores, ties by identity."""
  sequences, positions = _ids_or_default(
    tokens.scores, tokens.sequence_ids, tokens.positions
  )
  return RankedTokens(
    eligible=tokens.mask & (tokens.scores > -jnp.inf),
    keys=(float_key(tokens.scores), ~sequences, ~positions),
  )


def _rank_by_hash(tokens: _SaltedTokens) -> RankedTokens:
  """Ranks by a hash of each token's identity, ties by identity."""
  sequences, positions = _ids_or_default(
    tokens.eligible, tokens.sequence_ids, tokens.positions
  )
  sequence_salt, position_salt = tokens.salt
  hashes = _hash_bits(
    _hash_bits(sequences.astype(jnp.uint32) ^ sequence_salt)
    ^ _hash_bits(positions.astype(jnp.uint32) ^ position_salt)
  )
  hashes = jax.lax.bitcast_convert_type(hashes, jnp.int32)
  return RankedTokens(
    eligible=tokens.eligible, keys=(hashes, ~sequences, ~positions)
  )


def _key_of_value(tokens: tuple[Array, Array]) -> tuple[Array, Array]:
  """Candidates for `kth_largest`: a mask, and keys in the order of values."""
  mask, values = tokens
  return mask, float_key(values)


def _quota_of(
  total: Int[Array, ''], fraction: ArrayLike, minimum: ArrayLike
) -> Int[Array, '']:
  """⌊fraction · total⌋, but at least the minimum."""
  check_number('fraction', fraction, 0, 1)
  check_minimum(minimum)
  share = jnp.asarray(fraction, jnp.result_type(float))
  share = jnp.where(share > 0, share, 0)  # NaN becomes 0.
  exact = jnp.minimum(share, 1) * total.astype(share.dtype)
  least = jnp.asarray(minimum)
  if jnp.issubdtype(least.dtype, jnp.floating):  # A number, or traced.
    least = jnp.where(least > 0, jnp.minimum(least, total), 0)
  return jnp.maximum(
    jnp.floor(exact).astype(jnp.int32), least.astype(jnp.int32)
  )


def _check_ids(like: Any, sequence_ids: object, positions: object) -> None:
  """Refuses identities that are not integers, one per token."""
  for name, ids in (('sequence_ids', sequence_ids), ('positions', positions)):
    if ids is not None:
      check_array(name, ids, 'int', 'B T', jnp.shape(like))


def _ids_or_default(
  like: Shaped[Array, 'B T'], sequence_ids: OptionalIds, positions: OptionalIds
) -> tuple[Int[Array, 'B T'], Int[Array, 'B T']]:
  """Sequence and position of each token; row and column if not given."""
  if sequence_ids is None:
    sequence_ids = jax.lax.broadcasted_iota(jnp.int32, like.shape, 0)
  if positions is None:
    positions = jax.lax.broadcasted_iota(jnp.int32, like.shape, 1)
  return sequence_ids, positions


def _hash_bits(bits: UInt[Array, 'B T']) -> UInt[Array, 'B T']:
  """One-to-one hash of 32 bits to 32 bits: MurmurHash3's finaliser.

  The alternative in `jax.random`, a `fold_in` per token, takes longer than the
  search.

  References:
    Appleby, MurmurHash3, 2011 (public domain).
  """
  bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
  bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
  return bits ^ (bits >> 16)
