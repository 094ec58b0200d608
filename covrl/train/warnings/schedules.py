# SPDX-License-Identifier: Apache-2.0
"""Schedules of a token chain that leave their range during a run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from covrl.entropy import DecisionCache
from covrl.entropy.base import update_signal
from covrl.entropy.inspection import single_token
from covrl.train.warnings.directions import is_update_count

# Number of updates at which schedules are evaluated, at most.
_NUM_UPDATES = 1000


def schedule_warnings(
  token_tx: optax.GradientTransformation, updates: int
) -> Iterator[str]:
  """Yields a sentence for each schedule that leaves its range during a run.

  These are coefficients that become negative or not finite, and fractions that are
  clamped. The chain is run on a single token for up to 1,000 of the updates, whose
  number takes the place of the step and of the counts in its state. Controllers,
  which read the context, are not evaluated. A sentence also says that a chain
  cannot be run on a single token.

  Args:
    token_tx: a token chain.
    updates: number of updates that it makes.
  """
  stats, context = single_token()
  state = token_tx.init(stats.template())
  largest_values: dict[str, float] = {}

  def at(count: Int[Array, '']) -> dict[str, Array]:
    counted = jax.tree.map(
      lambda leaf: count if is_update_count(leaf) else leaf, state
    )
    cache = DecisionCache()
    entries: Any = {**context, 'step': count, 'decisions': cache}
    update_signal(token_tx, stats, counted, stats, **entries)
    largest_values.update(
      {name: largest for name, (_, largest) in cache.scheduled.items()}
    )
    return {
      name: jnp.asarray(value) for name, (value, _) in cache.scheduled.items()
    }

  counts = np.unique(
    np.linspace(0, updates - 1, min(updates, _NUM_UPDATES)).astype(np.int32)
  )
  try:
    values = jax.device_get(jax.jit(lambda: jax.lax.map(at, counts))())
  except Exception as error:
    # Functions of a recipe raise errors of any type.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    yield (
      "whether schedules of the recipe's token_tx leave their range during the run"
      f' cannot be checked: {reason}'
    )
    return
  for name, series in values.items():
    is_valid = (series >= 0) & (series <= largest_values[name])
    is_valid &= np.isfinite(series)
    if is_valid.all():
      continue
    index = int(np.argmin(is_valid))
    path, _, argument = name.rpartition('/')
    transform = path.rpartition('/')[2].partition('[')[0]
    effect = 'but must be finite and at least 0'
    if np.isfinite(largest_values[name]):
      effect = f'which is clamped to [0, {largest_values[name]:g}]'
    yield (
      f"the recipe's token_tx has the {argument} {series[index]:g} of {transform}"
      f' at update {counts[index]} of {updates}, {effect}'
    )
