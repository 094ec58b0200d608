# SPDX-License-Identifier: Apache-2.0
"""Finding the k largest of N sharded tokens by counting.

Numbers become integers of the same order, and the k-th largest of those is
closed in on: each round counts the tokens at or above a few trial keys, in one
pass and one all-reduce of as many integers, and fixes a few bits more. The
search ends as soon as some key has exactly k tokens at or above it.

What tokens are ranked by is computed anew in every round. That costs less than
the memory it would take to keep.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.entropy.exact import extremes, sum_each

# Bits fixed in a round, by 2³ − 1 counts: the fewest passes times work on a
# CPU; on a pod, eleven all-reduces for a float32.
_ROUND_BITS = 3


class Ranked(NamedTuple):
  """Tokens as a search sees them.

  Attributes:
    eligible: who may be chosen.
    keys: what they are ranked by; each decides the ties of those before it.
  """

  eligible: Bool[Array, '*shape']
  keys: tuple[Int[Array, '*shape'], ...]


Ranking = Callable[[PyTree], Ranked]
Candidates = Callable[[PyTree], tuple[Array, Array]]


# Jitted, so that outside a jit it is compiled once and not at every call.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def largest(
  rank: Ranking, tokens: PyTree, wanted: Int[Array, ''], total: Int[Array, '']
) -> Bool[Array, '*shape']:
  """The tokens that rank highest.

  Args:
    rank: turns `tokens` into keys, elementwise.
    tokens: arrays of one shape, and scalars.
    wanted: how many to choose.
    total: how many are eligible; all are chosen if `wanted` is more.

  Returns:
    True for the chosen.
  """
  tokens = jax.lax.stop_gradient(tokens)
  left = jnp.minimum(wanted, total)
  cuts: list[Int[Array, '']] = []
  for place in range(len(jax.eval_shape(rank, tokens).keys)):
    tied = _tied(rank, tuple(cuts), place)
    if place == 0:
      start = everywhere(_key_dtype(tied, tokens), total)
    else:
      start = _around(tied, tokens, left, total)
    found = kth_largest(tied, tokens, left, start)
    cuts.append(found.cut)
    # Who shares the last key that was let in, and how many of them may enter.
    left, total = left - found.above, found.kept - found.above

  eligible, keys = rank(tokens)
  chosen = jnp.ones_like(eligible)
  for key, cut in zip(reversed(keys), reversed(cuts), strict=True):
    chosen = (key > cut) | ((key == cut) & chosen)
  return eligible & chosen & (wanted > 0)


class Bracket(NamedTuple):
  """Keys [cut, cut + 2^bits), one of which is the k-th largest.

  Attributes:
    bits: how many low bits of the cut are still open.
    cut: the lowest key.
    kept: how many tokens are at or above the cut; at least k.
    above: how many are above the bracket; fewer than k.
  """

  bits: Int[Array, '']
  cut: Int[Array, '']
  kept: Int[Array, '']
  above: Int[Array, '']


def everywhere(dtype: jnp.dtype, total: Int[Array, '']) -> Bracket:
  """All integers of a type, among which `total` candidates are."""
  return Bracket(
    bits=jnp.asarray(dtype.itemsize * 8, jnp.int32),
    cut=jnp.asarray(jnp.iinfo(dtype).min, dtype),
    kept=total,
    above=jnp.zeros_like(total),
  )


def kth_largest(
  candidates: Candidates,
  tokens: PyTree,
  wanted: Int[Array, ''],
  start: Bracket,
) -> Bracket:
  """The highest key at or above which there are `wanted` candidates.

  Or a lower one, if exactly as many are at or above that.

  Args:
    candidates: of `tokens`: who takes part, and a key each.
    tokens: arrays of one shape, and scalars.
    wanted: k, at least 1; for 0 the answer is void.
    start: where to look.
  """
  dtype = start.cut.dtype
  one = jnp.ones((), dtype)

  def undecided(bracket: Bracket) -> Bool[Array, '']:
    return (bracket.bits > 0) & (bracket.kept != wanted)

  def narrow(bracket: Bracket) -> Bracket:
    # Behind a barrier nothing is moved out of the loop, into memory.
    bracket, here = jax.lax.optimization_barrier((bracket, tokens))
    taking_part, key = candidates(here)
    bits = jnp.maximum(bracket.bits - _ROUND_BITS, 0)
    step = one << bits.astype(dtype)
    trials = [bracket.cut + step * i for i in range(1, 2**_ROUND_BITS)]
    counts = sum_each(*(taking_part & (key >= trial) for trial in trials))
    # A trial beyond the largest integer comes round from below.
    counts = jnp.where(jnp.stack(trials) > bracket.cut, counts, 0)
    ladder = jnp.concatenate([bracket.kept[None], counts, bracket.above[None]])
    rung = jnp.sum(counts >= wanted, dtype=jnp.int32)
    return Bracket(
      bits=bits,
      cut=bracket.cut + step * rung.astype(dtype),
      kept=ladder[rung],
      above=ladder[rung + 1],
    )

  return jax.lax.while_loop(undecided, narrow, start)


def float_key(values: Float[Array, '*shape']) -> Int[Array, '*shape']:
  """Integers in the order of the floats; both zeros are one.

  >>> float_key(jnp.array([-1.0, -0.0, 0.0, 1e-45])).tolist()
  [-1065353216, 0, 0, 1]
  """
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  signed = jnp.dtype(f'int{values.dtype.itemsize * 8}')
  pattern = jax.lax.bitcast_convert_type(values, signed)
  # A negative float's pattern is a sign bit and its magnitude.
  return jnp.where(pattern < 0, jnp.iinfo(signed).min - pattern, pattern)


def _tied(
  rank: Ranking, cuts: tuple[Int[Array, ''], ...], place: int
) -> Candidates:
  """Those whose first keys are the cuts, and their key in this place."""

  def candidates(tokens: PyTree) -> tuple[Array, Array]:
    eligible, keys = rank(tokens)
    for key, cut in zip(keys, cuts, strict=False):
      eligible = eligible & (key == cut)
    return eligible, keys[place]

  return candidates


def _around(
  candidates: Candidates,
  tokens: PyTree,
  wanted: Int[Array, ''],
  total: Int[Array, ''],
) -> Bracket:
  """From the lowest candidate's key to the highest's, if it must be known."""
  dtype = _key_dtype(candidates, tokens)

  def close() -> Bracket:
    taking_part, key = candidates(tokens)
    lowest, highest = extremes(key, taking_part)
    bits = dtype.itemsize * 8 - jax.lax.clz(highest - lowest)
    return everywhere(dtype, total)._replace(
      bits=bits.astype(jnp.int32), cut=lowest
    )

  return jax.lax.cond(total != wanted, close, lambda: everywhere(dtype, total))


def _key_dtype(candidates: Candidates, tokens: PyTree) -> jnp.dtype:
  return jax.eval_shape(candidates, tokens)[1].dtype
