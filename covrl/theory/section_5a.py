# SPDX-License-Identifier: Apache-2.0
"""Section V.A–C, the entropy bonus: its gradient, and what it restores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.entropy.base import init_token_state
from covrl.theory import softmax as sm
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory import worlds
from covrl.theory.claims import (
  EXACT,
  Curve,
  Evidence,
  Formula,
  Lab,
  Picture,
  Section,
  above,
  below,
  near,
)

SECTION = Section('V.A–C The entropy bonus')
claim = SECTION.claim


@claim(
  'Prop. V.1 (11)–(12)',
  printed='∇J_reg = ∇J + α ∇H(π_θ), and ∂H/∂z_{s,a} is that of Lemma IV.1.',
  holds='Linear, yes; but with (4) ∇H = (ρ/T) π (−f + A^H − H(π) A^T): policies '
  'also choose which states they visit (A^H, the advantage of entropy to come) '
  'and how long they speak (A^T, of length). Code that detaches its samples '
  'follows (ρ/T)(−π f) alone, a semi-gradient.',
  verdict='holds if there is one state',
  formula=lambda rho, length, pi, f, of_entropy, mean, of_length: (
    (rho / length)[..., None] * pi * (-f + of_entropy - mean * of_length)
  ),
  slips=(
    lambda rho, length, pi, f, of_entropy, mean, of_length: (
      (rho / length)[..., None] * pi * (-f + of_entropy)
    ),
    lambda rho, length, pi, f, of_entropy, mean, of_length: (
      (rho / length)[..., None] * pi * (-f - of_entropy - mean * of_length)
    ),
  ),
)
def regularised_gradient(lab: Lab, formula: Formula) -> Evidence:
  """Compares with autodiff of the mean entropy over tokens, (4)."""
  world, single = worlds.random_world(lab), worlds.one_state(lab)
  gradient, of_entropy, of_length = _entropy_parts(world)
  length, f = world.rho.sum(), sm.surprise(world.pi)
  mean = (world.rho * sm.entropy(world.pi)).sum() / length
  found = formula(world.rho, length, world.pi, f, of_entropy, mean, of_length)
  semi = -(world.rho / length)[..., None] * world.pi * f
  alone = -single.pi * sm.surprise(single.pi)
  return Evidence(
    printed=[
      below(
        'error of ∇H against autodiff',
        abs(-world.pi * f - gradient).max(),
        EXACT,
      )
    ],
    given=[
      below(
        'error of ∇H against autodiff',
        abs(alone - _entropy_parts(single)[0]).max(),
        EXACT,
      )
    ],
    holds=[
      below('error of the full formula', abs(found - gradient).max(), EXACT),
      above(
        'error of the semi-gradient, over the size of ∇H',
        np.linalg.norm(semi - gradient) / np.linalg.norm(gradient),
        0.1,
      ),
    ],
  )


def _entropy_parts(
  world: worlds.World,
) -> tuple[Float[np.ndarray, 'P S K'], ...]:
  """∇H by autodiff, and the advantages of entropy and of length to come."""
  return tuple(map(np.asarray, _parts(world.tree, world.logits)))


@jax.jit
def _parts(tree: trees.Tree, logits: jax.Array) -> tuple[jax.Array, ...]:
  pi = jax.nn.softmax(logits)
  paid = trees.state_entropy(logits)[..., None] + 0 * pi
  return (
    jax.grad(trees.mean_entropy, 1)(tree, logits),
    trees.advantages(tree, pi, paid),
    trees.advantages(tree, pi, jnp.ones_like(pi)),
  )


ALPHA = 0.3


@claim(
  '(13)',
  printed='Δz_{s,a} = η (π A − α π (log π − E log π)).',
  holds='With ρ(s) in front, and as the semi-gradient: it is what '
  'covrl.entropy_bonus does, and not the gradient of (11).',
  verdict='holds if there is one state',
  formula=lambda rho, pi, own, f: rho[..., None] * pi * (own - ALPHA * f),
  slips=(lambda rho, pi, own, f: rho[..., None] * pi * (own + ALPHA * f),),
)
def regularised_update(lab: Lab, formula: Formula) -> Evidence:
  """Runs the trainer's bonus, α = 0.3, on every state-action pair."""

  def error(world: worlds.World, predict: Formula) -> float:
    moved = np.asarray(_bonus_step(world.tree, world.logits, ALPHA))
    f = sm.surprise(world.pi)
    update = predict(world.rho, world.pi, world.advantages, f)
    return float(abs(world.logits + update - moved).max())

  def as_printed(rho: Any, pi: Any, own: Any, f: Any) -> Any:
    del rho
    return pi * (own - ALPHA * f)

  world = worlds.random_world(lab)
  return Evidence(
    printed=[below("error of covrl's update", error(world, as_printed), EXACT)],
    given=[
      below(
        "error of covrl's update",
        error(worlds.one_state(lab), as_printed),
        EXACT,
      )
    ],
    holds=[below('error with ρ(s)', error(world, formula), EXACT)],
  )


