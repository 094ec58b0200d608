# SPDX-License-Identifier: Apache-2.0
"""Section VI.D, KL-Cov: the size of its penalty by divergence estimator.

βδ is the part of an update's entropy change that is caused by the penalty with
coefficient β; η is the learning rate.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

import covrl
from covrl.objectives import divergence_gradient
from covrl.theory import categorical, tabular, trees
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  Curve,
  Evidence,
  Plot,
  at_most,
  close_to,
)

SECTION = Section('VI.D Estimators of KL-Cov’s penalty')
claim = SECTION.claim


DIVERGENCES = ('full', 'k2', 'k3', 'abs', 'k1')
DISPLAY_NAMES = {'full': 'full KL', 'abs': '|log r|'}
LEARNING_RATES = np.logspace(-5, -2, 7)
UPDATES = 4  # per rollout


@claim(
  'Thm VI.2, size of βδ',
  printed='β δ counteracts the entropy decrease at first order, with a size '
  'controlled by β.',
  corrected='π − π_old = O(η), so β δ = O(β η²), the order of the neglected '
  'remainder: after two updates it is β η² Cov(log π, π (u − E u)) with u = π A. '
  'k2 and k3 have the same order. |log r|, the published penalty, is of first '
  'order, since its gradient is β however small the ratio: a soft threshold on '
  'the advantage. k1 has its full gradient on a selected token from the start, '
  'and over all tokens of a state it increases the distance from π_old.',
  verdict='fails',
  formula=lambda pi, u: categorical.covariance(
    pi, np.log(pi), pi * categorical.centred(pi, u)
  ),
  wrong_formulas=(
    lambda pi, u: categorical.covariance(pi, np.log(pi), pi * u),
  ),
)
def estimators(settings: Settings, formula: Formula) -> Evidence:
  """Runs four updates of one rollout with each estimator of the penalty's KL."""
  rewards, logits = _random_bandit(settings)
  plain, *penalised = _entropy_changes(settings)
  relative_effects = {
    kind: abs(changes / plain - 1)[:, -1]
    for kind, changes in zip(DIVERGENCES, penalised, strict=True)
  }
  pi = categorical.softmax(logits)
  effect_after_two = (penalised[0] - plain)[:, 1]
  predicted = (
    formula(pi, pi * categorical.centred(pi, rewards)) * LEARNING_RATES**2
  )
  exponents = {
    kind: categorical.power_law_exponent(LEARNING_RATES, relative_effects[kind])
    for kind in DIVERGENCES
  }
  k1_ratio = (penalised[4] - plain)[0, 1] / (penalised[0] - plain)[0, 1]
  gradients = _penalty_gradients(np.array([0.0, 1e-4]))
  return Evidence(
    printed=[
      close_to(
        'exponent in η of the relative effect, full KL',
        exponents['full'],
        0,
        0.2,
      )
    ],
    corrected=[
      *(
        close_to(
          f'the same, {DISPLAY_NAMES.get(kind, kind)}',
          exponents[kind],
          order,
          0.05,
        )
        for kind, order in zip(DIVERGENCES, (1, 1, 1, 0, 1), strict=True)
      ),
      close_to(
        'β δ divided by its prediction, two updates, η = 1e-3',
        (effect_after_two / predicted)[4],
        1,
        0.01,
      ),
      close_to(
        'effect of k1 divided by that of the full KL', k1_ratio, -1, 0.01
      ),
      close_to(
        'gradient of |log r| at log r = 1e-4', gradients['abs'][1], 1, 0
      ),
      close_to('gradient of k1 at π = π_old', gradients['k1'][0], 1, 0),
      at_most(
        'gradient of the other estimators there',
        max(abs(gradients[kind][0]) for kind in ('abs', 'k2', 'k3')),
        0,
      ),
      close_to(
        'jax.grad(jnp.abs)(0.), which is not 0', jax.grad(jnp.abs)(0.0), 1, 0
      ),
    ],
    plots=[
      Plot(
        'Effect of the penalty on entropy, by estimator',
        'learning rate η',
        'effect on ΔH, relative to ΔH without a penalty',
        [
          Curve(
            DISPLAY_NAMES.get(kind, kind),
            LEARNING_RATES,
            relative_effects[kind],
            points=True,
          )
          for kind in DIVERGENCES
        ],
        caption='Four updates of one rollout, β = 1, every token penalised. '
        'The effect of the full KL of the theorem vanishes with the learning '
        'rate; that of |log r|, the published penalty, does not.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@jax.jit
def _penalty_gradients(log_ratio: jax.Array) -> dict[str, jax.Array]:
  """Gradients of the estimators with respect to the log-ratio."""
  return {
    kind: divergence_gradient(log_ratio, kind) for kind in DIVERGENCES[1:]
  }


def _random_bandit(
  settings: Settings,
) -> tuple[Float[np.ndarray, ' K'], Float[np.ndarray, ' K']]:
  """Rewards and logits of a bandit with six actions."""
  rewards, logits = settings.rng().normal(size=(2, 6))
  return rewards, logits


@functools.cache
def _entropy_changes(settings: Settings) -> Float[np.ndarray, 'Z n U']:
  """ΔH after each update of a rollout, by estimator and learning rate.

  The first row is without a penalty, the others follow `DIVERGENCES`. One chain
  contains all penalties; its coefficients select one.
  """
  rewards, start = (x[None, None] for x in _random_bandit(settings))
  tree = trees.Tree(
    rewards=jnp.asarray(rewards), terminal=jnp.ones((1, 1, 6), bool), depth=1
  )
  logits = jnp.asarray(start)

  def run(coefficients: jax.Array, rate: jax.Array) -> jax.Array:
    pairs = tabular.all_pairs(tree, logits)
    chain = optax.chain(
      *(
        covrl.add_divergence_penalty(coefficients[index], kind, dead_zone=1e-12)
        for index, kind in enumerate(DIVERGENCES)
      )
    )

    def step(state: Any, _: None) -> tuple[Any, jax.Array]:
      updated = tabular.update(
        state[0],
        pairs,
        chain,
        state[1],
        learning_rate=rate,
        old_logits=logits,
        full_divergence=True,
      )
      return (updated.logits, updated.token_state), updated.logits

    initial = (logits, chain.init(covrl.TokenStats.template()))
    return jax.lax.scan(step, initial, length=UPDATES)[1]

  over_rates = jax.vmap(run, (None, 0))
  coefficients = np.eye(len(DIVERGENCES) + 1)[:, 1:]
  updated_logits = jax.jit(jax.vmap(over_rates, (0, None)))(
    coefficients, LEARNING_RATES
  )
  entropy = categorical.entropy(
    categorical.softmax(np.asarray(updated_logits)[..., 0, 0, :])
  )
  return entropy - categorical.entropy(categorical.softmax(start[0, 0]))
