# SPDX-License-Identifier: Apache-2.0
"""Primitive token transforms: verbs about the cotangents (g, h).

g is the cotangent of log π(a) and h that of H, so a transform that subtracts
from h pushes entropy up, and one that adds to g pushes the token down.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.entropy.base import (
  Coefficient,
  ScheduledState,
  check_coefficient,
  on_tokens,
  require,
  require_stats,
  token_transform,
  with_coefficient,
)
from covrl.entropy.decisions import Plan, Selection, check_scope
from covrl.entropy.exact import count
from covrl.entropy.selection import exact_quantile
from covrl.objectives import divergence_gradient
from covrl.types import Scalar, TokenContext, TokenStats

Selector = Callable[..., Selection | Bool[Array, 'B T']]

# Two programs' float32 log-probabilities differ by this much from rounding
# alone; a trainer that measures the difference passes it in the context.
DEAD_ZONE = 1e-6

DIVERGENCES = ('abs', 'k1', 'k2', 'k3', 'full')
REFERENCES = ('old_logprobs', 'ref_logprobs')


class SelectionSummary(NamedTuple):
  """What a selection came to, in scalars, kept in the chain's state.

  The quadrants count selected tokens by the sign of their advantage and by
  whether they were above (`likely`) or below (`rare`) the median probability
  of the batch's tokens.

  Under `scope='micro_batch'` each micro-batch has its own, in `Plan.local`:
  see `of_parts`.
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

  def of_parts(self, count: int) -> 'SelectionSummary':
    """What the micro-batches' summaries, added up field by field, come to.

    Counts are those of the optimiser batch; the threshold is the mean of the
    micro-batches'.
    """
    return self._replace(threshold=self.threshold / count)


class TokenMaskedState(NamedTuple):
  """State of `token_masked`.

  Attributes:
    inner_state: of the transform that is applied.
    updates: how many there have been, int32.
    summary: of the last selection.
  """

  inner_state: PyTree
  updates: Int[Array, '']
  summary: SelectionSummary


class DivergencePenaltyState(NamedTuple):
  """State of a penalty on the distance from the rollout's policy."""

  schedule: PyTree
  coefficient: jax.Array


def token_masked(
  inner: optax.GradientTransformation,
  selector: Selector,
  *,
  scope: str = 'batch',
) -> optax.GradientTransformationExtraArgs:
  """Applies a token transform to the selected tokens and leaves the others.

  What `optax.masked` does over leaves, over tokens.

  Args:
    inner: a token transform, or any elementwise optax transformation
      (`optax.set_to_zero()` detaches, `optax.scale(0.5)` damps).
    selector: `(stats, **context) -> mask`, bool `[B, T]` or a `Selection`.
    scope: `'batch'`, selected once for the whole optimiser batch, or
      `'micro_batch'`, anew in each micro-batch as public implementations do.

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
  # optax types its params as arrays; here they are statistics.
  tx = cast(Any, optax.with_extra_args_support(inner))

  def init(params: PyTree) -> TokenMaskedState:
    return TokenMaskedState(
      tx.init(params), jnp.zeros((), jnp.int32), empty_summary()
    )

  def update(
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **context: Any,
  ) -> tuple[PyTree, PyTree]:
    stats = require_stats(params, 'token_masked')
    here = Plan.of(context, scope)
    counted = {'step': state.updates, **context}
    selection = here.decide(
      lambda: _select(selector, jax.lax.stop_gradient(stats), counted)
    )
    selected = selection.mask & context.get('selected', True)
    edited, inner_state = tx.update(
      updates, state.inner_state, params, **(context | {'selected': selected})
    )
    updates = on_tokens(selected, edited, updates)
    summary = here.decide(lambda: summarize(selection, stats, context))
    return updates, TokenMaskedState(inner_state, state.updates + 1, summary)

  return token_transform(init, update)


def add_entropy_bonus(
  coefficient: Coefficient,
) -> optax.GradientTransformationExtraArgs:
  """Rewards entropy: h −= coefficient · weights.

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
    weights = require(context, 'weights', 'add_entropy_bonus')
    return dataclasses.replace(
      updates,
      entropy=_add(updates.entropy, -jnp.asarray(value) * weights),
    )

  return with_coefficient('add_entropy_bonus', coefficient, edit)


