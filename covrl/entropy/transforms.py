# SPDX-License-Identifier: Apache-2.0
"""Primitive token transforms: masking, bonuses, penalties, scaling.

They edit the cotangents (g, h) of log π(a) and H: subtracting from h raises the
entropy, adding to g lowers the token's probability.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.array_checks import check_array
from covrl.entropy.base import (
  Coefficient,
  ScheduledState,
  check_coefficient,
  check_form,
  check_token_chain,
  require_entry,
  token_transform,
  where_selected,
  with_coefficient,
)
from covrl.entropy.decisions import DecisionCache, Selection, check_scope
from covrl.entropy.selection import exact_quantile
from covrl.objectives import divergence_gradient
from covrl.statistics.exact import count_true
from covrl.types import (
  Divergence,
  Scalar,
  Scope,
  TokenContext,
  TokenStats,
)

Selector = Callable[..., Selection | Bool[Array, 'B T']]
Reference = Literal['old_logprobs', 'ref_logprobs']

# Two programs' float32 log-probabilities differ by this much from rounding
# alone; a trainer that measures it passes it in the context, as `log_ratio_noise`.
DEAD_ZONE = 1e-6

DIVERGENCES = get_args(Divergence)
REFERENCES = get_args(Reference)


class SelectionSummary(NamedTuple):
  """Counts of a selection, as scalars that are kept in the chain's state.

  Under `scope='micro_batch'` each micro-batch has its own summary, in
  `DecisionCache.micro_batch_decisions`: see `as_batch_summary`.

  Attributes:
    threshold: the lowest chosen score; 0 if no token was chosen.
    quota: number of tokens to choose.
    eligible: number of tokens that could be chosen.
    selected: number of chosen tokens.
    nonfinite: tokens left out because their statistics are not finite.
    clamped: 1 if a traced fraction was outside its range and was clamped.
    positive_likely: chosen tokens of positive advantage whose probability is
      above the median of the batch's tokens.
    positive_rare: chosen tokens of positive advantage, at most the median.
    negative_likely: chosen tokens of negative advantage, above the median.
    negative_rare: chosen tokens of negative advantage, at most the median.
  """

  threshold: Scalar
  quota: Int[Array, '']
  eligible: Int[Array, '']
  selected: Int[Array, '']
  nonfinite: Int[Array, '']
  clamped: Int[Array, '']
  positive_likely: Int[Array, '']
  positive_rare: Int[Array, '']
  negative_likely: Int[Array, '']
  negative_rare: Int[Array, '']

  def as_batch_summary(self, num_micro_batches: int) -> 'SelectionSummary':
    """The batch's summary, if this one is the sum of the micro-batches'.

    Counts are those of the optimiser batch; the threshold is the mean over
    micro-batches.
    """
    return self._replace(threshold=self.threshold / num_micro_batches)


class TokenMaskedState(NamedTuple):
  """State of `token_masked`.

  Attributes:
    inner_state: state of the transform that is applied.
    updates: number of updates so far, int32.
    summary: summary of the last selection.
  """

  inner_state: PyTree
  updates: Int[Array, '']
  summary: SelectionSummary


class DivergencePenaltyState(NamedTuple):
  """State of a penalty on the divergence from the rollout's policy.

  Attributes:
    schedule: state of the coefficient's schedule.
    coefficient: the last value used, a scalar.
  """

  schedule: PyTree
  coefficient: jax.Array


def token_masked(
  inner: optax.GradientTransformation,
  selector: Selector,
  *,
  scope: Scope = 'batch',
) -> optax.GradientTransformationExtraArgs:
  """Applies a token transform to the selected tokens and leaves the others.

  Like `optax.masked`, over tokens instead of leaves.

  Args:
    inner: a token transform, or any elementwise optax transformation
      (`optax.set_to_zero()` detaches, `optax.scale(0.5)` damps).
    selector: `(stats, **context) -> mask`, bool `[B, T]` or a `Selection`. A
      trainer selects on the statistics that made `old_logprobs`; a selector
      that needs current ones calls `context['decisions'].sources.add('current')`.
    scope: `'batch'` selects once for the whole optimiser batch, `'micro_batch'`
      anew in each micro-batch, as public implementations do.

  Returns:
    A token transform; its state holds a `SelectionSummary`.

  >>> surprising = lambda stats, **_: stats.logprobs < -3
  >>> tx = token_masked(optax.set_to_zero(), surprising)
  >>> stats = TokenStats(
  ...     logprobs=jnp.array([[-1.0, -4.0]]), entropy=jnp.zeros((1, 2)))
  >>> tx.update(stats, tx.init(TokenStats.template()), stats)[0].logprobs
  Array([[-1.,  0.]], dtype=float32)
  """
  check_scope(scope)
  check_token_chain(inner, 'token_masked')
  if not callable(selector):
    raise TypeError(f'selector must be a function, got {selector!r}')
  # optax types its params as arrays; here they are statistics.
  tx = cast(Any, optax.with_extra_args_support(inner))

  def init(params: PyTree) -> TokenMaskedState:
    return TokenMaskedState(
      tx.init(params), jnp.zeros((), jnp.int32), empty_summary()
    )

  def update(
    updates: TokenStats,
    state: TokenMaskedState,
    stats: TokenStats,
    context: TokenContext,
  ) -> tuple[TokenStats, TokenMaskedState]:
    decisions = DecisionCache.of(context)
    selector_context: TokenContext = {'step': state.updates, **context}
    selection = decisions.decide(
      'selection',
      lambda: _select(selector, jax.lax.stop_gradient(stats), selector_context),
      scope,
    )
    selected = selection.mask & context.get('selected', True)
    inner_context: TokenContext = {**context, 'selected': selected}
    edited, inner_state = tx.update(
      updates, state.inner_state, stats, **inner_context
    )
    check_form('the transform of token_masked', edited, updates)
    summary = decisions.decide(
      'summary', lambda: summarize(selection, stats, context), scope
    )
    return (
      where_selected(selected, edited, updates),
      TokenMaskedState(inner_state, state.updates + 1, summary),
    )

  return token_transform('token_masked', init, update)


def add_entropy_bonus(
  coefficient: Coefficient,
) -> optax.GradientTransformationExtraArgs:
  """Adds an entropy bonus: h −= coefficient · weights.

  The cotangent of the loss term −coefficient · Σ weights · H.

  Args:
    coefficient: in advantage units per nat; a number, schedule or controller.
  """
  check_coefficient(coefficient)

  def edit(
    updates: TokenStats,
    stats: TokenStats,
    value: ArrayLike,
    context: TokenContext,
  ) -> TokenStats:
    del stats
    weights = require_entry(context, 'weights', 'add_entropy_bonus')
    return dataclasses.replace(
      updates,
      entropy=_add(updates.entropy, -jnp.asarray(value) * weights),
    )

  return with_coefficient('add_entropy_bonus', coefficient, edit)


def add_divergence_penalty(
  coefficient: Coefficient,
  divergence: Divergence = 'abs',
  *,
  dead_zone: ArrayLike | None = None,
  reference: Reference = 'old_logprobs',
  predict_effect: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Adds a divergence penalty: g += coefficient · weights · ∂D/∂log π.

  Args:
    coefficient: a number, schedule or controller.
    divergence: estimator D of the divergence from the reference, of
      r = log π − log π_ref: `'abs'` |r| (published), `'k1'`, `'k2'` r²/2,
      `'k3'`, or `'full'`, the full KL in the `divergence` leaf of the
      statistics.
    dead_zone: nats; |r| up to this value has no gradient under `'abs'`, since
      its sign is rounding noise. Defaults to the context's `log_ratio_noise`,
      else 1e-6.
    reference: context entry with the log-probabilities of the reference,
      `'old_logprobs'` or `'ref_logprobs'`.
    predict_effect: whether a controller may predict the penalty's effect. A
      trainer that decides on the old policy's statistics, from which the
      divergence is 0, would predict an effect of 0.

  Raises:
    ValueError: if the coefficient or the dead zone is negative, or an option
      is unknown.
  """
  check_coefficient(coefficient)
  if dead_zone is not None:
    check_coefficient(dead_zone, 'dead_zone')
  if reference not in REFERENCES:
    raise ValueError(
      f'reference must be one of {REFERENCES}, got {reference!r}'
    )
  if divergence not in DIVERGENCES:
    raise ValueError(
      f'divergence must be one of {DIVERGENCES}, got {divergence!r}'
    )

  def edit(
    updates: TokenStats,
    stats: TokenStats,
    value: ArrayLike,
    context: TokenContext,
  ) -> TokenStats:
    weights = require_entry(context, 'weights', 'add_divergence_penalty')
    scale = jnp.asarray(value) * weights
    if divergence == 'full':
      return _add_full_divergence(updates, stats, scale)
    reference_logprobs = require_entry(
      context, reference, 'add_divergence_penalty'
    )
    default_zone = context.get('log_ratio_noise', DEAD_ZONE)
    gradient = divergence_gradient(
      jnp.where(weights != 0, stats.logprobs - reference_logprobs, 0),
      divergence,
      dead_zone=jnp.asarray(default_zone if dead_zone is None else dead_zone),
    )
    return dataclasses.replace(
      updates, logprobs=_add(updates.logprobs, scale * gradient)
    )

  return with_coefficient(
    'add_divergence_penalty',
    coefficient,
    edit,
    DivergencePenaltyState if reference == 'old_logprobs' else ScheduledState,
    # Predictions read the cotangents of log π(a) and H only, not of the full KL.
    is_predictable=predict_effect and divergence != 'full',
  )


