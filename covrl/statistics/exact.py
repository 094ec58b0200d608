# SPDX-License-Identifier: Apache-2.0
"""Sums and means whose bits do not depend on layout.

Floating-point addition is not associative: a mean over another mesh, packing
or row order differs in its last bits, and every covariance built on it with
it. Here each number is split into integer limbs relative to the largest one,
the limbs are summed as int32 (which is associative, sharded or not), and only
the few totals are converted back to floating point, in a fixed order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array

_LIMB_BITS = 15  # exact as a float32 integer
_SUM_BITS = 30  # an int32 total without its sign
_KEPT_BITS = {4: 48, 8: 75}  # per item size: mantissa and dynamic range


def count_true(mask: Bool[Array, '...']) -> Int[Array, '']:
  """Number of true entries, exactly, as int32."""
  return jnp.sum(mask, dtype=jnp.int32)


# Jitted, so that outside a jit it is compiled once and not at every call.
@functools.partial(jax.jit, inline=True)
def sum_each(
  *terms: Int[Array, '*shape'] | Bool[Array, '*shape'],
) -> Int[Array, ' n']:
  """Sums several arrays of one shape in one pass, exactly, as int32.

  On sharded arrays that is one all-reduce of as many integers.

  >>> sum_each(jnp.array([True, False]), jnp.array([3, 4])).tolist()
  [1, 7]
  """
  return jax.lax.platform_dependent(
    *(term.astype(jnp.int32) for term in terms),
    cpu=lambda *terms: _reduce_together(terms, (0,) * len(terms), _add_each),
    default=lambda *terms: jnp.stack(
      [jnp.sum(term, dtype=jnp.int32) for term in terms]
    ),
  )


def extremes(
  values: Int[Array, '*shape'], mask: Bool[Array, '*shape']
) -> Int[Array, '2']:
  """The smallest and the largest value under a mask, in one pass."""
  limits = jnp.iinfo(values.dtype)
  # Arrays, since JAX takes a number of Python for one of int32.
  largest, smallest = (
    jnp.asarray(limit, values.dtype) for limit in (limits.max, limits.min)
  )
  low = jnp.where(mask, values, largest)
  high = jnp.where(mask, values, smallest)
  return jax.lax.platform_dependent(
    low,
    high,
    cpu=lambda *bounds: _reduce_together(
      bounds, (largest, smallest), _combine_extremes
    ),
    default=lambda low, high: jnp.stack([jnp.min(low), jnp.max(high)]),
  )


def exact_sum(
  values: Float[Array, '...'], mask: Bool[Array, '...']
) -> Float[Array, '']:
  """Sums the values under a mask: the same bits for every order and sharding.

  Accurate to rounding of the exact sum while the summands' ratio to the
  largest one is above 2⁻²⁴ (float32); smaller ones are truncated at 2⁻⁴⁸ of
  the largest.

  Args:
    values: numbers of any shape.
    mask: entries to sum, of the same shape.

  Returns:
    The sum, in the dtype of `values` (at least float32); NaN if a summand is
    not finite.

  Raises:
    TypeError: the mask is not of bools.
    ValueError: the shapes differ.

  >>> exact_sum(jnp.array([1e8, 1.0, -1e8]), jnp.array([True, True, True]))
  Array(1., dtype=float32)
  """
  check_mask(mask, values)
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  values = jnp.where(mask, values, 0)
  limb_bits = _limb_bits(values.size)
  kept_bits = _KEPT_BITS[values.dtype.itemsize]
  # A maximum over several devices may lose a NaN, but not an infinity.
  magnitudes = jnp.where(jnp.isnan(values), jnp.inf, jnp.abs(values))
  largest = jnp.max(magnitudes, initial=0)
  _, exponent = jnp.frexp(largest)

  remainder = jnp.ldexp(values, -exponent)
  limbs = []
  for _ in range(-(-kept_bits // limb_bits)):
    remainder = remainder * 2.0**limb_bits
    limb = jnp.trunc(remainder)
    remainder = remainder - limb
    limbs.append(limb.astype(jnp.int32))
  totals = [*sum_each(*limbs)]
  total = jnp.ldexp(_combine(totals, limb_bits, values.dtype), exponent)
  return jnp.where(jnp.isfinite(largest), total, jnp.nan)


def exact_mean(
  values: Float[Array, '...'], mask: Bool[Array, '...']
) -> Float[Array, '']:
  """Mean under a mask, the same bits for every layout.

  NaN for an empty mask, and if a value under the mask is not finite.

  Args:
    values: numbers of any shape.
    mask: entries to average, of the same shape.

  >>> exact_mean(jnp.array([1.0, 3.0]), jnp.array([False, False]))
  Array(nan, dtype=float32)
  """
  total = exact_sum(values, mask)
  return total / count_true(mask).astype(total.dtype)


def float_key(values: Float[Array, '*shape']) -> Int[Array, '*shape']:
  """Maps floats to integers of the same order; both zeros map to 0.

  >>> float_key(jnp.array([-1.0, -0.0, 0.0, 1e-45])).tolist()
  [-1065353216, 0, 0, 1]
  """
  values = jnp.asarray(values)
  values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
  signed = jnp.dtype(f'int{values.dtype.itemsize * 8}')
  pattern = jax.lax.bitcast_convert_type(values, signed)
  # A negative float's pattern is a sign bit and its magnitude.
  return jnp.where(pattern < 0, jnp.iinfo(signed).min - pattern, pattern)


def check_mask(mask: object, values: Any) -> None:
  """Refuses a mask that is not of bools, or not of the shape of the values."""
  check_array('mask', mask, 'bool', '...', jnp.shape(values))


def _reduce_together(
  terms: Sequence[Int[Array, '*shape']],
  initial: Sequence[int | Array],
  combine: Callable[[Sequence[Array], Sequence[Array]], Sequence[Array]],
) -> Int[Array, ' n']:
  """One reduction of many operands, which XLA vectorises on CPU.

  Compilers for accelerators fuse separate reductions, which need less
  communication there.
  """
  dtype = terms[0].dtype
  initial_values = [jnp.asarray(value, dtype) for value in initial]
  return jnp.stack(
    jax.lax.reduce([*terms], initial_values, combine, range(terms[0].ndim))
  )


def _add_each(left: Sequence[Array], right: Sequence[Array]) -> list[Array]:
  """Adds two lists of arrays, element by element."""
  return [a + b for a, b in zip(left, right, strict=True)]


def _combine_extremes(
  left: Sequence[Array], right: Sequence[Array]
) -> list[Array]:
  """Combines two pairs of a minimum and a maximum."""
  return [jnp.minimum(left[0], right[0]), jnp.maximum(left[1], right[1])]


def _limb_bits(size: int) -> int:
  """Widest limb such that `size` of them can be added without int32 overflow."""
  bits = min(_LIMB_BITS, _SUM_BITS - max(size - 1, 1).bit_length())
  if bits < 1:
    raise ValueError(
      f'an exact sum must have at most 2**{_SUM_BITS - 1} entries, got {size}'
    )
  return bits


def _combine(
  totals: list[Int[Array, '']], limb_bits: int, dtype: jnp.dtype
) -> Float[Array, '']:
  """Combines integer totals, most significant first, into one float."""
  digits = [*totals]
  for i in reversed(range(1, len(digits))):
    carry = digits[i] >> limb_bits
    digits[i] = digits[i] - (carry << limb_bits)
    digits[i - 1] = digits[i - 1] + carry
  leading = digits[0] >> _LIMB_BITS
  pieces = [(leading, _LIMB_BITS - limb_bits)]
  pieces.append((digits[0] - (leading << _LIMB_BITS), -limb_bits))
  pieces += [
    (digit, -limb_bits * (i + 2)) for i, digit in enumerate(digits[1:])
  ]
  high = low = jnp.zeros((), dtype)
  for integer, exponent in pieces:
    piece = integer.astype(dtype) * jnp.asarray(2.0**exponent, dtype)
    high, error = _two_sum(high, piece)
    low = low + error
  return high + low


def _two_sum(
  a: Float[Array, ''], b: Float[Array, '']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """A sum and its rounding error, exactly."""
  total = a + b
  shift = total - a
  return total, (a - (total - shift)) + (b - shift)
