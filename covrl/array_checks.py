# SPDX-License-Identifier: Apache-2.0
"""Checks of arguments: dtypes and shapes of arrays, values of numbers.

Shapes and dtypes are known while a program is traced, so these checks cost
nothing at run time. Errors name the argument, the requirement and what was
given.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Kind = Literal['real', 'float', 'int', 'bool']

_KINDS: dict[Kind, tuple[tuple[Any, ...], str]] = {
  'real': ((jnp.floating, jnp.integer), 'numbers'),
  'float': ((jnp.floating,), 'floats'),
  'int': ((jnp.integer,), 'integers'),
  'bool': ((jnp.bool_,), 'bools'),
}


def check_array(
  name: str,
  value: object,
  kind: Kind,
  axes: str,
  shape: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
  """Checks the dtype and the shape of an array; returns the shape.

  Args:
    name: the argument's name, for errors.
    value: an array, a tracer, or a number.
    kind: `'real'` (floats or integers), `'float'`, `'int'` or `'bool'`.
    axes: names of the axes as documented, such as `'B T'`; `'...'` for any.
    shape: required sizes; `None` for any.

  Raises:
    TypeError: the dtype is of another kind, or the value is a list or a masked
      array.
    ValueError: the shape is another one, or an integer is too large for JAX,
      which would keep its last 32 bits.

  >>> check_array('advantages', np.zeros(4), 'real', 'B T', (4, 8))
  Traceback (most recent call last):
    ...
  ValueError: advantages must be [B, T] = (4, 8), got (4,)
  """
  dtypes, description = _KINDS[kind]
  if isinstance(value, list | tuple):
    raise TypeError(
      f'{name} must be an array of {description}, got a {type(value).__name__}'
    )
  if isinstance(value, np.ma.MaskedArray):
    raise TypeError(
      f'{name} must be an array of {description}, got a masked array, whose mask'
      ' would be ignored'
    )
  array: Any = value if hasattr(value, 'dtype') else np.asarray(value)
  if not any(jnp.issubdtype(array.dtype, dtype) for dtype in dtypes):
    actual_type = array.dtype if hasattr(value, 'dtype') else repr(value)
    raise TypeError(
      f'{name} must be an array of {description}, got {actual_type}'
    )
  actual_shape = tuple(array.shape)
  has_rank = axes == '...' or len(actual_shape) == len(axes.split())
  if not has_rank or (shape is not None and actual_shape != shape):
    required = '' if axes == '...' else f'[{", ".join(axes.split())}]'
    required = required if axes else 'a scalar'
    sizes = '' if shape is None or not axes else f'{required and " = "}{shape}'
    raise ValueError(f'{name} must be {required}{sizes}, got {actual_shape}')
  _check_width(name, array)
  return actual_shape


def _check_width(name: str, array: Any) -> None:
  """Refuses integers of NumPy that JAX would truncate, such as ids of 64 bits."""
  if (
    not isinstance(array, np.ndarray | np.generic)
    or array.dtype.kind not in 'iu'
  ):
    return
  bounds = jnp.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
  if array.dtype.itemsize * 8 == bounds.bits or not array.size:
    return
  low, high = int(array.min()), int(array.max())
  if low < bounds.min or high > bounds.max:
    raise ValueError(
      f'{name} must be integers of {bounds.bits} bits, which JAX has without'
      f' JAX_ENABLE_X64, got {low if low < bounds.min else high}'
    )


def check_scalar(name: str, value: object) -> None:
  """Checks that a value is a scalar of a floating-point dtype, such as a loss.

  Args:
    name: the value's name, for errors.
    value: an array, a tracer, or anything else.

  Raises:
    ValueError: it is not a float of shape `()`.

  >>> check_scalar('loss', np.zeros(3))
  Traceback (most recent call last):
    ...
  ValueError: loss must be a float scalar, got float64 of shape (3,)
  """
  is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
  if not (is_array or isinstance(value, float)):
    raise ValueError(f'{name} must be a float scalar, got {value!r}')
  array: Any = value if is_array else np.asarray(value)
  if array.shape or not jnp.issubdtype(array.dtype, jnp.floating):
    raise ValueError(
      f'{name} must be a float scalar, got {array.dtype} of shape {array.shape}'
    )


def concrete_array(value: Any) -> np.ndarray | None:
  """Returns a value as a NumPy array, `None` if it is traced or on other hosts."""
  if isinstance(value, Tracer):
    return None
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    return None
  return np.asarray(value)


def concrete_number(
  value: Any, name: str, *, allow_schedule: bool = True
) -> float | None:
  """Returns a number, `None` if it is traced or a schedule.

  Args:
    value: a number, a scalar array, a tracer, or a schedule.
    name: the argument's name, for errors.
    allow_schedule: whether the argument may be a schedule or a controller.

  Raises:
    TypeError: the value is of another type, such as text or a bool.
    ValueError: the value is an array that is not a scalar.

  >>> concrete_number(0.5, 'fraction')
  0.5
  >>> concrete_number('0.5', 'fraction')
  Traceback (most recent call last):
    ...
  TypeError: fraction must be a number or a schedule, got '0.5'
  """
  if allow_schedule and callable(value):
    return None
  is_array = isinstance(value, jax.Array | np.ndarray | np.generic)
  is_real = is_array and any(
    jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer)
  )
  is_number = isinstance(value, int | float) and not isinstance(value, bool)
  if not (is_number or is_real):
    schedule = ' or a schedule' if allow_schedule else ''
    raise TypeError(f'{name} must be a number{schedule}, got {value!r}')
  if is_array and value.shape:
    raise ValueError(f'{name} must be a scalar, got the shape {value.shape}')
  if isinstance(value, Tracer):
    return None
  return float(value)


def check_number(
  name: str,
  value: object,
  low: float,
  high: float = math.inf,
  *,
  is_open: bool = False,
) -> None:
  """Refuses anything but a number in [low, high]; traced ones pass.

  Args:
    name: the argument's name, for errors.
    value: a number or a scalar array.
    low: smallest value.
    high: largest value; without one, the number must be finite.
    is_open: whether `low` itself is excluded.

  Raises:
    TypeError: the value is not a number.
    ValueError: the number is out of range.

  >>> check_number('low', 1.5, 0, 1)
  Traceback (most recent call last):
    ...
  ValueError: low must lie in [0, 1], got 1.5
  """
  number = concrete_number(value, name, allow_schedule=False)
  if number is None:
    return
  above = low < number if is_open else low <= number
  if above and number <= high and math.isfinite(number):
    return
  bracket = '(' if is_open else '['
  if high < math.inf:
    requirement = f'lie in {bracket}{low:g}, {high:g}]'
  elif above or low == -math.inf:
    requirement = 'be finite'
  elif is_open and low == 0:
    requirement = 'be positive'
  else:
    requirement = f'be finite and {"above" if is_open else "at least"} {low:g}'
  raise ValueError(f'{name} must {requirement}, got {number:g}')


def check_integer(
  name: str, value: object, low: int | None = None, high: int | None = None
) -> None:
  """Refuses anything but an integer of at least `low` and at most `high`.

  Args:
    name: the argument's name, for errors.
    value: an integer of Python or NumPy.
    low: smallest value; `None` for any.
    high: largest value; `None` for any. It needs `low`.

  Raises:
    TypeError: the value is of another type, such as a float or a bool.
    ValueError: the integer is out of range.

  >>> check_integer('rank', 1.5, 1)
  Traceback (most recent call last):
    ...
  TypeError: rank must be an integer, got 1.5
  """
  if isinstance(value, bool) or not isinstance(value, int | np.integer):
    raise TypeError(f'{name} must be an integer, got {value!r:.80}')
  if low is None:
    return
  if high is not None and not low <= value <= high:
    raise ValueError(f'{name} must lie in [{low}, {high}], got {value}')
  if value < low:
    raise ValueError(f'{name} must be at least {low}, got {value}')


def check_at_least(least: int, **numbers: int) -> None:
  """Refuses numbers that are too small, or not integers.

  >>> check_at_least(1, segment=0)
  Traceback (most recent call last):
    ...
  ValueError: segment must be at least 1, got 0
  """
  for name, number in numbers.items():
    check_integer(name, number, least)
