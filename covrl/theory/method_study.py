# SPDX-License-Identifier: Apache-2.0
"""Experiment: the same policies trained with every method and with none.

Eight prompts, each a tree of 25 responses of two tokens with rewards between 0
and 1. In one problem set a single response has reward 1, in the other three
have. Policies start uniform and learn as in the trainer: sixteen responses per
prompt, group-relative advantages, four updates per rollout, no ratio clipping.
All methods, problem sets and seeds are vectorised in one program: one token
chain contains all methods, and the coefficients of a run select its method.

Methods with the same seed use the same noise, so the distance of 'none, other
seed' from 'none' is that of two runs of one method.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

import covrl
from covrl.array_checks import check_integer
from covrl.entropy import DecisionCache
from covrl.theory import tabular, trees
from covrl.theory.claim import Settings
from covrl.theory.evidence import Table
from covrl.theory.float64 import cached_in_float64

PROMPTS, ACTIONS, DEPTH = 8, 5, 2
RESPONSES, UPDATES = 16, 4  # per prompt, per rollout
LEARNING_RATE = 16.0
RECORDED_ITERATIONS = 50  # number of iterations at which results are recorded


class Method(NamedTuple):
  """Coefficients of one method.

  Attributes:
    bonus: coefficient of the entropy bonus.
    penalty: coefficient of KL-Cov's penalty |log r|.
    full_kl: coefficient of KL-Cov's full KL.
    fraction: fraction of tokens that KL-Cov selects.
    clip: fraction of tokens that Clip-Cov detaches, among those with a
      covariance above ½.
    annealed: 1 if coefficients fall linearly to 0 at two thirds of the run.
    other_seed: 1 to use the samples of another seed.
  """

  bonus: ArrayLike = 0.0
  penalty: ArrayLike = 0.0
  full_kl: ArrayLike = 0.0
  fraction: ArrayLike = 0.0
  clip: ArrayLike = 0.0
  annealed: ArrayLike = 0.0
  other_seed: ArrayLike = 0.0


BONUSES = (0.03, 0.1, 0.3, 1.0, 3.0)
METHODS = {
  'none': Method(),
  'none, other seed': Method(other_seed=1.0),
  **{f'bonus {alpha:g}': Method(bonus=alpha) for alpha in BONUSES},
  'bonus 0.3, annealed': Method(bonus=0.3, annealed=1.0),
  'KL-Cov |log r| 5 %': Method(penalty=1.0, fraction=0.05),
  'KL-Cov |log r| 5 %, annealed': Method(
    penalty=1.0, fraction=0.05, annealed=1.0
  ),
  'KL-Cov |log r| 20 %': Method(penalty=1.0, fraction=0.2),
  'KL-Cov |log r| 20 %, annealed': Method(
    penalty=1.0, fraction=0.2, annealed=1.0
  ),
  'KL-Cov full KL 20 %': Method(full_kl=1.0, fraction=0.2),
  'KL-Cov full KL 20 %, annealed': Method(
    full_kl=1.0, fraction=0.2, annealed=1.0
  ),
  'KL-Cov 20 %, β = 0': Method(fraction=0.2),
  'Clip-Cov 5 %': Method(clip=0.05),
  'Clip-Cov 20 %': Method(clip=0.2),
}
PROBLEM_SETS = ('a single optimum', 'three tied optima')


@dataclasses.dataclass(frozen=True)
class MethodResults:
  """Training runs of every method, problem set and seed (axes `A`, `W`, `E`).

  The other axes are recorded iterations `t`, prompts `P` and responses `L`.

  Attributes:
    steps: recorded iterations.
    returns: J at these iterations.
    entropy: entropy per token at these iterations, in nats.
    probabilities: final probabilities of the responses.
    rewards: rewards of the responses.
  """

  steps: Float[np.ndarray, ' t']
  returns: Float[np.ndarray, 'A W E t']
  entropy: Float[np.ndarray, 'A W E t']
  probabilities: Float[np.ndarray, 'A W E P L']
  rewards: Float[np.ndarray, 'W P L']

  @property
  def reward_gap(self) -> Float[np.ndarray, 'A W E']:
    """1 − J at the end."""
    return 1 - self.returns[..., -1]

  @property
  def optimal_mass(self) -> Float[np.ndarray, 'A W E P']:
    """Final probability of the optimal responses to each prompt."""
    best = self.rewards[None, :, None] == 1
    return np.where(best, self.probabilities, 0).sum(-1)

  @property
  def stuck_fraction(self) -> Float[np.ndarray, 'A W E']:
    """Fraction of prompts with less than ½ probability of optimal responses."""
    return (self.optimal_mass < 0.5).mean(-1)

  @property
  def distance_from_none(self) -> Float[np.ndarray, 'A W E']:
    """Total variation distance from 'none' with the same seed, mean over
    prompts.
    """
    difference = self.probabilities - self.probabilities[:1]
    return abs(difference).sum(-1).mean(-1) / 2


def problem_rewards() -> Float[np.ndarray, 'W P L']:
  """Rewards of all responses: 1 for one or three of them, ≤ 0.9 for others."""
  rng = np.random.default_rng(11)
  leaves = ACTIONS**DEPTH
  rewards = rng.uniform(0, 0.9, (2, PROMPTS, leaves))
  rewards[1] = rewards[0]
  for prompt in range(PROMPTS):
    best = rng.permutation(leaves)[:3]
    rewards[0, prompt, best[0]] = 1
    rewards[1, prompt, best] = 1
  return rewards


@cached_in_float64
def run_methods(settings: Settings) -> MethodResults:
  """Runs every method for 250 iterations with 24 seeds (quick: 50 with 6)."""
  seeds, iterations = settings.choose(24, 6), settings.choose(250, 50)
  rewards = problem_rewards()
  shape = (len(METHODS), len(PROBLEM_SETS), seeds)
  method, problem_set, seed = (index.ravel() for index in np.indices(shape))
  coefficients = Method(*np.array(list(METHODS.values()))[method].T)
  other_seed = np.asarray(coefficients.other_seed, int)
  runs = ParallelRuns(
    method=jax.tree.map(jnp.asarray, coefficients),
    rewards=jnp.asarray(rewards[problem_set]),
    seed=jnp.asarray(seed + seeds * other_seed),
  )
  stride = iterations // RECORDED_ITERATIONS
  traces = _train(runs, settings.key(), seeds=2 * seeds, stride=stride)
  returns, entropy, probabilities = (
    np.asarray(trace).reshape(*shape, *trace.shape[1:]) for trace in traces
  )
  return MethodResults(
    steps=np.arange(1.0, RECORDED_ITERATIONS + 1) * stride,
    returns=returns,
    entropy=entropy,
    probabilities=probabilities,
    rewards=rewards,
  )


class ParallelRuns(NamedTuple):
  """Training runs that are vectorised in one program (axis `N`).

  Attributes:
    method: coefficients of each run's method.
    rewards: rewards of the responses.
    seed: index of the samples that a run uses.
  """

  method: Method
  rewards: Float[Array, 'N P L']
  seed: Int[Array, ' N']


@functools.partial(jax.jit, static_argnames=('seeds', 'stride'))
def _train(
  runs: ParallelRuns, key: Array, *, seeds: int, stride: int
) -> tuple[Array, Array, Array]:
  """J and H along every run, and final response probabilities."""
  total = RECORDED_ITERATIONS * stride
  tree = trees.full_tree(runs.rewards[0], DEPTH)
  stacked = jax.vmap(lambda rewards: trees.full_tree(rewards, DEPTH))(
    runs.rewards
  )

  def iterate(index: Array, logits: Array) -> Array:
    noise_key, clip_key = jax.random.split(jax.random.fold_in(key, index))
    noise = tabular.gumbel_noise(
      noise_key, seeds, tree=tree, responses=RESPONSES
    )
    remaining = jnp.clip(1 - index / (total * 2 / 3), 0, 1)
    schedule = jnp.where(jnp.asarray(runs.method.annealed) > 0, remaining, 1.0)
    step_all = jax.vmap(_iteration, (0, 0, 0, 0, 0, 0, None))
    return step_all(
      stacked,
      logits,
      runs.method,
      schedule,
      noise[runs.seed],
      runs.seed,
      clip_key,
    )

  def record(logits: Array, start: Array) -> tuple[Array, tuple[Array, Array]]:
    logits = jax.lax.fori_loop(start, start + stride, iterate, logits)
    values = jax.vmap(trees.objective)(stacked, logits)
    return logits, (values, jax.vmap(trees.mean_entropy)(stacked, logits))

  logits, (returns, entropy) = jax.lax.scan(
    record,
    jnp.zeros_like(stacked.rewards),
    jnp.arange(RECORDED_ITERATIONS) * stride,
  )
  pi = jax.nn.softmax(logits)
  probabilities = jax.vmap(trees.response_probabilities)(stacked, pi)
  return returns.T, entropy.T, probabilities


def _iteration(
  tree: trees.Tree,
  logits: Array,
  method: Method,
  schedule: Array,
  noise: Array,
  seed: Array,
  key: Array,
) -> Array:
  """Logits after one rollout and its updates."""
  tokens = tabular.sample_tokens(tree, logits, noise)
  penalties = optax.chain(
    covrl.add_divergence_penalty(schedule * method.penalty, dead_zone=1e-6),
    covrl.add_divergence_penalty(schedule * method.full_kl, 'full'),
  )
  # Like `covrl.kl_cov` with two divergences that share one selection.
  chain = optax.chain(
    covrl.entropy_bonus(schedule * method.bonus),
    covrl.token_masked(
      penalties, covrl.selectors.top_score(method.fraction, allow_large=True)
    ),
    covrl.clip_cov(method.clip, 0.5, 5.0, allow_large=True),
  )
  update = functools.partial(
    tabular.update,
    tokens=tokens,
    token_tx=chain,
    learning_rate=LEARNING_RATE,
    old_logits=logits,
    full_divergence=True,
    key=key,
    sequence_ids=tabular.sequence_ids(tokens, seed),
    step=jnp.zeros((), int),
  )
  cache = DecisionCache()
  update(logits, decisions=cache)  # One selection per rollout.

  def next_update(_: Any, current: Array) -> Array:
    return update(current, decisions=DecisionCache(cache.decisions)).logits

  return jax.lax.fori_loop(0, UPDATES, next_update, logits)


def summary_table(results: MethodResults, problem_set: int) -> Table:
  """Final numbers of every method on one problem set.

  Raises:
    ValueError: `problem_set` is not an index of `PROBLEM_SETS`.
  """
  check_integer('problem_set', problem_set, 0, len(PROBLEM_SETS) - 1)
  early = max(0, round(0.02 * RECORDED_ITERATIONS) - 1)
  rows = [
    [
      name,
      f'{results.reward_gap[method, problem_set].mean():.4f}',
      f'± {results.reward_gap[method, problem_set].std(ddof=1):.4f}',
      f'{results.optimal_mass[method, problem_set].mean():.4f}',
      f'{100 * results.stuck_fraction[method, problem_set].mean():.1f}',
      f'{results.entropy[method, problem_set, :, early].mean():.3f}',
      f'{results.entropy[method, problem_set, :, -1].mean():.4f}',
      f'{results.distance_from_none[method, problem_set].mean():.3f}',
    ]
    for method, name in enumerate(METHODS)
  ]
  return Table(
    title=f'Comparison of methods, {PROBLEM_SETS[problem_set]}',
    header=(
      'method',
      'reward gap',
      'standard deviation over seeds',
      'probability of optimal responses',
      'stuck prompts, %',
      'entropy at 2 %, nats',
      'entropy at the end',
      'TV from none',
    ),
    rows=rows,
    caption=f'{results.reward_gap.shape[-1]} seeds of eight prompts. A prompt is '
    'stuck if optimal responses have less than ½ of the probability. TV is the '
    'total variation distance between response distributions, from ‘none’ with '
    'the same seed.',
  )
