# SPDX-License-Identifier: Apache-2.0
"""Selectors: which tokens a method touches.

A selector is `(stats, **context) -> Selection`. What it reads may be the
statistics that made `old_logprobs` (`selection_source='old'`: at hand before
any forward, and the same for every number of micro-batches) or the current
ones (`'current'`, as published).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from covrl.entropy.base import (
  MAX_FRACTION,
  Fraction,
  check_fraction,
  check_minimum,
  concrete,
  require,
)
from covrl.entropy.decisions import Selection
from covrl.entropy.exact import count
from covrl.entropy.scores import (
  definition_score,
  exact_score,
  state_score,
  token_covariance,
)
from covrl.entropy.selection import quota, select_random, select_top
from covrl.types import TokenContext, TokenMoments, TokenStats

SCORES = ('batch', 'state', 'exact', 'definition', 'entropy')
SOURCES = ('old', 'current')


def top_score(
  fraction: Fraction,
  *,
  score: str = 'batch',
  signed: bool = True,
  minimum: ArrayLike = 0,
  selection_source: str = 'old',
  allow_large: bool = False,
) -> Callable[..., Selection]:
  """Selects the tokens that take most from the entropy.

  Args:
    fraction: share of the response tokens of the optimiser batch, in
      (0, 0.05]; a number or a schedule of `step`.
    score: `'batch'` (published covariance), `'state'`, `'exact'` (c*) or
      `'definition'`, see `covrl.entropy.scores`; or `'entropy'`, what there is
      to take.
    signed: rank by the score; if false by its absolute value, which also
      picks tokens that raise entropy.
    minimum: smallest number selected; public implementations use 1.
    selection_source: `'old'` or `'current'` statistics.
    allow_large: accept fractions up to 1.
  """
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)
  _check_choices(score, selection_source)

  def select(stats: TokenStats, **context: Any) -> Selection:
    seen = _inputs(stats, _typed(context), score, selection_source)
    ranked = seen.scores if signed else jnp.abs(seen.scores)
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = select_top(
      ranked,
      seen.valid,
      fraction=share,
      sequence_ids=context.get('sequence_ids'),
      positions=context.get('positions'),
      minimum=minimum,
    )
    return _selection(mask, ranked, seen, seen.valid, share, minimum, clamped)

  return select


def top_entropy(
  fraction: Fraction,
  *,
  minimum: ArrayLike = 0,
  selection_source: str = 'old',
) -> Callable[..., Selection]:
  """Selects the tokens of highest entropy: where the text could go elsewhere.

  Args:
    fraction: share of the response tokens of the optimiser batch, in (0, 1].
    minimum: as in `top_score`.
    selection_source: as in `top_score`.
  """
  return top_score(
    fraction,
    score='entropy',
    minimum=minimum,
    selection_source=selection_source,
    allow_large=True,
  )


def all_but(
  selector: Callable[..., Selection],
) -> Callable[..., Selection]:
  """Selects the response tokens that another selector leaves.

  Scores, threshold, quota and eligible are the other's.
  """

  def select(stats: TokenStats, **context: Any) -> Selection:
    kept = selector(stats, **context)
    mask = require(_typed(context), 'mask', 'all_but')
    return kept._replace(mask=mask & ~kept.mask)

  return select


def random_in_band(
  fraction: Fraction,
  low: ArrayLike,
  high: ArrayLike,
  *,
  score: str = 'batch',
  minimum: ArrayLike = 0,
  selection_source: str = 'old',
  allow_large: bool = False,
) -> Callable[..., Selection]:
  """Selects at random among the tokens whose score lies between two bounds.

  The quota is a share of all response tokens; tokens that the loss has clipped
  are not eligible (under `'old'` statistics none is). Reads `key`, `step`
  and token identities from the context.

  Args:
    fraction: as in `top_score`.
    low: scores must be above it.
    high: scores must be below it.
    score: as in `top_score`.
    minimum: as in `top_score`.
    selection_source: as in `top_score`.
    allow_large: as in `top_score`.
  """
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)
  _check_choices(score, selection_source)
  bottom, top = concrete(low), concrete(high)
  if bottom is not None and top is not None and not bottom < top:
    raise ValueError(
      f'low must be below high, got low={bottom:g} and high={top:g}'
    )

  def select(stats: TokenStats, **context: Any) -> Selection:
    seen = _inputs(stats, _typed(context), score, selection_source)
    eligible = seen.valid & (seen.scores > low) & (seen.scores < high)
    if seen.clipped is not None:
      eligible = eligible & ~seen.clipped
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = _draw(eligible, seen.valid, share, minimum, context)
    return _selection(
      mask, seen.scores, seen, eligible, share, minimum, clamped
    )

  return select


def random_tokens(
  fraction: Fraction, *, minimum: ArrayLike = 0, allow_large: bool = False
) -> Callable[..., Selection]:
  """Selects response tokens at random: the control of every other selector."""
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)

  def select(stats: TokenStats, **context: Any) -> Selection:
    seen = _inputs(stats, _typed(context), 'batch', 'old')
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = _draw(seen.valid, seen.valid, share, minimum, context)
    return _selection(
      mask, seen.scores, seen, seen.valid, share, minimum, clamped
    )

  return select


class _Inputs(NamedTuple):
  """What a selector sees: scores and who may be chosen."""

  scores: Float[Array, 'B T']
  valid: Bool[Array, 'B T']
  nonfinite: Int[Array, '']
  clipped: Bool[Array, 'B T'] | None


def _check_choices(score: str, source: str) -> None:
  if score not in SCORES:
    raise ValueError(f'score must be one of {SCORES}, got {score!r}')
  if source not in SOURCES:
    raise ValueError(
      f'selection_source must be one of {SOURCES}, got {source!r}'
    )


def _typed(context: dict[str, Any]) -> TokenContext:
  return cast(TokenContext, context)


def _inputs(
  stats: TokenStats, context: TokenContext, score: str, source: str
) -> _Inputs:
  """Scores from the statistics of the chosen source."""
  advantages = require(context, 'advantages', 'selection')
  mask = require(context, 'mask', 'selection')
  clipped = None
  if source == 'old':
    stats = TokenStats(
      logprobs=require(context, 'old_logprobs', 'selection_source="old"'),
      entropy=stats.entropy
      if score == 'batch'
      else require(context, 'old_entropy', f'score={score!r} at "old"'),
    )
  else:
    clipped = context.get('clipped')
  valid = mask & jnp.isfinite(stats.logprobs) & jnp.isfinite(advantages)
  scores = _score(stats, context, score, source, advantages, valid)
  # A bad entropy or moment shows in the score alone.
  valid = valid & jnp.isfinite(scores)
  scores = jnp.where(valid, scores, 0)
  return _Inputs(scores, valid, count(mask & ~valid), clipped)


def _score(
  stats: TokenStats,
  context: TokenContext,
  score: str,
  source: str,
  advantages: Float[Array, 'B T'],
  valid: Bool[Array, 'B T'],
) -> Float[Array, 'B T']:
  if score == 'batch':
    return token_covariance(stats.logprobs, advantages, valid)
  if score == 'state':
    return state_score(stats, advantages)
  if score == 'definition':
    return definition_score(stats, advantages, valid)
  if score == 'entropy':
    return stats.entropy
  wants = f'score="exact" at "{source}"'
  if source == 'old':
    moments, weight = require(context, 'old_moments', wants), advantages
  else:
    moments = require(context, 'moments', wants)
    weight = require(context, 'score_weight', wants)
  return exact_score(stats, cast(TokenMoments, moments), weight)


def _fraction_now(
  fraction: Fraction, context: dict[str, Any], allow_large: bool
) -> tuple[Array, Int[Array, '']]:
  """The fraction at this step, clamped to its range, and whether it was."""
  value = fraction(context['step']) if callable(fraction) else fraction
  share = jnp.asarray(value, jnp.result_type(float))
  kept = jnp.minimum(share, 1 if allow_large else MAX_FRACTION)
  kept = jnp.where(kept > 0, kept, 0)  # NaN is none
  return kept, (kept != share).astype(jnp.int32)


def _draw(
  eligible: Bool[Array, 'B T'],
  counted: Bool[Array, 'B T'],
  fraction: ArrayLike,
  minimum: ArrayLike,
  context: dict[str, Any],
) -> Bool[Array, 'B T']:
  typed = _typed(context)
  return select_random(
    eligible,
    fraction=fraction,
    key=require(typed, 'key', 'random selection'),
    step=require(typed, 'step', 'random selection'),
    sequence_ids=context.get('sequence_ids'),
    positions=context.get('positions'),
    mask=counted,
    minimum=minimum,
  )


def _selection(
  mask: Bool[Array, 'B T'],
  scores: Float[Array, 'B T'],
  seen: _Inputs,
  eligible: Bool[Array, 'B T'],
  fraction: ArrayLike,
  minimum: ArrayLike,
  clamped: Int[Array, ''],
) -> Selection:
  lowest = jnp.min(jnp.where(mask, scores, jnp.inf), initial=jnp.inf)
  return jax.lax.stop_gradient(
    Selection(
      mask=mask,
      scores=scores,
      threshold=jnp.where(jnp.isfinite(lowest), lowest, 0),
      quota=quota(seen.valid, fraction, minimum),
      eligible=count(eligible),
      nonfinite=seen.nonfinite,
      clamped=clamped,
    )
  )
