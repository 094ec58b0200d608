# SPDX-License-Identifier: Apache-2.0
"""Warnings of trained parameters that small updates do not change."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp

from covrl.config import Config
from covrl.models import Policy


def precision_warnings(config: Config, policy: Policy) -> Iterator[str]:
  """Yields a sentence for each type of trained parameters of less than 32 bits.

  Args:
    config: the configuration, of whose warm start all parameters are trained.
    policy: the policy, of which the adapters are trained if it has any.
  """
  params = policy.abstract_params()
  trained, _ = policy.split(params)
  if config.warm_start.steps:
    trained = params
  dtypes = {leaf.dtype for leaf in jax.tree.leaves(trained)}
  for dtype in sorted(dtypes, key=str):
    limits = jnp.finfo(dtype)
    if limits.bits < 32:
      yield (
        f'parameters of {dtype} are trained: updates of less than'
        f' 1/{round(2 / float(limits.eps))} of a parameter are rounded away, as most'
        " are at the learning rates of reinforcement learning; the recipe's model can"
        " have param_dtype='float32', and dtype as it is"
      )
