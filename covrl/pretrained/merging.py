# SPDX-License-Identifier: Apache-2.0
"""Merges adapters into weights to write, and warns of what rounding loses."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import jax
from jax.typing import DTypeLike
from jaxtyping import PyTree

from covrl.models import Policy
from covrl.models.lora import lost_change

# Smallest share of the adapters' change whose loss is reported.
_REPORTED_LOSS = 0.01


def warn_in_python(text: str) -> None:
  """Issues a Python warning."""
  warnings.warn(text, stacklevel=4)


def merge_to_write(
  policy: Policy,
  params: PyTree,
  dtype: DTypeLike | None = None,
  warn: Callable[[str], object] = warn_in_python,
) -> tuple[Policy, PyTree]:
  """Merges adapters into the weights, which are rounded once to their dtype.

  Args:
    policy: a policy with or without adapters.
    params: parameters of the policy, adapters included.
    dtype: dtype of the weights to write; that of `params` unless given.
    warn: receives a sentence if rounding loses more than a hundredth of the change
      that the adapters make.

  Returns:
    The policy without adapters, and its parameters.
  """
  lora = policy.config.lora
  if lora is None:
    if dtype is not None:
      params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    return policy, params
  loss = lost_change(params, lora, dtype)
  if loss > _REPORTED_LOSS:
    written = policy.config.param_dtype if dtype is None else dtype
    warn(
      f'weights of {written} lose {loss:.0%} of the change that the adapters make,'
      ' which is rounded away where they are merged; --dtype=float32 keeps it'
    )
  return policy.base, policy.merge(params, dtype)