def scale_by_token(
  name: str,
  factor: Callable[..., Float[Array, 'B T']],
  init: Callable[[Any], PyTree] = optax.init_empty_state,
) -> optax.GradientTransformationExtraArgs:
  """Multiplies both cotangents by a per-token factor.

  Args:
    name: name of the transform, for its errors.
    factor: `(stats, **context) -> [B, T]`; its gradient is not taken.
    init: returns the state, which updates do not change.
  """

  def update(
    updates: TokenStats,
    state: PyTree,
    stats: TokenStats,
    context: TokenContext,
  ) -> tuple[TokenStats, PyTree]:
    factors = factor(jax.lax.stop_gradient(stats), **context)
    check_array(
      f'the factor of {name}', factors, 'real', 'B T', stats.logprobs.shape
    )
    return jax.tree.map(lambda u: (u * factors).astype(u.dtype), updates), state

  return token_transform(name, init, update)


def _add(
  updates: Float[Array, 'B T'], change: Float[Array, 'B T']
) -> Float[Array, 'B T']:
  """Adds to a cotangent without changing its dtype."""
  return (updates + change).astype(updates.dtype)


def _add_full_divergence(
  updates: TokenStats, stats: TokenStats, scale: Float[Array, 'B T']
) -> TokenStats:
  """Adds the cotangent of a penalty on the full KL of each token."""
  if stats.divergence is None or updates.divergence is None:
    raise TypeError(
      'TokenStats.divergence must be the full KL of each token with '
      "divergence='full', got None"
    )
  return dataclasses.replace(
    updates, divergence=_add(updates.divergence, scale)
  )