@jax.jit
def _bonus_step(
  tree: trees.Tree, logits: jax.Array, coefficient: Any
) -> jax.Array:
  chain = covrl.entropy_bonus(coefficient)
  pairs = tk.expected(tree, logits)
  state = init_token_state(chain)
  return tk.update(logits, pairs, chain, state, learning_rate=1.0).logits


def almost_certain(
  eps: Float[np.ndarray, ' n'], actions: int
) -> Float[np.ndarray, 'n K']:
  """One action of probability 1 − ε; the others share ε."""
  rare = np.repeat(eps[:, None] / (actions - 1), actions - 1, axis=1)
  return np.concatenate([1 - eps[:, None], rare], axis=1)


@claim(
  'Thm V.1 (14)',
  printed='The bonus adds α η Var(log π) to ΔH_s, accurately so when the '
  'policy is nearly deterministic.',
  holds='It adds α η Σ π² f². With ε the mass off the likeliest action that is '
  'Θ(ε² log² ε), and Var is Θ(ε log² ε): the restoring force dies '
  'quadratically, in the very regime. Var is exact for the natural gradient, '
  'and always larger than Σ π² f².',
  verdict='fails',
  formula=lambda pi, f: (pi**2 * f**2).sum(-1),
  slips=(lambda pi, f: (pi * f**2).sum(-1),),
)
def restoring_force(lab: Lab, formula: Formula) -> Evidence:
  """Measures what the bonus alone does to entropy as ε falls."""
  eps = np.logspace(-6, -1.5, 16)
  pi = almost_certain(eps, 10)
  f = sm.surprise(pi)
  variance = sm.mean(pi, f**2)
  true = formula(pi, f)
  logs = np.log(9 * (1 - eps) / eps) ** 2
  at = int(abs(np.log10(eps) + 4).argmin())
  z = sm.random_logits(lab.random(), 200, 6, (0.3, 1.0, 2.0))
  p, g = sm.softmax(z), sm.surprise(sm.softmax(z))
  return Evidence(
    printed=[
      below(
        'relative error of Var at ε = 1e-4', abs(variance / true - 1)[at], 0.1
      )
    ],
    holds=[
      below(
        'Σ π² f² less the measured dH/dη',
        abs(sm.entropy_slope(z, -p * g) - formula(p, g)).max(),
        1e-8,
      ),
      below(
        'Var less the measured dH/dη, natural gradient',
        abs(sm.entropy_slope(z, -g) - sm.mean(p, g**2)).max(),
        1e-8,
      ),
      near(
        'exponent of Σ π² f² / log² ε in ε',
        sm.slope(eps, true / logs),
        2,
        0.01,
      ),
      near(
        'exponent of Var / log² ε in ε',
        sm.slope(eps, variance / logs),
        1,
        0.01,
      ),
      near(
        'their ratio over ε K/(K − 1)',
        (true / variance / eps)[at] * 9 / 10,
        1,
        0.01,
      ),
    ],
    pictures=[
      Picture(
        'The restoring force dies quadratically',
        'ε, probability off the likeliest action',
        'dH/dη per unit of α, nats',
        [
          Curve('as printed, Var(log π)', eps, variance, points=True),
          Curve('what the bonus does, Σ π² f²', eps, true, points=True),
          Curve('slope 1', eps, variance[0] * eps / eps[0] / 20, dashed=True),
          Curve(
            'slope 2', eps, true[0] * (eps / eps[0]) ** 2 / 20, dashed=True
          ),
        ],
        caption='Theorem V.1, ten actions. As a policy collapses (to the left) '
        'the printed term overstates the bonus by 1/ε: a collapsed token is '
        'beyond its rescue. The curves are flatter than the guides, dashed, by '
        'their factor log² ε.',
        log_x=True,
        log_y=True,
      )
    ],
  )


@claim(
  'Thm V.1, remark',
  printed='Var(log π) increases as the policy becomes more deterministic.',
  holds='Var = ε (1 − ε) log²((1 − ε)(K − 1)/ε) → 0 where the others share ε: '
  'it rises to a peak and then falls to nothing.',
  verdict='fails',
  formula=lambda eps, k: (
    eps * (1 - eps) * np.log((1 - eps) * (k - 1) / eps) ** 2
  ),
  slips=(lambda eps, k: eps * (1 - eps) * np.log((1 - eps) / eps) ** 2,),
)
def variance_of_logprobs(lab: Lab, formula: Formula) -> Evidence:
  """Follows the variance towards determinism."""
  del lab
  eps = np.logspace(-8, -0.1, 40)
  pi = almost_certain(eps, 10)
  variance = sm.mean(pi, sm.surprise(pi) ** 2)
  return Evidence(
    printed=[
      above(
        'least ratio of Var to that of a larger ε',
        (variance[:-1] / variance[1:]).min(),
        1.0,
      )
    ],
    holds=[
      below(
        'error of the closed form',
        abs(formula(eps, 10) - variance).max(),
        EXACT,
      ),
      below('Var at ε = 1e-8', variance[0], 1e-5),
      above('places of the peak from either end of ε', _inside(variance), 1),
    ],
  )


def _inside(values: Float[np.ndarray, ' n']) -> int:
  """How far the greatest value is from either end, in places."""
  peak = int(values.argmax())
  return min(peak, values.size - 1 - peak)
