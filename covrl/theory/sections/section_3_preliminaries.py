# SPDX-License-Identifier: Apache-2.0
"""Section III, preliminaries: objective, softmax, entropy, policy gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Float

from covrl.theory import categorical, tabular, tree_policy, trees
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Evidence,
  at_least,
  at_most,
)

SECTION = Section('III. Preliminaries')
claim = SECTION.claim


@claim(
  '(1)',
  printed='J(θ) = E[r(y)], y drawn token by token from π_θ.',
  corrected='As printed. The sum over all responses equals the recursion that '
  'the other claims use.',
  verdict='holds',
  formula=lambda probabilities, rewards: np.sum(probabilities * rewards),
)
def objective(settings: Settings, formula: Formula) -> Evidence:
  """Enumerates every response of a random tree."""
  policy = tree_policy.random_tree_policy(settings)
  probabilities, rewards = np.array(
    list(tree_policy.enumerate_responses(policy.tree, policy.pi))
  ).T
  recursion = float(jax.jit(trees.objective)(policy.tree, policy.logits))
  return Evidence(
    printed=[
      at_most(
        'probabilities sum to 1, error',
        abs(probabilities.sum() - 1),
        EXACT_TOLERANCE,
      ),
      at_most(
        'sum over responses minus recursion',
        abs(formula(probabilities, rewards) - recursion),
        EXACT_TOLERANCE,
      ),
    ]
  )


@claim(
  '(2)',
  printed='π(a|s) = exp z_{s,a} / Σ exp z_{s,a′}.',
  corrected='As printed. A constant added to the logits of a state changes '
  'nothing.',
  verdict='holds',
  formula=lambda z: np.exp(z) / np.exp(z).sum(-1, keepdims=True),
)
def softmax(settings: Settings, formula: Formula) -> Evidence:
  """Compares with JAX's softmax, and shifts each state's logits."""
  z = categorical.random_logits(settings.rng(), 100, 8)
  shift = settings.rng().normal(size=(100, 1))
  reference = np.asarray(jax.nn.softmax(z))
  return Evidence(
    printed=[
      at_most(
        'largest error', abs(formula(z) - reference).max(), EXACT_TOLERANCE
      ),
      at_most(
        'change under a shift per state',
        abs(formula(z + shift) - reference).max(),
        EXACT_TOLERANCE,
      ),
    ]
  )


@claim(
  '(3)',
  printed='H = −Σ π log π = E[−log π].',
  corrected='As printed, with 0 log 0 = 0; and 0 ≤ H ≤ log K.',
  verdict='holds',
  formula=lambda pi: -(pi * np.log(pi)).sum(-1),
)
def entropy(settings: Settings, formula: Formula) -> Evidence:
  """Compares with the entropy of covrl's token statistics."""
  z = categorical.random_logits(settings.rng(), 300, 8, (0.0, 0.1, 1.0, 5.0))
  pair = np.array([[0.0, 0.0, *[-1e4] * 6]])  # Six probabilities are 0.
  logits = jnp.asarray(np.concatenate([z, pair]))
  covrl_entropy = tabular.token_stats_from_logits(
    logits, jnp.zeros(301, int)
  ).entropy
  values = formula(categorical.softmax(z))
  return Evidence(
    printed=[
      at_most(
        "error against covrl's",
        abs(values - covrl_entropy[:-1]).max(),
        EXACT_TOLERANCE,
      ),
      at_most('largest H − log K', (values - np.log(8)).max(), EXACT_TOLERANCE),
      at_least('least entropy', values.min(), 0.0),
    ],
    corrected=[
      at_most(
        "covrl's error where probabilities are 0",
        abs(covrl_entropy[-1] - np.log(2)),
        EXACT_TOLERANCE,
      )
    ],
  )


