# SPDX-License-Identifier: Apache-2.0
"""The k best of N sharded tokens, exactly, without a sort or a gather.

Scores become unsigned integers of the same order. The k-th of them is found
by counting: each round fixes one bit, in one pass over the tokens and one
all-reduce of a scalar, and the search ends as soon as a cut leaves exactly k.
Ties go to the token whose identity (sequence, position) comes first, found by
the same search, so the chosen set does not depend on mesh, packing or order.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Shaped, UInt

from covrl.entropy.chain import concrete
from covrl.entropy.exact import count

Identity = Int[Array, 'B T'] | None


def select_top(
  scores: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  fraction: ArrayLike,
  sequence_ids: Identity = None,
  positions: Identity = None,
  minimum: ArrayLike = 0,
) -> Bool[Array, 'B T']:
  """The highest-scoring tokens of the whole batch.

  Equal to a stable descending sort on one device, whatever the sharding.

  Args:
    scores: any float dtype; NaN and −inf are never selected.
    mask: tokens that may be selected, and that `fraction` counts.
    fraction: share of the tokens under `mask`, in [0, 1]; may be traced.
    sequence_ids: which sequence each token belongs to; its row if absent.
    positions: place within the sequence; its column if absent. Together with
      `sequence_ids` unique, or ties may exceed the quota.
    minimum: smallest quota; public implementations use 1.

  Returns:
    True for the `max(minimum, ⌊fraction · N⌋)` best, or all eligible if fewer.

  >>> scores = jnp.array([[0.1, 0.9, 0.5, 0.9]])
  >>> select_top(scores, jnp.ones((1, 4), bool), fraction=0.25)
  Array([[False,  True, False, False]], dtype=bool)
  """
  eligible = mask & ~jnp.isnan(scores) & (scores > -jnp.inf)
  keys = (_float_key(scores), *_identity_keys(scores, sequence_ids, positions))
  return _largest(keys, eligible, quota(mask, fraction, minimum))


def select_random(
  eligible: Bool[Array, 'B T'],
  *,
  fraction: ArrayLike,
  key: Array,
  step: ArrayLike,
  sequence_ids: Identity = None,
  positions: Identity = None,
  mask: Bool[Array, 'B T'] | None = None,
  minimum: ArrayLike = 0,
) -> Bool[Array, 'B T']:
  """A random subset of the eligible tokens of the whole batch.

  Each token's lot is drawn from (key, step, sequence, position) and from
  nothing else, so the subset does not depend on mesh, packing or order.

  Args:
    eligible: tokens that may be selected.
    fraction: share in [0, 1]; may be traced.
    key: PRNG key of the run.
    step: optimiser update; another step draws another subset.
    sequence_ids: as in `select_top`.
    positions: as in `select_top`.
    mask: the tokens `fraction` counts; the eligible ones if absent.
    minimum: smallest quota.

  Returns:
    True for `max(minimum, ⌊fraction · N⌋)` eligible tokens, all if fewer.
  """
  sequences, places = _identity(eligible, sequence_ids, positions)
  lots = _token_bits(jax.random.fold_in(key, step), sequences, places)
  keys = (lots, *_identity_keys(eligible, sequences, places))
  wanted = quota(eligible if mask is None else mask, fraction, minimum)
  return _largest(keys, eligible, wanted)


def quota(
  mask: Bool[Array, '...'], fraction: ArrayLike, minimum: ArrayLike = 0
) -> Int[Array, '']:
  """How many tokens a fraction of those under a mask is: max(min, ⌊f · N⌋).

  Raises:
    ValueError: if the fraction is a number outside [0, 1].
  """
  number = concrete(fraction)
  if number is not None and not 0 <= number <= 1:
    raise ValueError(f'fraction must lie in [0, 1], got {number:g}')
  share = jnp.asarray(fraction, jnp.result_type(float))
  exact = share * count(mask).astype(share.dtype)
  return jnp.maximum(jnp.floor(exact).astype(jnp.int32), minimum)


def exact_quantile(
  values: Float[Array, '...'], mask: Bool[Array, '...'], level: float
) -> Float[Array, '']:
  """The smallest value under the mask with at least `level` of them below it.

  By counting, like every selection here; 0 for an empty mask.
  """
  mask = mask & ~jnp.isnan(values)
  total = count(mask)
  rank = jnp.ceil(level * total).astype(jnp.int32)
  above = jnp.clip(total - rank + 1, 1, jnp.maximum(total, 1))
  found = _kth_largest(_float_key(values), mask, above, exactly=True)
  return jnp.where(total > 0, _from_float_key(found.key, values.dtype), 0)


class _Cut(NamedTuple):
  """A key, and how many candidates are at or above it."""

  key: UInt[Array, '']
  kept: Int[Array, '']


def _largest(
  keys: Sequence[UInt[Array, 'B T']],
  eligible: Bool[Array, 'B T'],
  wanted: Int[Array, ''],
) -> Bool[Array, 'B T']:
  """The `wanted` lexicographically largest of the eligible."""
  wanted = jnp.minimum(wanted, count(eligible))
  chosen = jnp.zeros_like(eligible)
  candidates = eligible
  for key in keys:
    cut = _kth_largest(key, candidates, wanted).key
    above = candidates & (key > cut)
    chosen = chosen | above
    wanted = wanted - count(above)
    candidates = candidates & (key == cut)
  return chosen | (candidates & (wanted > 0))


def _kth_largest(
  key: UInt[Array, '...'],
  candidates: Bool[Array, '...'],
  wanted: Int[Array, ''],
  *,
  exactly: bool = False,
) -> _Cut:
  """A cut that keeps `wanted` candidates, or the k-th key where they tie.

  Args:
    key: unsigned.
    candidates: which entries take part.
    wanted: k.
    exactly: search on to the k-th key itself even where a lower cut would
      keep the same candidates.
  """
  bits = key.dtype.itemsize * 8
  one = jnp.ones((), key.dtype)

  def undecided(state: tuple[Int[Array, ''], _Cut]) -> Bool[Array, '']:
    bit, cut = state
    return (bit >= 0) & (exactly | (cut.kept != wanted))

  def fix_next_bit(
    state: tuple[Int[Array, ''], _Cut],
  ) -> tuple[Int[Array, ''], _Cut]:
    bit, cut = state
    trial = cut.key | (one << bit.astype(key.dtype))
    kept = count(candidates & (key >= trial))
    raised = kept >= wanted
    return bit - 1, _Cut(
      jnp.where(raised, trial, cut.key), jnp.where(raised, kept, cut.kept)
    )

  start = _Cut(jnp.zeros((), key.dtype), count(candidates))
  last_bit = jnp.asarray(bits - 1, jnp.int32)
  return jax.lax.while_loop(undecided, fix_next_bit, (last_bit, start))[1]


def _float_key(values: Float[Array, '...']) -> UInt[Array, '...']:
  """Unsigned integers in the order of the floats; both zeros are one."""
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  unsigned = jnp.dtype(f'uint{values.dtype.itemsize * 8}')
  pattern = jax.lax.bitcast_convert_type(values + 0.0, unsigned)
  sign = jnp.asarray(1, unsigned) << (values.dtype.itemsize * 8 - 1)
  pattern = jnp.where(values == 0, jnp.zeros_like(pattern), pattern)
  return jnp.where(pattern & sign, ~pattern, pattern | sign)


def _from_float_key(key: UInt[Array, ''], dtype: jnp.dtype) -> Float[Array, '']:
  """Inverse of `_float_key`."""
  dtype = jnp.promote_types(dtype, jnp.float32)
  sign = jnp.asarray(1, key.dtype) << (dtype.itemsize * 8 - 1)
  pattern = jnp.where(key & sign, key ^ sign, ~key)
  return jax.lax.bitcast_convert_type(pattern, dtype)


def _identity(
  like: Shaped[Array, 'B T'], sequence_ids: Identity, positions: Identity
) -> tuple[Int[Array, 'B T'], Int[Array, 'B T']]:
  """Sequence and position of each token; row and column where not given."""
  if sequence_ids is None:
    sequence_ids = jax.lax.broadcasted_iota(jnp.int32, like.shape, 0)
  if positions is None:
    positions = jax.lax.broadcasted_iota(jnp.int32, like.shape, 1)
  return sequence_ids, positions


def _identity_keys(
  like: Shaped[Array, 'B T'], sequence_ids: Identity, positions: Identity
) -> tuple[UInt[Array, 'B T'], UInt[Array, 'B T']]:
  """Keys that are larger for tokens that come earlier."""
  sequences, places = _identity(like, sequence_ids, positions)
  return ~sequences.astype(jnp.uint32), ~places.astype(jnp.uint32)


def _token_bits(
  key: Array, sequence_ids: Int[Array, 'B T'], positions: Int[Array, 'B T']
) -> UInt[Array, 'B T']:
  """Random bits that belong to a token, not to its place in an array."""

  def draw(sequence: Int[Array, ''], place: Int[Array, '']) -> Array:
    mine = jax.random.fold_in(jax.random.fold_in(key, sequence), place)
    return jax.random.bits(mine, dtype=jnp.uint32)

  return jax.vmap(jax.vmap(draw))(sequence_ids, positions)
