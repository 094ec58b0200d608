# SPDX-License-Identifier: Apache-2.0
"""Section V.A–C, the entropy bonus: its gradient and its effect on entropy.

In the statements, α is the coefficient of the bonus, ρ(s) the expected visits of s per
response, T their sum, and f = log π + H.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.array_checks import check_integer
from covrl.theory import categorical, tabular, tree_policy, trees
from covrl.theory.argument_checks import check_finite
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Curve,
  Evidence,
  Plot,
  at_least,
  at_most,
  close_to,
)

SECTION = Section('V.A–C The entropy bonus')
claim = SECTION.claim


@claim(
  'Prop. V.1 (11)–(12)',
  printed='∇J_reg = ∇J + α ∇H(π_θ), and ∂H/∂z_{s,a} is that of Lemma IV.1.',
  corrected='The first part holds; but with (4) ∇H = (ρ/T) π (−f + A^H − H(π) '
  'A^T), because the policy also determines which states are visited (A^H, the '
  'advantage for future entropy) and the length of responses (A^T, the '
  'advantage for length). Code that detaches its samples follows only '
  '(ρ/T)(−π f), a semi-gradient.',
  verdict='holds if there is one state',
  formula=lambda rho, length, pi, f, entropy_advantages, entropy, length_advantages: (
    (rho / length)[..., None]
    * pi
    * (-f + entropy_advantages - entropy * length_advantages)
  ),
  wrong_formulas=(
    lambda rho, length, pi, f, entropy_advantages, entropy, length_advantages: (
      (rho / length)[..., None] * pi * (-f + entropy_advantages)
    ),
    lambda rho, length, pi, f, entropy_advantages, entropy, length_advantages: (
      (rho / length)[..., None]
      * pi
      * (-f - entropy_advantages - entropy * length_advantages)
    ),
  ),
)
def regularised_gradient(settings: Settings, formula: Formula) -> Evidence:
  """Compares with autodiff of the mean entropy over tokens, (4)."""
  policy, single = (
    tree_policy.random_tree_policy(settings),
    tree_policy.single_state_policy(settings),
  )
  gradient, entropy_advantages, length_advantages = _entropy_gradient_terms(
    policy
  )
  length, f = policy.rho.sum(), categorical.centred_logprobs(policy.pi)
  entropy = (policy.rho * categorical.entropy(policy.pi)).sum() / length
  full = formula(
    policy.rho,
    length,
    policy.pi,
    f,
    entropy_advantages,
    entropy,
    length_advantages,
  )
  semi = -(policy.rho / length)[..., None] * policy.pi * f
  single_state = -single.pi * categorical.centred_logprobs(single.pi)
  return Evidence(
    printed=[
      at_most(
        'error of ∇H against autodiff',
        abs(-policy.pi * f - gradient).max(),
        EXACT_TOLERANCE,
      )
    ],
    conditional=[
      at_most(
        'error of ∇H against autodiff',
        abs(single_state - _entropy_gradient_terms(single)[0]).max(),
        EXACT_TOLERANCE,
      )
    ],
    corrected=[
      at_most(
        'error of the full formula', abs(full - gradient).max(), EXACT_TOLERANCE
      ),
      at_least(
        'relative error of the semi-gradient',
        np.linalg.norm(semi - gradient) / np.linalg.norm(gradient),
        0.1,
      ),
    ],
  )


def _entropy_gradient_terms(
  policy: tree_policy.TreePolicy,
) -> tuple[Float[np.ndarray, 'P S K'], ...]:
  """The results of `_compiled_gradient_terms` as NumPy arrays."""
  return tuple(
    map(np.asarray, _compiled_gradient_terms(policy.tree, policy.logits))
  )


@jax.jit
def _compiled_gradient_terms(
  tree: trees.Tree, logits: jax.Array
) -> tuple[jax.Array, ...]:
  """∇H by autodiff, A^H for future entropy, and A^T for length."""
  pi = jax.nn.softmax(logits)
  rewards = trees.state_entropy(logits)[..., None] + 0 * pi
  return (
    jax.grad(trees.mean_entropy, 1)(tree, logits),
    trees.advantages(tree, pi, rewards),
    trees.advantages(tree, pi, jnp.ones_like(pi)),
  )


ALPHA = 0.3


@claim(
  '(13)',
  printed='Δz_{s,a} = η (π A − α π (log π − E log π)).',
  corrected='With a factor ρ(s), and as the semi-gradient: this is the update of '
  'covrl.entropy_bonus; it is not the gradient of (11).',
  verdict='holds if there is one state',
  formula=lambda rho, pi, advantages, f: (
    rho[..., None] * pi * (advantages - ALPHA * f)
  ),
  wrong_formulas=(
    lambda rho, pi, advantages, f: (
      rho[..., None] * pi * (advantages + ALPHA * f)
    ),
  ),
)
def regularised_update(settings: Settings, formula: Formula) -> Evidence:
  """Applies covrl's bonus with α = 0.3 to every state-action pair."""

  def error(policy: tree_policy.TreePolicy, predict: Formula) -> float:
    updated = np.asarray(_bonus_step(policy.tree, policy.logits, ALPHA))
    f = categorical.centred_logprobs(policy.pi)
    update = predict(policy.rho, policy.pi, policy.advantages, f)
    return float(abs(policy.logits + update - updated).max())

  def as_printed(rho: Any, pi: Any, advantages: Any, f: Any) -> Any:
    del rho
    return pi * (advantages - ALPHA * f)

  policy = tree_policy.random_tree_policy(settings)
  return Evidence(
    printed=[
      at_most(
        "error of covrl's update", error(policy, as_printed), EXACT_TOLERANCE
      )
    ],
    conditional=[
      at_most(
        "error of covrl's update",
        error(tree_policy.single_state_policy(settings), as_printed),
        EXACT_TOLERANCE,
      )
    ],
    corrected=[
      at_most('error with ρ(s)', error(policy, formula), EXACT_TOLERANCE)
    ],
  )


