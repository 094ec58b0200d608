# SPDX-License-Identifier: Apache-2.0
"""Detachment by amount: as many tokens as it takes, the last one in part."""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from covrl.entropy.base import (
  Coefficient,
  as_schedule,
  check_coefficient,
  require,
  require_stats,
  token_transform,
)
from covrl.entropy.decisions import Plan, Selection
from covrl.entropy.exact import count, exact_sum
from covrl.entropy.methods import TokenTransformation
from covrl.entropy.prediction import Outlook, entropy_change, total
from covrl.entropy.search import float_key
from covrl.entropy.transforms import (
  SelectionSummary,
  empty_summary,
  summarize,
)
from covrl.types import TokenContext


class DetachDrainState(NamedTuple):
  """State of `detach_drain`.

  Attributes:
    schedule: the amount's.
    coefficient: the last amount.
    summary: of the last selection; its threshold is a drain.
  """

  schedule: PyTree
  coefficient: jax.Array
  summary: SelectionSummary


def detach_drain(amount: Coefficient) -> TokenTransformation:
  """No gradient from the tokens that drain entropy most, until enough is saved.

    drain = −[g (π(a) f(a) − κ) − h Σπ² f²]      f = log π + H,  κ = Σπ² f
    g, h × (1 − share),   Σ share · drain = amount

  with a share of 1 on the shortest prefix in descending order of drain, what is
  left to save on the next token (equal ones share it), and 0 on the others. For
  a policy gradient the drain is `weights` times `exact_score`. Reads `moments`.

  Args:
    amount: first-order entropy to save per unit of step size, in nats; a
      number, schedule or controller. A `target_entropy` makes it
      the shortfall of the formula ΔH = −η Σ drain.

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
    updates: PyTree,
    state: PyTree,
    params: PyTree | None = None,
    **context: Any,
  ) -> tuple[PyTree, PyTree]:
    stats = jax.lax.stop_gradient(require_stats(params, 'detach_drain'))
    seen = cast(TokenContext, context)
    moments = require(seen, 'moments', 'detach_drain')
    plan = Plan.of(context)
    drain = -entropy_change(updates, stats, moments)
    outlook = plan.decide(
      lambda: Outlook.of(
        drift=-total(drain), effect=1.0, limit=total(jnp.maximum(drain, 0))
      )
    )
    foreseen = {**context, 'outlook': lambda: outlook}
    value = schedule(state.schedule, **foreseen)
    share = plan.decide(lambda: prefix_share(drain, value))
    selection = plan.decide(lambda: _selection(drain, share))
    summary = plan.decide(lambda: summarize(selection, stats, context))
    edited = jax.tree.map(lambda u: (u * (1 - share)).astype(u.dtype), updates)
    return edited, DetachDrainState(
      schedule.update(state.schedule, **foreseen),
      jnp.asarray(value, jnp.float32),
      summary,
    )

  return token_transform(init, update)


def prefix_share(
  values: Float[Array, 'B T'], amount: ArrayLike
) -> Float[Array, 'B T']:
  """How much of each value the shortest prefix that sums to an amount takes.

  By bisection on the values' bits, with sums that are exact: nothing is sorted,
  and the shares are the same bits in every layout.

  Args:
    values: those that are not positive are never taken.
    amount: to reach; all positive values are taken if it is more than their sum.

  Returns:
    1 for the largest values, a share for the one (or the equal ones) that would
    exceed the amount, 0 for the others.

  >>> prefix_share(jnp.array([[3.0, 1.0, -2.0, 2.0]]), 4.0)
  Array([[1. , 0. , 0. , 0.5]], dtype=float32)
  """
  keys = float_key(values)
  one = jnp.ones((), keys.dtype)

  def narrow(place: Array, cut: Array) -> Array:
    bit = one << (bits - 1 - place).astype(keys.dtype)
    return jnp.where(
      exact_sum(values, keys >= cut + bit) >= amount, cut + bit, cut
    )

  bits = jnp.iinfo(keys.dtype).bits - 1  # of a positive float, without its sign
  start = jnp.zeros((), keys.dtype)
  cut = jax.lax.fori_loop(0, bits, narrow, start)
  cut = jnp.maximum(cut, one)
  level = keys == cut
  left = amount - exact_sum(values, keys > cut)
  held = exact_sum(values, level)
  share = jnp.clip(left / jnp.where(held > 0, held, 1), 0, 1)
  return jnp.where(keys > cut, 1, jnp.where(level, share, 0))


def _selection(
  drain: Float[Array, 'B T'], share: Float[Array, 'B T']
) -> Selection:
  """The detached tokens as other methods' selections are told of."""
  mask = share > 0
  lowest = jnp.min(jnp.where(mask, drain, jnp.inf), initial=jnp.inf)
  return Selection.of_mask(mask)._replace(
    scores=drain,
    threshold=jnp.where(jnp.isfinite(lowest), lowest, 0),
    eligible=count(drain > 0),
  )
