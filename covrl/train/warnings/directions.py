# SPDX-License-Identifier: Apache-2.0
"""Warnings of parameter chains that ascend the loss, and of losses without a gradient."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.extend.core import Var
from jaxtyping import PyTree

from covrl.entropy.base import update_signal
from covrl.entropy.inspection import single_token
from covrl.models import Policy
from covrl.train.algorithm import Algorithm
from covrl.train.apply import chain_update
from covrl.types import TokenStats


def direction_warnings(
  policy: Policy, **chains: tuple[optax.GradientTransformation, int]
) -> Iterator[str]:
  """Yields a sentence for each chain that moves parameters along gradients.

  Args:
    policy: the policy.
    **chains: parameter chains of the policy with their numbers of updates, by their
      names in a `Recipe`.
  """
  trainable, _ = policy.split(policy.abstract_params())
  for name, (tx, updates) in chains.items():
    update = _first_ascent(tx, trainable, updates)
    if update is None:
      continue
    along = (
      f"the recipe's {name} moves parameters along their gradient, which raises"
      ' the loss'
    )
    if update < 2:
      yield (
        f'{along}: a chain needs scale_by_learning_rate at its end, and'
        ' optax.masked returns the gradients of the parameters that it leaves out'
      )
    else:
      yield (
        f'{along}, at update {update} of {updates}: its learning rate becomes'
        ' negative'
      )


def _first_ascent(
  tx: optax.GradientTransformation, params: PyTree, updates: int
) -> int | None:
  """Returns an update at which a chain moves a parameter along its gradient.

  It is run on gradients of 1 and parameters of 0 with one entry each, twice, since
  a learning rate may begin at 0; then once for each of some later updates, whose
  number takes the place of the counts in its state. A chain that fails on such
  shapes counts as one that does not.

  Args:
    tx: a parameter chain.
    params: shapes and dtypes of the parameters.
    updates: number of updates that the chain makes.
  """
  loss = jnp.zeros(())
  count = 32 if updates > 2 else 0
  later = np.unique(np.linspace(2, updates - 1, count).astype(np.int32))

  def is_along(moves: PyTree) -> jax.Array:
    return jnp.any(
      jnp.stack([jnp.any(leaf > 0) for leaf in jax.tree.leaves(moves)])
    )

  def run() -> tuple[list[jax.Array], jax.Array]:
    zeros = jax.tree.map(
      lambda leaf: jnp.zeros((1,) * len(leaf.shape), leaf.dtype), params
    )
    gradients = jax.tree.map(jnp.ones_like, zeros)
    first, state = chain_update(tx, gradients, tx.init(zeros), zeros, loss)
    second, state = chain_update(tx, gradients, state, zeros, loss)

    def at(count: jax.Array) -> jax.Array:
      counted = jax.tree.map(
        lambda leaf: count if is_update_count(leaf) else leaf, state
      )
      moves, _ = chain_update(tx, gradients, counted, zeros, loss)
      return is_along(moves)

    return [is_along(first), is_along(second)], jax.lax.map(at, later)

  try:
    early, along = jax.jit(run)()
  except Exception:
    return None
  if any(early):
    return 0
  found = later[np.asarray(along)]
  return int(found[0]) if found.size else None


def is_update_count(leaf: Any) -> bool:
  """Whether an array of a chain's state counts updates."""
  return jnp.shape(leaf) == () and jnp.result_type(leaf) == jnp.int32


def gradient_warnings(algorithm: Algorithm) -> Iterator[str]:
  """Yields a sentence if loss and token chain have no gradient.

  They are traced on a single token and not computed; an algorithm that cannot be
  traced there yields none.
  """
  stats, context = single_token()
  given_by_loss = ('score_weight', 'clipped')
  values: dict[str, Any] = {
    name: value for name, value in context.items() if name not in given_by_loss
  }

  def run(stats: TokenStats, advantages: Any, weights: Any) -> PyTree:
    loss_context = values | {'advantages': advantages, 'weights': weights}
    (_, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **loss_context
    )
    state = algorithm.token_tx.init(stats.template())
    context = loss_context | aux.for_selection
    return update_signal(algorithm.token_tx, signal, state, stats, **context)[0]

  try:
    traced = jax.make_jaxpr(run)(stats, values['advantages'], values['weights'])
  except Exception:
    return
  dependent = set(traced.jaxpr.invars)
  for eqn in traced.eqns:
    if any(x in dependent for x in eqn.invars if isinstance(x, Var)):
      dependent.update(eqn.outvars)
  if not any(
    x in dependent for x in traced.jaxpr.outvars if isinstance(x, Var)
  ):
    yield (
      "the recipe's loss and token chain have no gradient: no token trains the"
      ' policy, whatever its advantage'
    )
