# SPDX-License-Identifier: Apache-2.0
"""Section III, preliminaries: objective, softmax, entropy, policy gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from covrl.entropy.base import init_token_state
from covrl.theory import softmax as sm
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory import worlds
from covrl.theory.claims import (
  EXACT,
  Evidence,
  Formula,
  Lab,
  Section,
  above,
  below,
)

SECTION = Section('III. Preliminaries')
claim = SECTION.claim


@claim(
  '(1)',
  printed='J(θ) = E[r(y)], y drawn token by token from π_θ.',
  holds='As printed: the sum over all responses equals the recursion that '
  'everything below is computed with.',
  verdict='holds',
  formula=lambda chances, paid: np.sum(chances * paid),
)
def objective(lab: Lab, formula: Formula) -> Evidence:
  """Enumerates every response of a random tree."""
  world = worlds.random_world(lab)
  chances, paid = np.array(list(worlds.responses(world.tree, world.pi))).T
  recursion = float(jax.jit(trees.objective)(world.tree, world.logits))
  return Evidence(
    printed=[
      below('probabilities sum to 1, error', abs(chances.sum() - 1), EXACT),
      below(
        'sum over responses less recursion',
        abs(formula(chances, paid) - recursion),
        EXACT,
      ),
    ]
  )


@claim(
  '(2)',
  printed='π(a|s) = exp z_{s,a} / Σ exp z_{s,a′}.',
  holds='As printed. Logits are defined up to a constant per state, so every '
  'statement must be, and is, tested under such shifts.',
  verdict='holds',
  formula=lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
)
def softmax(lab: Lab, formula: Formula) -> Evidence:
  """Compares with JAX's softmax, and shifts each state's logits."""
  z = sm.random_logits(lab.random(), 100, 8)
  shift = lab.random().normal(size=(100, 1))
  reference = np.asarray(jax.nn.softmax(z))
  return Evidence(
    printed=[
      below('largest error', abs(formula(z) - reference).max(), EXACT),
      below(
        'change under a shift per state',
        abs(formula(z + shift) - reference).max(),
        EXACT,
      ),
    ]
  )


@claim(
  '(3)',
  printed='H = −Σ π log π = E[−log π].',
  holds='As printed, and 0 ≤ H ≤ log K; 0 log 0 must be coded as 0.',
  verdict='holds',
  formula=lambda pi: -(pi * np.log(pi)).sum(-1),
)
def entropy(lab: Lab, formula: Formula) -> Evidence:
  """Compares with the entropy of the trainer's own token statistics."""
  z = sm.random_logits(lab.random(), 300, 8, (0.0, 0.1, 1.0, 5.0))
  pair = np.array([[0.0, 0.0, *[-1e4] * 6]])  # Six probabilities are 0.
  logits = jnp.asarray(np.concatenate([z, pair]))
  ours = tk.token_stats_from_logits(logits, jnp.zeros(301, int)).entropy
  values = formula(sm.softmax(z))
  return Evidence(
    printed=[
      below(
        "error against the trainer's", abs(values - ours[:-1]).max(), EXACT
      ),
      below('largest excess over log K', (values - np.log(8)).max(), EXACT),
      above('least entropy', values.min(), 0.0),
    ],
    holds=[
      below(
        "the trainer's error where probabilities are 0",
        abs(ours[-1] - np.log(2)),
        EXACT,
      )
    ],
  )


@claim(
  '(4)',
  printed='H(π) is the mean of H(π(·|s)) over the stationary distribution d.',
  holds='A response ends, so its chain has no stationary distribution over '
  'prefixes. If a new prompt follows each response it has one, and it is d = '
  'ρ/T, with ρ(s) the expected visits of s in a response and T their sum: the '
  'mean is over tokens, and T · H(π) is the entropy of responses.',
  verdict='holds if a new prompt follows each response',
  formula=lambda rho, length: rho / length,
)
def visitation(lab: Lab, formula: Formula) -> Evidence:
  """Pushes d through the chain of prefixes, with and without restarts."""
  world = worlds.random_world(lab)
  d = formula(world.rho, world.rho.sum()).ravel()
  stays, restarts = worlds.transitions(world)
  chances, _ = np.array(list(worlds.responses(world.tree, world.pi))).T
  of_responses = -(chances * np.log(chances * world.tree.prompts)).sum()
  of_states = (d * sm.entropy(world.pi).ravel()).sum()
  return Evidence(
    printed=[below('|d P − d|', abs(d @ stays - d).max(), EXACT)],
    given=[
      below('|d P − d|', abs(d @ (stays + restarts) - d).max(), EXACT),
      below('d sums to 1, error', abs(d.sum() - 1), EXACT),
    ],
    holds=[
      below(
        'T · H(π) less the entropy of responses',
        abs(world.rho.sum() * of_states - of_responses),
        EXACT,
      ),
    ],
  )


@claim(
  '(5)',
  printed='∇J = E[Σ_t ∇log π(a_t|s_t) A(s_t, a_t)].',
  holds="As printed; and covrl's loss, chain and pull-back give it when every "
  'state-action pair is fed to them with weight ρ(s) π(a|s).',
  verdict='holds',
  formula=lambda rho, pi, own: rho[..., None] * pi * own,
)
def policy_gradient(lab: Lab, formula: Formula) -> Evidence:
  """Compares autodiff of J, the expectation, and the trainer's machinery."""
  world = worlds.random_world(lab)
  theorem = formula(world.rho, world.pi, world.advantages)
  return Evidence(
    printed=[
      below(
        'error against autodiff',
        abs(theorem - worlds.gradient(world)).max(),
        EXACT,
      ),
      below(
        "error of covrl's update",
        abs(world.logits + theorem - _unit_step(world)).max(),
        EXACT,
      ),
    ]
  )


def _unit_step(world: worlds.World) -> Float[np.ndarray, 'P S K']:
  """The logits after an exact update with η = 1."""
  return np.asarray(_step(world.tree, world.logits))


@jax.jit
def _step(tree: trees.Tree, logits: jax.Array) -> jax.Array:
  chain = optax.identity()
  state = init_token_state(chain)
  pairs = tk.expected(tree, logits)
  return tk.update(logits, pairs, chain, state, learning_rate=1.0).logits


@claim(
  '(6)',
  printed='E_{a∼π}[A^π(s, a)] = 0 for all s.',
  holds="As printed for the policy's own advantages. Group-relative ones are "
  'not centred per state: their expected update is π (A − E_π A).',
  verdict='holds',
  formula=lambda pi, a: pi * (a - (pi * a).sum(-1, keepdims=True)),
  slips=(lambda pi, a: pi * a,),
)
def centred_advantages(lab: Lab, formula: Formula) -> Evidence:
  """Averages the one-sample update A (e_a − π) over a, for any A."""
  world = worlds.random_world(lab)
  estimates = lab.random().normal(size=world.pi.shape)
  each = np.eye(world.tree.actions) - world.pi[..., None, :]
  average = (world.pi[..., :, None] * estimates[..., :, None] * each).sum(-2)
  return Evidence(
    printed=[
      below(
        'largest |E A|', abs(sm.mean(world.pi, world.advantages)).max(), EXACT
      )
    ],
    holds=[
      below(
        'π (A − E A) less the mean sampled update',
        abs(formula(world.pi, estimates) - average).max(),
        EXACT,
      ),
      above(
        'error of π A for advantages that are not centred',
        abs(world.pi * estimates - average).max(),
        0.1,
      ),
    ],
  )
