# SPDX-License-Identifier: Apache-2.0
"""Selectors: functions that choose the tokens a method acts on.

A selector is `(stats, **context) -> Selection`. It reads either the statistics
that made `old_logprobs` (`selection_source='old'`: available before any forward
pass, and the same for every number of micro-batches) or the current ones
(`'current'`, as published).
"""

from collections.abc import Callable
from typing import NamedTuple, Unpack, cast, get_args

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, concrete_array, concrete_number
from covrl.entropy.base import (
  MAX_FRACTION,
  Fraction,
  check_fraction,
  check_minimum,
  require_entry,
)
from covrl.entropy.decisions import DecisionCache, Selection
from covrl.entropy.scores import (
  definition_score,
  exact_score,
  state_score,
  token_covariance,
)
from covrl.entropy.selection import quota, select_random, select_top
from covrl.statistics.exact import count_true
from covrl.types import (
  Score,
  SelectionSource,
  TokenContext,
  TokenMoments,
  TokenStats,
)

SCORES = get_args(Score)
SOURCES = get_args(SelectionSource)


def top_score(
  fraction: Fraction,
  *,
  score: Score = 'batch',
  signed: bool = True,
  minimum: ArrayLike = 0,
  selection_source: SelectionSource = 'old',
  allow_large: bool = False,
) -> Callable[..., Selection]:
  """Selects the tokens whose update lowers the entropy most.

  Args:
    fraction: share of the response tokens of the optimiser batch, in
      (0, 0.05]; a number or a schedule of `step`.
    score: `'batch'` (published covariance), `'state'`, `'exact'` (c*) or
      `'definition'`, see `covrl.entropy.scores`; or `'entropy'`, the entropy
      itself.
    signed: rank by the score; if false by its absolute value, which also
      selects tokens that raise the entropy.
    minimum: smallest number selected; public implementations use 1.
    selection_source: `'old'` or `'current'` statistics.
    allow_large: accept fractions up to 1.
  """
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)
  _check_options(score, selection_source)

  def select(stats: TokenStats, **context: Unpack[TokenContext]) -> Selection:
    inputs = _inputs(stats, context, score, selection_source)
    scores = inputs.scores if signed else jnp.abs(inputs.scores)
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = select_top(
      scores,
      inputs.valid,
      fraction=share,
      sequence_ids=context.get('sequence_ids'),
      positions=context.get('positions'),
      minimum=minimum,
    )
    return _selection(
      mask, scores, inputs, inputs.valid, share, minimum, clamped
    )

  return select


def top_entropy(
  fraction: Fraction,
  *,
  minimum: ArrayLike = 0,
  selection_source: SelectionSource = 'old',
) -> Callable[..., Selection]:
  """Selects the tokens of highest entropy.

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
  """Selects the response tokens that another selector does not select.

  Scores, threshold, quota and eligible are those of the other selector.
  """

  def select(stats: TokenStats, **context: Unpack[TokenContext]) -> Selection:
    excluded = selector(stats, **context)
    mask = require_entry(context, 'mask', 'all_but')
    return excluded._replace(mask=mask & ~excluded.mask)

  return select


def random_in_band(
  fraction: Fraction,
  low: ArrayLike,
  high: ArrayLike,
  *,
  score: Score = 'batch',
  minimum: ArrayLike = 0,
  selection_source: SelectionSource = 'old',
  allow_large: bool = False,
) -> Callable[..., Selection]:
  """Selects at random among the tokens whose score lies between two bounds.

  The quota is a share of all response tokens; tokens that the loss has clipped
  are not eligible (under `'old'` statistics no token is clipped). Reads `key`,
  `step` and token identities from the context.

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
  _check_options(score, selection_source)
  low_number, high_number = (
    concrete_number(bound, name, allow_schedule=False)
    for name, bound in (('low', low), ('high', high))
  )
  if (
    low_number is not None
    and high_number is not None
    and not low_number < high_number
  ):
    raise ValueError(
      f'low must be below high, got low={low_number:g} and high={high_number:g}'
    )

  def select(stats: TokenStats, **context: Unpack[TokenContext]) -> Selection:
    inputs = _inputs(stats, context, score, selection_source)
    eligible = inputs.valid & (inputs.scores > low) & (inputs.scores < high)
    if inputs.clipped is not None:
      eligible = eligible & ~inputs.clipped
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = _draw(eligible, inputs.valid, share, minimum, context)
    return _selection(
      mask, inputs.scores, inputs, eligible, share, minimum, clamped
    )

  return select