@claim(
  '(4)',
  printed='H(π) is the mean of H(π(·|s)) over the stationary distribution d.',
  corrected='Responses end, so the chain of their prefixes has no stationary '
  'distribution. If a new prompt follows each response, it has one: d = ρ/T, '
  'where ρ(s) is the expected number of visits of s per response and T their '
  'sum. H(π) is then the mean over tokens, and T · H(π) is the entropy of '
  'responses.',
  verdict='holds if a new prompt follows each response',
  formula=lambda rho, length: rho / length,
)
def visitation(settings: Settings, formula: Formula) -> Evidence:
  """Applies the transition matrices to d, with and without restarts."""
  policy = tree_policy.random_tree_policy(settings)
  d = formula(policy.rho, policy.rho.sum()).ravel()
  within, restarts = tree_policy.transition_matrices(policy)
  probabilities, _ = np.array(
    list(tree_policy.enumerate_responses(policy.tree, policy.pi))
  ).T
  response_entropy = -(
    probabilities * np.log(probabilities * policy.tree.prompts)
  ).sum()
  state_entropy = (d * categorical.entropy(policy.pi).ravel()).sum()
  return Evidence(
    printed=[at_most('|d P − d|', abs(d @ within - d).max(), EXACT_TOLERANCE)],
    conditional=[
      at_most(
        '|d P − d|', abs(d @ (within + restarts) - d).max(), EXACT_TOLERANCE
      ),
      at_most('d sums to 1, error', abs(d.sum() - 1), EXACT_TOLERANCE),
    ],
    corrected=[
      at_most(
        'T · H(π) minus the entropy of responses',
        abs(policy.rho.sum() * state_entropy - response_entropy),
        EXACT_TOLERANCE,
      ),
    ],
  )


@claim(
  '(5)',
  printed='∇J = E[Σ_t ∇log π(a_t|s_t) A(s_t, a_t)].',
  corrected="As printed. covrl's loss, token chain and pull-back give the same "
  'gradient for all state-action pairs with weights ρ(s) π(a|s).',
  verdict='holds',
  formula=lambda rho, pi, advantages: rho[..., None] * pi * advantages,
)
def policy_gradient(settings: Settings, formula: Formula) -> Evidence:
  """Compares the formula with autodiff of J and with covrl's update."""
  policy = tree_policy.random_tree_policy(settings)
  theorem = formula(policy.rho, policy.pi, policy.advantages)
  return Evidence(
    printed=[
      at_most(
        'error against autodiff',
        abs(theorem - tree_policy.policy_gradient(policy)).max(),
        EXACT_TOLERANCE,
      ),
      at_most(
        "error of covrl's update",
        abs(policy.logits + theorem - _unit_step(policy)).max(),
        EXACT_TOLERANCE,
      ),
    ]
  )


def _unit_step(policy: tree_policy.TreePolicy) -> Float[np.ndarray, 'P S K']:
  """The logits after an exact update with η = 1."""
  return np.asarray(_exact_update(policy.tree, policy.logits))


@jax.jit
def _exact_update(tree: trees.Tree, logits: jax.Array) -> jax.Array:
  chain = optax.identity()
  pairs = tabular.all_pairs(tree, logits)
  return tabular.update(logits, pairs, chain, learning_rate=1.0).logits


@claim(
  '(6)',
  printed='E_{a∼π}[A^π(s, a)] = 0 for all s.',
  corrected="As printed for the policy's own advantages. Group-relative "
  'advantages are not centred per state: their expected update is '
  'π (A − E_π A).',
  verdict='holds',
  formula=lambda pi, a: pi * (a - (pi * a).sum(-1, keepdims=True)),
  wrong_formulas=(lambda pi, a: pi * a,),
)
def centred_advantages(settings: Settings, formula: Formula) -> Evidence:
  """Averages the one-sample update A (e_a − π) over actions, for random A."""
  policy = tree_policy.random_tree_policy(settings)
  estimates = settings.rng().normal(size=policy.pi.shape)
  sampled_updates = np.eye(policy.tree.actions) - policy.pi[..., None, :]
  average = (
    policy.pi[..., :, None] * estimates[..., :, None] * sampled_updates
  ).sum(-2)
  return Evidence(
    printed=[
      at_most(
        'largest |E A|',
        abs(categorical.expectation(policy.pi, policy.advantages)).max(),
        EXACT_TOLERANCE,
      )
    ],
    corrected=[
      at_most(
        'π (A − E A) minus the mean sampled update',
        abs(formula(policy.pi, estimates) - average).max(),
        EXACT_TOLERANCE,
      ),
      at_least(
        'error of π A for advantages that are not centred',
        abs(policy.pi * estimates - average).max(),
        0.1,
      ),
    ],
  )
