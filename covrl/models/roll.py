# SPDX-License-Identifier: Apache-2.0
"""Rolls of rows, each by its own number of tokens; the derivative is a roll, too."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Num


@jax.custom_vjp
def roll_rows(
  x: Num[Array, 'B T ...'], shift: Int[Array, ' B']
) -> Num[Array, 'B T ...']:
  """Rolls each row to the right by its own number of tokens.

  >>> roll_rows(jnp.array([[1, 2, 3], [4, 5, 6]]), jnp.array([1, -1])).tolist()
  [[3, 1, 2], [5, 6, 4]]
  """
  return jax.vmap(lambda row, by: jnp.roll(row, by, axis=0))(x, shift)


def _roll_forward(
  x: Num[Array, 'B T ...'], shift: Int[Array, ' B']
) -> tuple[Num[Array, 'B T ...'], Int[Array, ' B']]:
  return roll_rows(x, shift), shift


def _roll_backward(
  shift: Int[Array, ' B'], cotangent: Num[Array, 'B T ...']
) -> tuple[Num[Array, 'B T ...'], None]:
  # Autodiff would give a scatter-add.
  return roll_rows(cotangent, -shift), None


roll_rows.defvjp(_roll_forward, _roll_backward)
