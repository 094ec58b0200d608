# SPDX-License-Identifier: Apache-2.0
"""Cached results in 64-bit floats, whatever the setting of JAX at the first call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P = ParamSpec('P')
T = TypeVar('T')


def cached_in_float64(function: Callable[P, T]) -> Callable[P, T]:
  """Caches the results of a function that is called with `jax.enable_x64`.

  A plain cache would keep the results in 32-bit floats of a first call outside
  of a claim, and claims would be checked with them.

  Args:
    function: a function of hashable arguments.

  >>> import jax.numpy as jnp
  >>> cached_in_float64(lambda size: jnp.zeros(size))(3).dtype
  dtype('float64')
  """

  cached = functools.cache(function)

  @functools.wraps(function)
  def compute(*args: P.args, **kwargs: P.kwargs) -> T:
    with jax.enable_x64(True):
      return cached(*args, **kwargs)

  return compute
