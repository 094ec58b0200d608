# SPDX-License-Identifier: Apache-2.0
"""Detachment of the tokens that lower the entropy most, up to an amount."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PyTree

from covrl.array_checks import check_array
from covrl.entropy.base import (
  Coefficient,
  as_schedule,
  check_coefficient,
  is_step_schedule,
  require_entry,
  token_transform,
)
from covrl.entropy.decisions import DecisionCache, Selection
from covrl.entropy.methods.covariance import TokenTransformation
from covrl.entropy.prediction import (
  EntropyPrediction,
  raw_entropy_change,
  token_sum,
)
from covrl.entropy.transforms import (
  SelectionSummary,
  empty_summary,
  summarize,
)
from covrl.statistics.exact import count_true, exact_sum, float_key
from covrl.types import TokenContext, TokenStats


class DetachDrainState(NamedTuple):
  """State of `detach_drain`.

  Attributes:
    schedule: state of the amount's schedule.
    coefficient: the last amount.
    summary: summary of the last selection; its threshold is the lowest drain of
      a detached token.
  """

  schedule: PyTree
  coefficient: jax.Array
  summary: SelectionSummary


def detach_drain(amount: Coefficient) -> TokenTransformation:
  """Removes the gradient of the tokens that lower (drain) the entropy most.

    drain = −[g (π(a) f(a) − κ) − h Σπ² f²]      f = log π + H,  κ = Σπ² f
    g, h × (1 − share),   Σ share · drain = amount

  Shares are 1 on the shortest prefix in descending order of drain, fractional on
  the next token (or the tokens of equal drain) so that the sum is exact, and 0
  on the others. For a policy gradient the drain is `weights` times
  `exact_score`. Reads `moments`.

  Args:
    amount: first-order entropy to preserve per unit of step size, in nats; a
      number, schedule or controller. A `target_entropy` sets it from the
      formula ΔH = −η Σ drain.

  Raises:
    ValueError: if the amount is negative.

  References:
    The derivation is this project's: first-order expansion of the entropy in
    the logits of each token.

  >>> import covrl
  >>> tx = detach_drain(0.15)
  >>> stats, moments = covrl.token_stats_from_logits(
  ...   jnp.log(jnp.array([[[0.6, 0.4], [0.6, 0.4], [0.9, 0.1]]])),
  ...   jnp.zeros((1, 3), int), moments=True)
  >>> signal = covrl.TokenStats(
  ...   logprobs=-jnp.array([[2.0, 1.0, 1.0]]), entropy=jnp.zeros((1, 3)))
  >>> edited, _ = tx.update(
  ...   signal, tx.init(stats.template()), stats, moments=moments)
  >>> edited.logprobs.round(2)
  Array([[-0.07, -1.  , -1.  ]], dtype=float32)
  """
  check_coefficient(amount, 'amount')
  schedule = as_schedule(amount)

  def init(params: PyTree) -> DetachDrainState:
    del params
    return DetachDrainState(
      schedule.init(), jnp.zeros((), jnp.float32), empty_summary()
    )

  def update(
    updates: TokenStats,
    state: DetachDrainState,
    stats: TokenStats,
    context: TokenContext,
  ) -> tuple[TokenStats, DetachDrainState]:
    stats = jax.lax.stop_gradient(stats)
    moments = require_entry(context, 'moments', 'detach_drain')
    decisions = DecisionCache.of(context)
    change = raw_entropy_change(updates, stats, moments)
    is_known = jnp.isfinite(change)
    drain = jnp.where(is_known, -change, 0)
    unknown = context.get('mask', jnp.ones_like(is_known)) & ~is_known
    prediction = decisions.decide(
      'prediction',
      lambda: EntropyPrediction.of_arrays(
        drift=-token_sum(drain),
        effect=1.0,
        limit=token_sum(jnp.maximum(drain, 0)),
      ),
    )
    schedule_context = {**context, 'entropy_prediction': lambda: prediction}
    amount_now = schedule(state.schedule, **schedule_context)
    if is_step_schedule(amount):
      decisions.record_scheduled('amount', amount_now)
    check_array('the amount of detach_drain', amount_now, 'real', '')
    share = decisions.decide('share', lambda: prefix_share(drain, amount_now))
    selection = decisions.decide(
      'selection', lambda: _selection(drain, share, unknown)
    )
    summary = decisions.decide(
      'summary', lambda: summarize(selection, stats, context)
    )
    edited = jax.tree.map(lambda u: (u * (1 - share)).astype(u.dtype), updates)
    return edited, DetachDrainState(
      schedule.update(state.schedule, **schedule_context),
      jnp.asarray(amount_now, jnp.float32),
      summary,
    )

  return token_transform('detach_drain', init, update)


def prefix_share(
  values: Float[Array, 'B T'], amount: ArrayLike
) -> Float[Array, 'B T']:
  """Share of each value in the shortest descending prefix that sums to an amount.

  Found by bisection on the values' bits with exact sums, without a sort; the
  shares are the same bits in every layout.

  Args:
    values: values of any sign; those that are not positive get a share of 0.
    amount: sum to reach; if it exceeds the sum of the positive values, they all
      get a share of 1.

  Returns:
    1 for the largest values, a fraction for the one (or the equal ones) that
    would exceed the amount, 0 for the others; NaN if the amount is NaN.

  >>> prefix_share(jnp.array([[3.0, 1.0, -2.0, 2.0]]), 4.0)
  Array([[1. , 0. , 0. , 0.5]], dtype=float32)
  """
  keys = float_key(values)
  one = jnp.ones((), keys.dtype)

  def narrow(index: Array, low: Array) -> Array:
    bit = one << (bits - 1 - index).astype(keys.dtype)
    return jnp.where(
      exact_sum(values, keys >= low + bit) >= amount, low + bit, low
    )

  bits = jnp.iinfo(keys.dtype).bits - 1  # of a positive float, without its sign
  start = jnp.zeros((), keys.dtype)
  low = jax.lax.fori_loop(0, bits, narrow, start)
  low = jnp.maximum(low, one)
  is_last = keys == low
  remaining = amount - exact_sum(values, keys > low)
  last_sum = exact_sum(values, is_last)
  share = jnp.clip(remaining / jnp.where(last_sum > 0, last_sum, 1), 0, 1)
  shares = jnp.where(keys > low, 1, jnp.where(is_last, share, 0))
  return jnp.where(jnp.isnan(amount), jnp.nan, shares)


def _selection(
  drain: Float[Array, 'B T'],
  share: Float[Array, 'B T'],
  unknown: Bool[Array, 'B T'],
) -> Selection:
  """The detached tokens, as a `Selection`.

  Tokens with a change that is not finite (`unknown`) are never detached.
  """
  mask = share > 0
  lowest = jnp.min(jnp.where(mask, drain, jnp.inf), initial=jnp.inf)
  return Selection.of_mask(mask)._replace(
    scores=drain,
    threshold=jnp.where(jnp.isfinite(lowest), lowest, 0),
    eligible=count_true(drain > 0),
    nonfinite=count_true(unknown),
  )
