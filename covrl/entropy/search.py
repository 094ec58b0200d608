# SPDX-License-Identifier: Apache-2.0
"""Top-k of N sharded tokens by counting.

Scores are mapped to integers of the same order, and a search narrows down the
k-th largest: each round counts the tokens at or above a few trial keys, in one
pass and one all-reduce of as many integers, and fixes a few more bits. The
search ends as soon as some key has exactly k tokens at or above it.

Keys are recomputed in every round, which costs less than keeping them in
memory.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from covrl.statistics.exact import extremes, sum_each

# Bits fixed in a round, by 2³ − 1 counts: the least total work on a CPU; on a
# pod, eleven all-reduces for a float32.
_ROUND_BITS = 3


class RankedTokens(NamedTuple):
  """Input of a search: candidates and the keys that order them.

  Attributes:
    eligible: tokens that may be chosen.
    keys: integers to rank by; each breaks the ties of those before it.
  """

  eligible: Bool[Array, '*shape']
  keys: tuple[Int[Array, '*shape'], ...]


RankFunction = Callable[[PyTree], RankedTokens]
Candidates = Callable[[PyTree], tuple[Array, Array]]


# Jitted, so that outside a jit it is compiled once and not at every call.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def select_largest(
  rank: RankFunction,
  tokens: PyTree,
  k: Int[Array, ''],
  total: Int[Array, ''],
) -> Bool[Array, '*shape']:
  """The highest-ranked tokens.

  Args:
    rank: maps `tokens` to keys, elementwise.
    tokens: arrays of one shape, and scalars.
    k: number of tokens to choose.
    total: number of eligible tokens; all are chosen if `k` is more.

  Returns:
    True for the chosen tokens.
  """
  tokens = jax.lax.stop_gradient(tokens)
  remaining = jnp.minimum(k, total)
  # The lowest chosen value of each key, among the tokens tied in earlier keys.
  lows: list[Int[Array, '']] = []
  for index in range(len(jax.eval_shape(rank, tokens).keys)):
    tied = _tied_candidates(rank, tuple(lows), index)
    if index == 0:
      start = full_interval(_key_dtype(tied, tokens), total)
    else:
      start = _candidate_interval(tied, tokens, remaining, total)
    boundary = kth_largest(tied, tokens, remaining, start)
    lows.append(boundary.low)
    # Tokens tied at the lowest chosen key, and how many of them are to choose.
    remaining, total = (
      remaining - boundary.above,
      boundary.at_or_above - boundary.above,
    )

  eligible, keys = rank(tokens)
  chosen = jnp.ones_like(eligible)
  for key, low in zip(reversed(keys), reversed(lows), strict=True):
    chosen = (key > low) | ((key == low) & chosen)
  return eligible & chosen & (k > 0)


class Interval(NamedTuple):
  """Keys [low, low + 2^bits), one of which is the k-th largest.

  Attributes:
    bits: number of low bits of the k-th largest key that are not yet known.
    low: the lowest key.
    at_or_above: number of tokens at or above `low`; at least k.
    above: number of tokens above the interval; fewer than k.
  """

  bits: Int[Array, '']
  low: Int[Array, '']
  at_or_above: Int[Array, '']
  above: Int[Array, '']


def full_interval(dtype: jnp.dtype, total: Int[Array, '']) -> Interval:
  """All integers of a type, with `total` candidates among them."""
  return Interval(
    bits=jnp.asarray(dtype.itemsize * 8, jnp.int32),
    low=jnp.asarray(jnp.iinfo(dtype).min, dtype),
    at_or_above=total,
    above=jnp.zeros_like(total),
  )


def kth_largest(
  candidates: Candidates,
  tokens: PyTree,
  k: Int[Array, ''],
  start: Interval,
) -> Interval:
  """Finds the highest key with `k` candidates at or above it.

  The result's `low` may be a lower key with exactly as many at or above it.

  Args:
    candidates: maps `tokens` to a mask of candidates and their keys.
    tokens: arrays of one shape, and scalars.
    k: at least 1; for 0 the result is undefined.
    start: interval to search.
  """
  dtype = start.low.dtype
  one = jnp.ones((), dtype)

  def is_undecided(interval: Interval) -> Bool[Array, '']:
    return (interval.bits > 0) & (interval.at_or_above != k)

  def narrow(interval: Interval) -> Interval:
    # The barrier keeps XLA from hoisting the keys out of the loop into memory.
    interval, loop_tokens = jax.lax.optimization_barrier((interval, tokens))
    is_candidate, key = candidates(loop_tokens)
    bits = jnp.maximum(interval.bits - _ROUND_BITS, 0)
    step = one << bits.astype(dtype)
    trial_keys = [interval.low + step * i for i in range(1, 2**_ROUND_BITS)]
    counts = sum_each(*(is_candidate & (key >= trial) for trial in trial_keys))
    # A trial beyond the largest integer overflows to a negative one.
    counts = jnp.where(jnp.stack(trial_keys) > interval.low, counts, 0)
    at_or_above = jnp.concatenate(
      [interval.at_or_above[None], counts, interval.above[None]]
    )
    index = jnp.sum(counts >= k, dtype=jnp.int32)
    return Interval(
      bits=bits,
      low=interval.low + step * index.astype(dtype),
      at_or_above=at_or_above[index],
      above=at_or_above[index + 1],
    )

  return jax.lax.while_loop(is_undecided, narrow, start)


def _tied_candidates(
  rank: RankFunction, lows: tuple[Int[Array, ''], ...], index: int
) -> Candidates:
  """Tokens whose first keys equal `lows`, with their key of that index."""

  def candidates(tokens: PyTree) -> tuple[Array, Array]:
    eligible, keys = rank(tokens)
    for key, low in zip(keys, lows, strict=False):
      eligible = eligible & (key == low)
    return eligible, keys[index]

  return candidates


def _candidate_interval(
  candidates: Candidates,
  tokens: PyTree,
  k: Int[Array, ''],
  total: Int[Array, ''],
) -> Interval:
  """Keys from the lowest candidate's to the highest's, unless all are chosen."""
  dtype = _key_dtype(candidates, tokens)

  def narrowest() -> Interval:
    is_candidate, key = candidates(tokens)
    lowest, highest = extremes(key, is_candidate)
    bits = dtype.itemsize * 8 - jax.lax.clz(highest - lowest)
    return full_interval(dtype, total)._replace(
      bits=bits.astype(jnp.int32), low=lowest
    )

  return jax.lax.cond(
    total != k, narrowest, lambda: full_interval(dtype, total)
  )


def _key_dtype(candidates: Candidates, tokens: PyTree) -> jnp.dtype:
  """Returns the dtype of the keys, without computing them."""
  return jax.eval_shape(candidates, tokens)[1].dtype
