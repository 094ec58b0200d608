# SPDX-License-Identifier: Apache-2.0
"""Scores for policies whose tokens share parameters.

`exact_score` treats every state's logits as free parameters. In a network a
token's gradient changes the entropy of all other tokens too; one backward and
one forward-mode pass compute these changes for all tokens at once.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from covrl.array_checks import check_array
from covrl.context_checks import check_stats
from covrl.statistics.exact import count_true
from covrl.types import TokenStats


def jvp_score(
  statistics: Callable[[PyTree], TokenStats],
  params: PyTree,
  score_weight: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  *,
  precondition: Callable[[PyTree], PyTree] = lambda gradient: gradient,
) -> Float[Array, 'B T']:
  """Decrease of the mean entropy by each token's update, with shared parameters.

    H̄ = mean over mask of H,   v = P ∇H̄,   score = −w · ⟨∇ log π(a), v⟩,

  so that an update by η P (1/N) Σ w ∇log π changes the mean entropy by

    ΔH̄ = −(η/N) Σ score

  to first order. For free logits and P = 1 it is `exact_score`, divided by the
  number of tokens.

  Args:
    statistics: function of the parameters that returns the statistics of a
      batch's tokens; must have forward-mode derivatives (see `token_stats`).
    params: parameters at which derivatives are taken.
    score_weight: w = A · ratio · 1{not clipped}.
    mask: response tokens; others get 0.
    precondition: P, linear and symmetric: the optimiser's preconditioner, for
      example a division by Adam's √v.

  Raises:
    TypeError: an argument has another type than its annotation.
    ValueError: shapes differ.

  References:
    The derivation is this project's: first-order expansion of H̄ in the
    parameters, P moved to the other side of the inner product.

  >>> import covrl
  >>> table = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
  >>> def statistics(logits):
  ...   return covrl.token_stats_from_logits(logits[None], jnp.array([[0]]))
  >>> score = jvp_score(
  ...   statistics, table, jnp.ones((1, 1)), jnp.ones((1, 1), bool)
  ... )
  >>> round(float(score[0, 0]), 4)  # w [π(a) (log π(a) + H) − Σπ² (log π + H)]
  0.13
  """

  shape = check_array('mask', mask, 'bool', 'B T')
  check_array('score_weight', score_weight, 'real', 'B T', shape)

  def checked_statistics(params: PyTree) -> TokenStats:
    stats = statistics(params)
    check_stats('the result of statistics', stats, 'jvp_score', shape)
    return stats

  def mean_entropy(params: PyTree) -> Float[Array, '']:
    total = jnp.sum(checked_statistics(params).entropy, where=mask)
    return total / jnp.maximum(count_true(mask), 1)

  direction = precondition(jax.grad(mean_entropy)(params))
  _, change = jax.jvp(
    lambda params: checked_statistics(params).logprobs, (params,), (direction,)
  )
  return jnp.where(mask, -score_weight * change, 0)
