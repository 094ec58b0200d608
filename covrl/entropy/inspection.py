# SPDX-License-Identifier: Apache-2.0
"""Inspection of token chains: their selections, and the statistics they read."""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from covrl.entropy.base import check_token_chain, update_signal
from covrl.entropy.decisions import DecisionCache, Selection
from covrl.statistics import Truncation
from covrl.types import (
  SelectionSource,
  TokenContext,
  TokenMoments,
  TokenStats,
)


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


def required_truncation(token_tx: optax.GradientTransformation) -> Truncation:
  """Determines the truncated policies whose statistics a token chain reads.

  The chain is traced on a single token and not computed.

  Args:
    token_tx: a token chain.

  Raises:
    ValueError: if two of its transforms need different truncations.

  >>> import covrl
  >>> required_truncation(optax.chain(covrl.lp_reg(), covrl.kl_cov()))
  Truncation(min_p=0.02, removed=None)
  """
  truncations: set[Truncation] = set()

  def trace(stats: TokenStats, context: TokenContext) -> None:
    truncations.update(_run(token_tx, stats, None, None, context).truncations)

  jax.eval_shape(trace, *single_token())
  return Truncation(
    min_p=_single_number(
      'min_p', {truncation.min_p for truncation in truncations}
    ),
    removed=_single_number(
      'removed', {truncation.removed for truncation in truncations}
    ),
  )


def _single_number(name: str, numbers: set[float | None]) -> float | None:
  """The only number of a set, `None` without one."""
  known = sorted(number for number in numbers if number is not None)
  if len(known) > 1:
    raise ValueError(
      f'the transforms of a token chain must have the same {name}, got '
      f'{known[0]:g} and {known[1]:g}'
    )
  return known[0] if known else None


def single_token() -> tuple[TokenStats, TokenContext]:
  """Returns the statistics and the whole context of one token."""
  floats, integers = jnp.ones((1, 1)), jnp.ones((1, 1), jnp.int32)
  scalar, bools = jnp.ones(()), jnp.ones((1, 1), bool)
  moments = TokenMoments(
    square=floats,
    square_log=floats,
    square_log_square=floats,
    filtered_logprobs=floats,
  )
  return TokenStats(
    logprobs=floats, entropy=floats, divergence=floats, top_entropy=floats
  ), TokenContext(
    advantages=floats,
    old_logprobs=floats,
    old_entropy=floats,
    old_moments=moments,
    mask=bools,
    weights=floats,
    segment_ids=integers,
    sequence_ids=integers,
    positions=integers,
    step=integers[0, 0],
    key=jax.random.key(0),
    moments=moments,
    sampler_logprobs=floats,
    ref_logprobs=floats,
    entropy=scalar,
    score_weight=floats,
    clipped=bools,
    entropy_change=scalar,
    log_ratio_noise=scalar,
  )


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
