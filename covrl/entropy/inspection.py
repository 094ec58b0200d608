# SPDX-License-Identifier: Apache-2.0
"""Inspection of token chains: their selections, and the statistics they read."""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from covrl.entropy.base import check_token_chain, update_signal
from covrl.entropy.decisions import DecisionCache, Selection
from covrl.types import SelectionSource, TokenContext, TokenStats


def explain(
  token_tx: optax.GradientTransformation,
  stats: TokenStats,
  *,
  signal: TokenStats | None = None,
  token_state: PyTree | None = None,
  **context: Unpack[TokenContext],
) -> tuple[Selection, ...]:
  """Runs a token chain and returns its selections.

  Args:
    token_tx: a token chain.
    stats: statistics of the policy.
    signal: the loss's cotangents, which `detach_drain` selects by; zeros if
      absent.
    token_state: the chain's state; its initial state if absent.
    **context: as for the chain's update.

  Returns:
    One `Selection` (mask, scores, threshold, …) per selecting transform, in
    the order of the chain.
  """
  cache = _run(token_tx, stats, signal, token_state, context)
  return cache.selections()


def selection_sources(
  token_tx: optax.GradientTransformation,
  stats: TokenStats,
  *,
  token_state: PyTree | None = None,
  **context: Unpack[TokenContext],
) -> frozenset[SelectionSource]:
  """Determines the statistics that a token chain's selectors read.

  The chain is traced and not computed, so arguments may be abstract arrays.

  Args:
    token_tx: a token chain.
    stats: statistics of the policy.
    token_state: the chain's state; its initial state if absent.
    **context: as for the chain's update, with the loss's `score_weight` and
      `clipped`.

  Returns:
    A subset of `'old'` and `'current'`, empty if the chain has no selectors.

  >>> import covrl
  >>> ones = jnp.ones((1, 2))
  >>> sources = selection_sources(
  ...   covrl.kl_cov(selection_source='current'),
  ...   TokenStats(logprobs=-ones, entropy=ones),
  ...   advantages=ones, old_logprobs=-ones, weights=ones, mask=ones > 0)
  >>> sorted(sources)
  ['current']
  """
  sources: set[SelectionSource] = set()

  def trace(
    stats: TokenStats, token_state: PyTree | None, context: TokenContext
  ) -> None:
    cache = _run(token_tx, stats, None, token_state, context)
    sources.update(cache.sources)

  jax.eval_shape(trace, stats, token_state, context)
  return frozenset(sources)


def _run(
  token_tx: optax.GradientTransformation,
  stats: TokenStats,
  signal: TokenStats | None,
  token_state: PyTree | None,
  context: TokenContext,
) -> DecisionCache:
  """The decisions of one update of a token chain."""
  check_token_chain(token_tx, 'explain')
  cache = DecisionCache()
  zeros: TokenStats = jax.tree.map(jnp.zeros_like, stats)
  if token_state is None:
    token_state = token_tx.init(stats.template())
  context = {**context, 'decisions': cache}
  update_signal(
    token_tx, zeros if signal is None else signal, token_state, stats, **context
  )
  return cache