def random_tokens(
  fraction: Fraction, *, minimum: ArrayLike = 0, allow_large: bool = False
) -> Callable[..., Selection]:
  """Selects response tokens at random, as a baseline for other selectors."""
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)

  def select(stats: TokenStats, **context: Unpack[TokenContext]) -> Selection:
    inputs = _inputs(stats, context, 'batch', 'old')
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = _draw(inputs.valid, inputs.valid, share, minimum, context)
    return _selection(
      mask, inputs.scores, inputs, inputs.valid, share, minimum, clamped
    )

  return select


def rarest_negative(
  fraction: Fraction,
  *,
  minimum: ArrayLike = 0,
  selection_source: SelectionSource = 'old',
  allow_large: bool = False,
) -> Callable[..., Selection]:
  """Selects the least likely of the tokens with a negative advantage.

  Args:
    fraction: share of the optimiser batch's tokens of negative advantage.
    minimum: as in `top_score`.
    selection_source: as in `top_score`.
    allow_large: as in `top_score`.
  """
  check_fraction(fraction, allow_large=allow_large)
  check_minimum(minimum)
  _check_options('batch', selection_source)

  def select(stats: TokenStats, **context: Unpack[TokenContext]) -> Selection:
    inputs = _inputs(stats, context, 'batch', selection_source)
    logprobs = stats.logprobs
    if selection_source == 'old':
      logprobs = require_entry(
        context, 'old_logprobs', 'selection_source="old"'
      )
    is_negative = require_entry(context, 'advantages', 'selection') < 0
    valid = inputs.valid & is_negative
    scores = jnp.where(valid, -logprobs, 0)
    inputs = inputs._replace(valid=valid, scores=scores)
    share, clamped = _fraction_now(fraction, context, allow_large)
    mask = select_top(
      scores,
      valid,
      fraction=share,
      sequence_ids=context.get('sequence_ids'),
      positions=context.get('positions'),
      minimum=minimum,
    )
    return _selection(mask, scores, inputs, valid, share, minimum, clamped)

  return select


class _SelectorInputs(NamedTuple):
  """Scores of tokens, and the tokens that may be selected.

  Attributes:
    scores: score of each token.
    valid: response tokens with a finite score.
    nonfinite: number of response tokens with another score.
    clipped: tokens that the loss has clipped; `None` if they are not read.
  """

  scores: Float[Array, 'B T']
  valid: Bool[Array, 'B T']
  nonfinite: Int[Array, '']
  clipped: Bool[Array, 'B T'] | None


def _check_options(score: Score, source: SelectionSource) -> None:
  """Refuses an unknown score or selection source."""
  if score not in SCORES:
    raise ValueError(f'score must be one of {SCORES}, got {score!r}')
  if source not in SOURCES:
    raise ValueError(
      f'selection_source must be one of {SOURCES}, got {source!r}'
    )