@jax.jit
def _bonus_step(
  tree: trees.Tree, logits: jax.Array, coefficient: Any
) -> jax.Array:
  chain = covrl.entropy_bonus(coefficient)
  pairs = tabular.all_pairs(tree, logits)
  return tabular.update(logits, pairs, chain, learning_rate=1.0).logits


def near_deterministic(
  eps: Float[np.ndarray, ' n'], actions: int
) -> Float[np.ndarray, 'n K']:
  """Policies with one action of probability 1 − ε; the others share ε.

  Raises:
    ValueError: an ε lies outside [0, 1], or there are less than two actions.
  """
  check_integer('actions', actions, 2)
  check_finite('eps', eps, 'n')
  if eps.size and not (eps.min() >= 0 and eps.max() <= 1):
    raise ValueError(
      f'eps must lie in [0, 1], got {eps.min():g} to {eps.max():g}'
    )
  rare = np.repeat(eps[:, None] / (actions - 1), actions - 1, axis=1)
  return np.concatenate([1 - eps[:, None], rare], axis=1)


@claim(
  'Thm V.1 (14)',
  printed='The bonus adds α η Var(log π) to ΔH_s, accurately so when the '
  'policy is nearly deterministic.',
  corrected='It adds α η Σ π² f². With probability 1 − ε of the most likely '
  'action this is Θ(ε² log² ε) while Var is Θ(ε log² ε): near determinism the '
  'effect of the bonus vanishes quadratically. Var is exact for the natural '
  'gradient, and always larger than Σ π² f².',
  verdict='fails',
  formula=lambda pi, f: (pi**2 * f**2).sum(-1),
  wrong_formulas=(lambda pi, f: (pi * f**2).sum(-1),),
)
def restoring_force(settings: Settings, formula: Formula) -> Evidence:
  """Measures the effect of the bonus alone on entropy for decreasing ε."""
  eps = np.logspace(-6, -1.5, 16)
  pi = near_deterministic(eps, 10)
  f = categorical.centred_logprobs(pi)
  variance = categorical.expectation(pi, f**2)
  exact = formula(pi, f)
  squared_logs = np.log(9 * (1 - eps) / eps) ** 2
  index = int(abs(np.log10(eps) + 4).argmin())
  z = categorical.random_logits(settings.rng(), 200, 6, (0.3, 1.0, 2.0))
  p, g = (
    categorical.softmax(z),
    categorical.centred_logprobs(categorical.softmax(z)),
  )
  return Evidence(
    printed=[
      at_most(
        'relative error of Var at ε = 1e-4',
        abs(variance / exact - 1)[index],
        0.1,
      )
    ],
    corrected=[
      at_most(
        'Σ π² f² minus the measured dH/dη',
        abs(categorical.entropy_derivative(z, -p * g) - formula(p, g)).max(),
        1e-8,
      ),
      at_most(
        'Var minus the measured dH/dη, natural gradient',
        abs(
          categorical.entropy_derivative(z, -g)
          - categorical.expectation(p, g**2)
        ).max(),
        1e-8,
      ),
      close_to(
        'exponent of Σ π² f² / log² ε in ε',
        categorical.power_law_exponent(eps, exact / squared_logs),
        2,
        0.01,
      ),
      close_to(
        'exponent of Var / log² ε in ε',
        categorical.power_law_exponent(eps, variance / squared_logs),
        1,
        0.01,
      ),
      close_to(
        'ratio of the two divided by ε K/(K − 1)',
        (exact / variance / eps)[index] * 9 / 10,
        1,
        0.01,
      ),
    ],
    plots=[
      Plot(
        'The effect of the bonus vanishes quadratically',
        'ε, probability of all but the most likely action',
        'dH/dη per unit of α, nats',
        [
          Curve('as printed, Var(log π)', eps, variance, points=True),
          Curve('measured, Σ π² f²', eps, exact, points=True),
          Curve('slope 1', eps, variance[0] * eps / eps[0] / 20, dashed=True),
          Curve(
            'slope 2', eps, exact[0] * (eps / eps[0]) ** 2 / 20, dashed=True
          ),
        ],
        caption='Theorem V.1, ten actions. As a policy collapses (to the left) '
        'the printed term overstates the effect of the bonus by 1/ε, so a bonus '
        'cannot restore the entropy of a collapsed token. The curves are flatter '
        'than the dashed guides because of the factor log² ε.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@claim(
  'Thm V.1, remark',
  printed='Var(log π) increases as the policy becomes more deterministic.',
  corrected='Var = ε (1 − ε) log²((1 − ε)(K − 1)/ε) if the other actions share '
  'ε: it rises to a peak and then falls to 0.',
  verdict='fails',
  formula=lambda eps, k: (
    eps * (1 - eps) * np.log((1 - eps) * (k - 1) / eps) ** 2
  ),
  wrong_formulas=(
    lambda eps, k: eps * (1 - eps) * np.log((1 - eps) / eps) ** 2,
  ),
)
def variance_of_logprobs(settings: Settings, formula: Formula) -> Evidence:
  """Computes the variance for policies ever closer to deterministic."""
  del settings
  eps = np.logspace(-8, -0.1, 40)
  pi = near_deterministic(eps, 10)
  variance = categorical.expectation(pi, categorical.centred_logprobs(pi) ** 2)
  return Evidence(
    printed=[
      at_least(
        'least ratio of Var at one ε to Var at the next larger ε',
        (variance[:-1] / variance[1:]).min(),
        1.0,
      )
    ],
    corrected=[
      at_most(
        'error of the closed form',
        abs(formula(eps, 10) - variance).max(),
        EXACT_TOLERANCE,
      ),
      at_most('Var at ε = 1e-8', variance[0], 1e-5),
      at_least(
        'distance of the peak from the ends of the grid of ε',
        _peak_distance(variance),
        1,
      ),
    ],
  )


def _peak_distance(values: Float[np.ndarray, ' n']) -> int:
  """Number of entries between the largest value and the nearer end."""
  peak = int(values.argmax())
  return min(peak, values.size - 1 - peak)
