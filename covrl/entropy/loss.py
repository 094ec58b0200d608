# SPDX-License-Identifier: Apache-2.0
"""A loss and a token chain, combined into one ordinary loss function."""

from collections.abc import Callable
from typing import Any, Unpack, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from covrl.entropy.base import check_token_chain, update_signal
from covrl.objectives.base import check_aux
from covrl.types import Scalar, TokenContext, TokenStats


def as_loss(
  loss: Callable[..., tuple[Scalar, Any]],
  token_tx: optax.GradientTransformation,
) -> Callable[..., tuple[Scalar, PyTree]]:
  """Combines a loss and a token chain into one loss.

    value = sg(loss) + Σ ⟨sg(signal), stats − sg(stats)⟩

  where signal is the loss's cotangent after the chain. For training loops built
  on `jax.value_and_grad(…, has_aux=True)`; the gradient equals, to the bit, that of
  a loop that calls `update_signal` and backpropagates the signal. The value is that
  of the loss alone: penalties act through the gradient.

  Args:
    loss: `(stats, **context) -> (value, aux)`, with a `LossAux`.
    token_tx: a token chain.

  Returns:
    `(stats, token_state, **context) -> (value, token_state)`.

  Raises:
    TypeError: if the token chain is an optimiser such as `optax.adam`, or the
      loss returns anything but a `LossAux` beside its value.

  >>> import covrl
  >>> loss = covrl.as_loss(covrl.policy_gradient, covrl.entropy_bonus(0.1))
  """
  check_token_chain(token_tx, 'as_loss')

  def combined_loss(
    stats: TokenStats, token_state: PyTree, **context: Unpack[TokenContext]
  ) -> tuple[Scalar, PyTree]:
    fixed = jax.lax.stop_gradient(stats)
    (value, aux), signal = jax.value_and_grad(loss, has_aux=True)(
      fixed, **context
    )
    aux = check_aux(aux, 'the loss of as_loss', stats)
    context = cast(TokenContext, {**context, **aux.for_selection})
    signal, token_state = update_signal(
      token_tx, signal, token_state, fixed, **context
    )
    terms = jax.tree.map(_inner_product, signal, stats, fixed)
    return value + sum(jax.tree.leaves(terms)), token_state

  return combined_loss


def _inner_product(
  signal: jax.Array, stats: jax.Array, fixed: jax.Array
) -> jax.Array:
  """⟨signal, stats − fixed⟩: its value is 0, its gradient the signal."""
  difference = jnp.where(signal != 0, stats - fixed, 0)
  return jnp.sum(jax.lax.stop_gradient(signal) * difference)
