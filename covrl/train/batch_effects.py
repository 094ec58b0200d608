# SPDX-License-Identifier: Apache-2.0
"""Losses and token chains whose gradient depends on the number of micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from covrl.entropy import DecisionCache
from covrl.entropy.base import update_signal
from covrl.statistics import token_stats_from_logits
from covrl.train.algorithm import Algorithm
from covrl.train.microbatch import join_rows, split_rows
from covrl.types import TokenStats

# Lengths of the sequences that are tried, and the vocabulary of their policy.
_LENGTHS, _VOCABULARY = (6, 3, 5, 2), 8
# Largest relative difference of gradients that counts as rounding.
_TOLERANCE = 1e-3


def micro_batch_warnings(
  algorithm: Algorithm, micro_batches: int
) -> Iterator[str]:
  """Yields a sentence if a gradient depends on the number of micro-batches.

  Loss and token chain are computed on four random sequences, together and in two
  micro-batches with the decisions of the whole. A sentence also says that an algorithm
  cannot be computed there. A chain that decides in each micro-batch where its `scope`
  says so yields none.

  Args:
    algorithm: the loss and the transformations of the run.
    micro_batches: number of micro-batches of an update.
  """
  if micro_batches == 1:
    return
  compute = jax.jit(lambda rows: _gradients(algorithm, rows))
  try:
    whole, parts = jax.device_get(compute(_random_rows()))
  except Exception as error:
    # Functions of a recipe raise errors of any type.
    reason = ' '.join(str(error).split())[:200] or type(error).__name__
    yield (
      'whether the gradient depends on the number of micro-batches'
      f' (train.micro_batches = {micro_batches}) cannot be checked: {reason}'
    )
    return
  for part, text in (
    (
      'signal',
      "the recipe's loss has another gradient with"
      f' train.micro_batches = {micro_batches} than with 1: it is called on each'
      ' micro-batch, and the results are added. A loss must multiply by weights'
      ' and add, and not average over the tokens that it gets',
    ),
    (
      'edited',
      "the recipe's token chain has another result with"
      f' train.micro_batches = {micro_batches} than with 1: it has a transform of'
      ' all tokens together, such as optax.clip_by_global_norm, which sees one'
      ' micro-batch at a time',
    ),
  ):
    if part in whole and _differ(whole[part], parts[part]):
      yield text
      return


def _gradients(
  algorithm: Algorithm, rows: PyTree
) -> tuple[dict[str, TokenStats], dict[str, TokenStats]]:
  """Cotangents after the loss and after the token chain.

  Returns:
    Those of all rows together, and of two micro-batches; without the token chain's
    where it decides in each micro-batch.
  """
  shared = {
    'step': jnp.zeros((), jnp.int32),
    'key': jax.random.key(0),
    'entropy': jnp.asarray(1.0),
    'entropy_change': jnp.asarray(0.0),
    'log_ratio_noise': jnp.asarray(1e-6),
  }
  state = algorithm.token_tx.init(TokenStats.template())

  def run(rows: PyTree, cache: DecisionCache) -> dict[str, TokenStats]:
    stats, of_rows = rows
    context: Any = of_rows | shared
    (_, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **context
    )
    context |= aux.for_selection | {'decisions': cache}
    edited, _ = update_signal(
      algorithm.token_tx, signal, state, stats, **context
    )
    return {'signal': signal, 'edited': edited}

  cache = DecisionCache()
  whole = run(rows, cache)
  micro_batches = split_rows((rows, cache.decisions), 2)
  results = [
    run(part, DecisionCache(recorded))
    for part, recorded in (
      jax.tree.map(lambda leaf, index=index: leaf[index], micro_batches)
      for index in range(2)
    )
  ]
  parts = join_rows(jax.tree.map(lambda *each: jnp.stack(each), *results))
  if cache.micro_batch_decisions:
    del whole['edited']
  return whole, parts


def _random_rows() -> tuple[TokenStats, dict[str, Any]]:
  """Statistics and context of random sequences of different lengths."""
  rng = np.random.default_rng(0)
  rows, width = len(_LENGTHS), max(_LENGTHS)

  def normal(scale: float) -> jax.Array:
    return jnp.asarray(rng.normal(0, scale, (rows, width)), jnp.float32)

  logits = rng.normal(size=(rows, width, _VOCABULARY)).astype(np.float32)
  targets = jnp.asarray(rng.integers(0, _VOCABULARY, (rows, width)))
  stats, moments = token_stats_from_logits(
    jnp.asarray(logits), targets, moments=True
  )
  columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (rows, width))
  mask = columns < jnp.asarray(_LENGTHS)[:, None]
  old_logprobs = stats.logprobs + normal(0.05)
  return stats, {
    'advantages': normal(1.0),
    'old_logprobs': old_logprobs,
    'old_entropy': stats.entropy + normal(0.01),
    'old_moments': moments,
    'moments': moments,
    'mask': mask,
    'weights': mask.astype(jnp.float32) / sum(_LENGTHS),
    'segment_ids': mask.astype(jnp.int32),
    'sequence_ids': jnp.arange(rows, dtype=jnp.int32)[:, None] + 0 * columns,
    'positions': columns,
    'sampler_logprobs': old_logprobs + normal(0.05),
    'ref_logprobs': stats.logprobs + normal(0.2),
  }


def _differ(whole: TokenStats, parts: TokenStats) -> bool:
  """Whether cotangents differ by more than rounding."""
  pairs = zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True)
  return any(
    bool(np.max(np.abs(a - b)) > _TOLERANCE * np.max(np.abs(a)))
    for a, b in pairs
  )