def _select(
  selector: Selector, stats: TokenStats, context: TokenContext
) -> Selection:
  """Calls a selector and turns a plain mask into a `Selection`."""
  selection = selector(stats, **context)
  is_mask = not isinstance(selection, Selection)
  mask = selection if is_mask else selection.mask
  check_array(
    "the selector's mask", mask, 'bool', 'B T', jnp.shape(stats.logprobs)
  )
  if is_mask:
    selection = Selection.of_mask(jnp.asarray(mask))
  return jax.lax.stop_gradient(selection)


def empty_summary() -> SelectionSummary:
  """The summary before the first selection."""
  zero = jnp.zeros((), jnp.int32)
  counts = dict.fromkeys(SelectionSummary._fields, zero)
  return SelectionSummary(**{**counts, 'threshold': jnp.zeros(())})


def summarize(
  selection: Selection, stats: TokenStats, context: TokenContext
) -> SelectionSummary:
  """Counts the selected tokens by sign of advantage and by probability."""
  chosen = selection.mask
  logprobs = context.get('old_logprobs', stats.logprobs)
  mask = context.get('mask', jnp.ones_like(chosen))
  finite = mask & jnp.isfinite(logprobs)
  likely = logprobs > exact_quantile(logprobs, finite, 0.5)
  sign = jnp.sign(context.get('advantages', jnp.zeros(chosen.shape)))
  return SelectionSummary(
    threshold=selection.threshold.astype(jnp.float32),
    quota=selection.quota,
    eligible=selection.eligible,
    selected=count_true(chosen),
    nonfinite=selection.nonfinite,
    clamped=selection.clamped,
    positive_likely=count_true(chosen & (sign > 0) & likely),
    positive_rare=count_true(chosen & (sign > 0) & ~likely),
    negative_likely=count_true(chosen & (sign < 0) & likely),
    negative_rare=count_true(chosen & (sign < 0) & ~likely),
  )