def _inputs(
  stats: TokenStats,
  context: TokenContext,
  score: Score,
  source: SelectionSource,
) -> _SelectorInputs:
  """Scores from the statistics of the given source."""
  DecisionCache.of(context).sources.add(source)
  advantages = require_entry(context, 'advantages', 'selection')
  mask = require_entry(context, 'mask', 'selection')
  clipped = None
  if source == 'old':
    stats = TokenStats(
      logprobs=require_entry(context, 'old_logprobs', 'selection_source="old"'),
      entropy=stats.entropy
      if score == 'batch'
      else require_entry(context, 'old_entropy', f'score={score!r} at "old"'),
    )
  else:
    clipped = context.get('clipped')
  valid = mask & jnp.isfinite(stats.logprobs) & jnp.isfinite(advantages)
  scores = _score(stats, context, score, source, advantages, valid)
  # An entropy or moment that is not finite shows in the score alone.
  valid = valid & jnp.isfinite(scores)
  scores = jnp.where(valid, scores, 0)
  return _SelectorInputs(scores, valid, count_true(mask & ~valid), clipped)


def _score(
  stats: TokenStats,
  context: TokenContext,
  score: Score,
  source: SelectionSource,
  advantages: Float[Array, 'B T'],
  valid: Bool[Array, 'B T'],
) -> Float[Array, 'B T']:
  """The score of each token that the option `score` names."""
  if score == 'batch':
    return token_covariance(stats.logprobs, advantages, valid)
  if score == 'state':
    return state_score(stats, advantages)
  if score == 'definition':
    return definition_score(stats, advantages, valid)
  if score == 'entropy':
    return stats.entropy
  reader = f'score="exact" at "{source}"'
  if source == 'old':
    moments, weight = require_entry(context, 'old_moments', reader), advantages
  else:
    moments = require_entry(context, 'moments', reader)
    weight = require_entry(context, 'score_weight', reader)
  return exact_score(stats, cast(TokenMoments, moments), weight)


def _fraction_now(
  fraction: Fraction, context: TokenContext, allow_large: bool
) -> tuple[Array, Int[Array, '']]:
  """The fraction at this step, clamped to its range, and 1 if it was clamped."""
  if callable(fraction):
    value = fraction(require_entry(context, 'step', 'a scheduled fraction'))
    check_array('a scheduled fraction', value, 'real', '')
  else:
    value = fraction
  share = jnp.asarray(value, jnp.result_type(float))
  largest = 1.0 if allow_large else MAX_FRACTION
  if callable(fraction) or concrete_array(fraction) is None:
    DecisionCache.of(context).record_scheduled('fraction', share, largest)
  clamped = jnp.minimum(share, largest)
  clamped = jnp.where(clamped > 0, clamped, 0)  # NaN becomes 0.
  return clamped, (clamped != share).astype(jnp.int32)


def _draw(
  eligible: Bool[Array, 'B T'],
  counted: Bool[Array, 'B T'],
  fraction: ArrayLike,
  minimum: ArrayLike,
  context: TokenContext,
) -> Bool[Array, 'B T']:
  """Draws from the eligible tokens; `fraction` is of the `counted` tokens."""
  return select_random(
    eligible,
    fraction=fraction,
    key=require_entry(context, 'key', 'random selection'),
    step=require_entry(context, 'step', 'random selection'),
    sequence_ids=context.get('sequence_ids'),
    positions=context.get('positions'),
    mask=counted,
    minimum=minimum,
  )


def _selection(
  mask: Bool[Array, 'B T'],
  scores: Float[Array, 'B T'],
  inputs: _SelectorInputs,
  eligible: Bool[Array, 'B T'],
  fraction: ArrayLike,
  minimum: ArrayLike,
  clamped: Int[Array, ''],
) -> Selection:
  """A `Selection` of the chosen tokens (`mask`), with its threshold and counts."""
  lowest = jnp.min(jnp.where(mask, scores, jnp.inf), initial=jnp.inf)
  return jax.lax.stop_gradient(
    Selection(
      mask=mask,
      scores=scores,
      threshold=jnp.where(jnp.isfinite(lowest), lowest, 0),
      quota=quota(inputs.valid, fraction, minimum),
      eligible=count_true(eligible),
      nonfinite=inputs.nonfinite,
      clamped=clamped,
    )
  )
