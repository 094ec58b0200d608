# SPDX-License-Identifier: Apache-2.0
"""Argument checks: probabilities, logits, numbers; traced arrays are not checked."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from covrl.array_checks import check_array, concrete_array


def check_finite(
  name: str, value: Any, axes: str = '...', shape: tuple[int, ...] | None = None
) -> None:
  """Refuses anything but an array of finite numbers.

  Args:
    name: the argument's name, for errors.
    value: an array or a Python number.
    axes: names of its axes; `'...'` for any.
    shape: required sizes; `None` for any.

  Raises:
    TypeError: it is not an array of numbers, or it is a masked one.
    ValueError: it has another shape, or a number is NaN or infinite.

  >>> check_finite('rewards', np.array([1.0, np.nan]))
  Traceback (most recent call last):
    ...
  ValueError: rewards must be finite, got nan
  """
  array = _concrete_numbers(name, value, axes, shape)
  if array is not None and not np.isfinite(array).all():
    raise ValueError(
      f'{name} must be finite, got {array[~np.isfinite(array)].flat[0]:g}'
    )


def check_logits(
  name: str, logits: Any, shape: tuple[int, ...] | None = None
) -> None:
  """Refuses anything but logits `[..., K]` with a softmax; −∞ is probability 0.

  Raises:
    TypeError: it is not an array of numbers.
    ValueError: it has another shape, a logit is NaN or +∞, or all of a
      distribution are −∞.
  """
  array = _concrete_numbers(name, logits, '...', shape)
  if array is None:
    return
  if not array.ndim or not array.shape[-1]:
    raise ValueError(f'{name} must be [..., K], got {array.shape}')
  highest = array.max(-1)
  if not np.isfinite(highest).all():
    wrong = highest[~np.isfinite(highest)].flat[0]
    raise ValueError(
      f'{name} must have a finite maximum in every distribution, got {wrong:g}'
    )


def check_probabilities(
  name: str, pi: Any, shape: tuple[int, ...] | None = None
) -> None:
  """Refuses anything but probabilities `[..., K]` that sum to 1.

  The sum may differ by the square root of the dtype's rounding error.

  Raises:
    TypeError: it is not an array of numbers.
    ValueError: it has another shape, an entry is negative or NaN, or a sum is
      not 1.

  >>> check_probabilities('pi', np.array([0.5, 0.6]))
  Traceback (most recent call last):
    ...
  ValueError: pi must sum to 1 over the last axis, got 1.1
  """
  array = _concrete_numbers(name, pi, '...', shape)
  if array is None:
    return
  if not array.ndim or not array.shape[-1]:
    raise ValueError(f'{name} must be [..., K], got {array.shape}')
  total = array.sum(-1, dtype=float)
  is_float = jnp.issubdtype(array.dtype, jnp.floating)
  tolerance = float(jnp.finfo(array.dtype).eps) ** 0.5 if is_float else 0.0
  is_one = abs(total - 1) <= tolerance  # False for NaN.
  if not is_one.all():
    raise ValueError(
      f'{name} must sum to 1 over the last axis, got {total[~is_one].flat[0]:g}'
    )
  if array.size and array.min() < 0:
    raise ValueError(f'{name} must be at least 0, got {array.min():g}')


def check_actions(pi: Any, **values: Any) -> None:
  """Refuses values that are not one number per action of `pi` `[..., K]`.

  Raises:
    TypeError: a value is not an array of numbers.
    ValueError: its last axis has another size.
  """
  for name, value in values.items():
    _concrete_numbers(name, value, '...', None)
    if not value.ndim or value.shape[-1] != pi.shape[-1]:
      raise ValueError(
        f'{name} must be [..., K] with K = {pi.shape[-1]}, got {value.shape}'
      )


def check_indices(name: str, value: Any, count: int) -> None:
  """Refuses anything but integers in [0, count).

  JAX would take the nearest index instead.

  Raises:
    TypeError: it is not an array of integers.
    ValueError: an index is out of range.
  """
  check_array(name, value, 'int', '...')
  array = concrete_array(value)
  if array is None or not array.size:
    return
  low, high = int(array.min()), int(array.max())
  if low < 0 or high >= count:
    raise ValueError(
      f'{name} must lie in [0, {count}), got {low if low < 0 else high}'
    )


def _concrete_numbers(
  name: str, value: Any, axes: str, shape: tuple[int, ...] | None
) -> np.ndarray | None:
  """Checks dtype and shape; returns the array, `None` if it is traced."""
  if isinstance(value, np.ma.MaskedArray):
    raise TypeError(f'{name} must be an array without a mask, got a masked one')
  check_array(name, value, 'real', axes, shape)
  return concrete_array(value)
