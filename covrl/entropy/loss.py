# SPDX-License-Identifier: Apache-2.0
"""The token chain as an ordinary loss, and a look at what it selects."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from covrl.entropy.base import init_token_state, update_signal
from covrl.entropy.decisions import Plan, Selection
from covrl.types import Scalar, TokenStats


def as_loss(
  loss: Callable[..., tuple[Scalar, Any]],
  token_tx: optax.GradientTransformation,
) -> Callable[..., tuple[Scalar, PyTree]]:
  """A loss whose gradient is the one the token chain makes of another loss's.

    value = sg(loss) + Σ ⟨sg(signal), stats − sg(stats)⟩

  For training loops built on `jax.value_and_grad(…, has_aux=True)`; the
  gradient equals that of the explicit form to the bit. The value is that of
  the loss alone: penalties act through the gradient.

  Args:
    loss: `(stats, **context) -> (value, aux)`, `aux` as covrl's losses give.
    token_tx: a token chain.

  Returns:
    `(stats, token_state, **context) -> (value, token_state)`.

  >>> import covrl
  >>> loss = covrl.as_loss(covrl.policy_gradient, covrl.entropy_bonus(0.1))
  """

  def controlled(
    stats: TokenStats, token_state: PyTree, **context: Any
  ) -> tuple[Scalar, PyTree]:
    here = jax.lax.stop_gradient(stats)
    (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
      here, **context
    )
    signal, token_state = update_signal(
      token_tx, signal, token_state, here, **{**context, **aux.for_selection}
    )
    lift = jax.tree.map(_inner_product, signal, stats, here)
    return value + sum(jax.tree.leaves(lift)), token_state

  return controlled


def explain(
  token_tx: optax.GradientTransformation,
  stats: TokenStats,
  *,
  signal: TokenStats | None = None,
  token_state: PyTree | None = None,
  **context: Any,
) -> tuple[Selection, ...]:
  """What a token chain would select from these statistics, and by what scores.

  Args:
    token_tx: a token chain.
    stats: of the policy.
    signal: the loss's cotangents, which `detach_drain` selects by; zeros if
      absent.
    token_state: the chain's state; a fresh one if absent.
    **context: as for the chain's update.

  Returns:
    One `Selection` (mask, scores, threshold, …) per selecting transform, in
    the order of the chain.
  """
  if token_state is None:
    token_state = init_token_state(token_tx)
  silent = jax.tree.map(jnp.zeros_like, stats)
  plan = Plan()
  context = {**context, 'plan': plan}
  update_signal(token_tx, signal or silent, token_state, stats, **context)
  return plan.selections()


def _inner_product(
  signal: jax.Array, stats: jax.Array, here: jax.Array
) -> jax.Array:
  """⟨signal, stats − here⟩ where there is a signal; 0 in value."""
  moved = jnp.where(signal != 0, stats - here, 0)
  return jnp.sum(jax.lax.stop_gradient(signal) * moved)