def add_divergence_penalty(
  coefficient: Coefficient,
  divergence: str = 'abs',
  *,
  dead_zone: ArrayLike | None = None,
  reference: str = 'old_logprobs',
  foresee: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """Holds tokens near where they were: g += coefficient · weights · ∂D/∂log π.

  Args:
    coefficient: a number, schedule or controller.
    divergence: estimator D of the divergence from the reference, of
      r = log π − log π_ref: `'abs'` |r| (published), `'k1'`, `'k2'` r²/2,
      `'k3'`, or `'full'`, the full KL in the `divergence` leaf of the
      statistics.
    dead_zone: nats; |r| up to here has no gradient under `'abs'`, since its
      sign is rounding noise. Defaults to the context's `log_ratio_noise`, else
      1e-6.
    reference: which log-probabilities of the context, `'old_logprobs'` or
      `'ref_logprobs'`.
    foresee: whether a controller may predict the penalty's effect. A trainer
      that decides on the old policy's statistics, to which the distance is 0,
      would predict none.

  Raises:
    ValueError: if the coefficient or the dead zone is negative, or a choice
      unknown.
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
    weights = require(context, 'weights', 'add_divergence_penalty')
    scale = jnp.asarray(value) * weights
    if divergence == 'full':
      return _add_full_divergence(updates, stats, scale)
    old = require(context, reference, 'add_divergence_penalty')
    zone = context.get('log_ratio_noise', DEAD_ZONE)
    pull = divergence_gradient(
      jnp.where(weights != 0, stats.logprobs - old, 0),
      divergence,
      dead_zone=jnp.asarray(zone if dead_zone is None else dead_zone),
    )
    return dataclasses.replace(
      updates, logprobs=_add(updates.logprobs, scale * pull)
    )

  return with_coefficient(
    'add_divergence_penalty',
    coefficient,
    edit,
    DivergencePenaltyState if reference == 'old_logprobs' else ScheduledState,
    # The full divergence has no cotangent on log π(a) and H to foresee by.
    foresee=foresee and divergence != 'full',
  )


def scale_by_token(
  name: str, factor: Callable[..., Float[Array, 'B T']]
) -> optax.GradientTransformationExtraArgs:
  """Multiplies both cotangents by a per-token factor.

  Args:
    name: of the transform, for its errors.
    factor: `(stats, **context) -> [B, T]`; its gradient is not taken.
  """

  def update(
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **context: Any,
  ) -> tuple[PyTree, PyTree]:
    stats = jax.lax.stop_gradient(require_stats(params, name))
    by = factor(stats, **context)
    return jax.tree.map(lambda u: (u * by).astype(u.dtype), updates), state

  return token_transform(optax.init_empty_state, update)


def _add(
  updates: Float[Array, 'B T'], change: Float[Array, 'B T']
) -> Float[Array, 'B T']:
  """Adds to a cotangent, which keeps its dtype."""
  return (updates + change).astype(updates.dtype)


def _add_full_divergence(
  updates: TokenStats, stats: TokenStats, scale: Float[Array, 'B T']
) -> TokenStats:
  if stats.divergence is None or updates.divergence is None:
    raise TypeError(
      "divergence='full' needs the full KL of each token in "
      'TokenStats.divergence, which these statistics do not carry'
    )
  return dataclasses.replace(
    updates, divergence=_add(updates.divergence, scale)
  )


def _select(
  selector: Selector, stats: TokenStats, context: dict[str, Any]
) -> Selection:
  """Calls a selector, whichever of its two kinds of answer it gives."""
  answer = selector(stats, **context)
  if not isinstance(answer, Selection):
    answer = Selection.of_mask(answer)
  return jax.lax.stop_gradient(answer)


def empty_summary() -> SelectionSummary:
  """Before the first selection."""
  zero = jnp.zeros((), jnp.int32)
  counts = dict.fromkeys(SelectionSummary._fields, zero)
  return SelectionSummary(**{**counts, 'threshold': jnp.zeros(())})


def summarize(
  selection: Selection, stats: TokenStats, context: dict[str, Any]
) -> SelectionSummary:
  """Counts what was selected."""
  chosen = selection.mask
  logprobs = context.get('old_logprobs', stats.logprobs)
  everything = context.get('mask', jnp.ones_like(chosen))
  likely = logprobs > exact_quantile(logprobs, everything, 0.5)
  sign = jnp.sign(context.get('advantages', jnp.zeros(chosen.shape)))
  return SelectionSummary(
    threshold=selection.threshold.astype(jnp.float32),
    quota=selection.quota,
    eligible=selection.eligible,
    selected=count(chosen),
    nonfinite=selection.nonfinite,
    clamped=selection.clamped,
    positive_likely=count(chosen & (sign > 0) & likely),
    positive_rare=count(chosen & (sign > 0) & ~likely),
    negative_likely=count(chosen & (sign < 0) & likely),
    negative_rare=count(chosen & (sign < 0) & ~likely),
  )
