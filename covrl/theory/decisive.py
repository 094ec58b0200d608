# SPDX-License-Identifier: Apache-2.0
"""The decisive test: the same policies under every method, and controls.

Eight prompts, each a tree of 25 responses of two tokens that pay between 0 and
1. In one world a single response pays 1; in the other three do. Policies start
uniform and learn as in the trainer: sixteen responses a prompt, group-relative
advantages, four updates a rollout, no clip. All arms, worlds and seeds are
lanes of one program: one chain of all methods, whose numbers differ.

Arms of a seed share its noise, so that 'none' under another seed says
how far two runs of the same method are apart.
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
from covrl.entropy.base import init_token_state
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory.claims import Lab, Table

PROMPTS, ACTIONS, DEPTH = 8, 5, 2
RESPONSES, UPDATES, RATE = 16, 4, 16.0
POINTS = 50  # of a trace


class Method(NamedTuple):
  """The numbers of one arm.

  Attributes:
    bonus: coefficient of the entropy bonus.
    penalty: of KL-Cov's |log r|.
    full: of KL-Cov's full KL.
    fraction: of tokens that KL-Cov selects.
    clip: of tokens that Clip-Cov detaches, among those above ½.
    annealed: 1 if coefficients fall linearly to 0, at two thirds of the run.
    other_seed: 1 for samples of another seed.
  """

  bonus: ArrayLike = 0.0
  penalty: ArrayLike = 0.0
  full: ArrayLike = 0.0
  fraction: ArrayLike = 0.0
  clip: ArrayLike = 0.0
  annealed: ArrayLike = 0.0
  other_seed: ArrayLike = 0.0


BONUSES = (0.03, 0.1, 0.3, 1.0, 3.0)
ARMS = {
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
  'KL-Cov full KL 20 %': Method(full=1.0, fraction=0.2),
  'KL-Cov full KL 20 %, annealed': Method(full=1.0, fraction=0.2, annealed=1.0),
  'KL-Cov 20 %, β = 0': Method(fraction=0.2),
  'Clip-Cov 5 %': Method(clip=0.05),
  'Clip-Cov 20 %': Method(clip=0.2),
}
WORLDS = ('a single optimum', 'three tied optima')


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What became of every arm, world and seed (`A`, `W`, `E`).

  Attributes:
    steps: iterations at the points of the traces.
    value: J along the run.
    entropy: per token, along the run, in nats.
    leaves: probabilities of the responses at the end.
    outcomes: what they pay.
  """

  steps: Float[np.ndarray, ' t']
  value: Float[np.ndarray, 'A W E t']
  entropy: Float[np.ndarray, 'A W E t']
  leaves: Float[np.ndarray, 'A W E P L']
  outcomes: Float[np.ndarray, 'W P L']

  @property
  def gap(self) -> Float[np.ndarray, 'A W E']:
    """Reward lost at the end."""
    return 1 - self.value[..., -1]

  @property
  def optimal(self) -> Float[np.ndarray, 'A W E P']:
    """Probability of the optimal responses to each prompt."""
    best = self.outcomes[None, :, None] == 1
    return np.where(best, self.leaves, 0).sum(-1)

  @property
  def stuck(self) -> Float[np.ndarray, 'A W E']:
    """Share of prompts of which less than half the answers are optimal."""
    return (self.optimal < 0.5).mean(-1)

  @property
  def distance(self) -> Float[np.ndarray, 'A W E']:
    """Total variation from 'none' under the same seed, mean over prompts."""
    return abs(self.leaves - self.leaves[:1]).sum(-1).mean(-1) / 2


def worlds() -> Float[np.ndarray, 'W P L']:
  """What the responses pay: one or three of them 1, the others up to .9."""
  random = np.random.default_rng(11)
  leaves = ACTIONS**DEPTH
  outcomes = random.uniform(0, 0.9, (2, PROMPTS, leaves))
  outcomes[1] = outcomes[0]
  for prompt in range(PROMPTS):
    best = random.permutation(leaves)[:3]
    outcomes[0, prompt, best[0]] = 1
    outcomes[1, prompt, best] = 1
  return outcomes


@functools.cache
def run(lab: Lab) -> Outcome:
  """Runs every arm: 24 seeds of 250 iterations, or 6 of 50."""
  seeds, iterations = lab.size(24, 6), lab.size(250, 50)
  outcomes = worlds()
  shape = (len(ARMS), len(WORLDS), seeds)
  arm, world, seed = (index.ravel() for index in np.indices(shape))
  methods = Method(*np.array(list(ARMS.values()))[arm].T)
  lanes = Lanes(
    method=jax.tree.map(jnp.asarray, methods),
    outcomes=jnp.asarray(outcomes[world]),
    seed=jnp.asarray(seed + seeds * np.asarray(methods.other_seed, int)),
  )
  traces = _train(lanes, lab.key(), seeds=2 * seeds, chunk=iterations // POINTS)
  value, entropy, leaves = (
    np.asarray(trace).reshape(*shape, *trace.shape[1:]) for trace in traces
  )
  return Outcome(
    steps=np.arange(1.0, POINTS + 1) * (iterations // POINTS),
    value=value,
    entropy=entropy,
    leaves=leaves,
    outcomes=outcomes,
  )


class Lanes(NamedTuple):
  """Runs side by side (`N`).

  Attributes:
    method: numbers of each.
    outcomes: what its responses pay.
    seed: which samples it draws.
  """

  method: Method
  outcomes: Float[Array, 'N P L']
  seed: Int[Array, ' N']


@functools.partial(jax.jit, static_argnames=('seeds', 'chunk'))
def _train(
  lanes: Lanes, key: Array, *, seeds: int, chunk: int
) -> tuple[Array, Array, Array]:
  """J and H along every run, and the responses' probabilities at its end."""
  total = POINTS * chunk
  alike = trees.full_tree(lanes.outcomes[0], DEPTH)
  grown = jax.vmap(lambda outcomes: trees.full_tree(outcomes, DEPTH))(
    lanes.outcomes
  )

  def iterate(index: Array, logits: Array) -> Array:
    draw, clip = jax.random.split(jax.random.fold_in(key, index))
    noise = tk.noise(draw, seeds, tree=alike, responses=RESPONSES)
    left = jnp.clip(1 - index / (total * 2 / 3), 0, 1)
    share = jnp.where(jnp.asarray(lanes.method.annealed) > 0, left, 1.0)
    once = jax.vmap(_iteration, (0, 0, 0, 0, 0, 0, None))
    return once(
      grown, logits, lanes.method, share, noise[lanes.seed], lanes.seed, clip
    )

  def point(logits: Array, start: Array) -> tuple[Array, tuple[Array, Array]]:
    logits = jax.lax.fori_loop(start, start + chunk, iterate, logits)
    values = jax.vmap(trees.objective)(grown, logits)
    return logits, (values, jax.vmap(trees.mean_entropy)(grown, logits))

  logits, (value, entropy) = jax.lax.scan(
    point, jnp.zeros_like(grown.rewards), jnp.arange(POINTS) * chunk
  )
  leaves = jax.vmap(trees.response_chances)(grown, jax.nn.softmax(logits))
  return value.T, entropy.T, leaves


def _iteration(
  tree: trees.Tree,
  logits: Array,
  method: Method,
  share: Array,
  noise: Array,
  seed: Array,
  key: Array,
) -> Array:
  """A rollout and its updates."""
  tokens = tk.sampled(tree, logits, noise)
  penalties = optax.chain(
    covrl.add_divergence_penalty(share * method.penalty, dead_zone=1e-6),
    covrl.add_divergence_penalty(share * method.full, 'full'),
  )
  # Two of `covrl.kl_cov`, one per divergence, with a selection in common.
  chain = optax.chain(
    covrl.entropy_bonus(share * method.bonus),
    covrl.token_masked(
      penalties, covrl.top_score(method.fraction, allow_large=True)
    ),
    covrl.clip_cov(method.clip, 0.5, 5.0, allow_large=True),
  )
  update = functools.partial(
    tk.update,
    tokens=tokens,
    token_tx=chain,
    token_state=init_token_state(chain),
    learning_rate=RATE,
    old_logits=logits,
    full_divergence=True,
    key=key,
    sequence_ids=tk.names(tokens, seed),
    step=jnp.zeros((), int),
  )
  plan = covrl.Plan()
  update(logits, plan=plan)  # For its decisions: one selection a rollout.

  def again(_: Any, now: Array) -> Array:
    return update(now, plan=covrl.Plan(plan.decisions)).logits

  return jax.lax.fori_loop(0, UPDATES, again, logits)


def summary(outcome: Outcome, world: int) -> Table:
  """The table of one world: every arm's end."""
  early = max(0, round(0.02 * POINTS) - 1)
  rows = [
    [
      name,
      f'{outcome.gap[arm, world].mean():.4f}',
      f'± {outcome.gap[arm, world].std(ddof=1):.4f}',
      f'{outcome.optimal[arm, world].mean():.4f}',
      f'{100 * outcome.stuck[arm, world].mean():.1f}',
      f'{outcome.entropy[arm, world, :, early].mean():.3f}',
      f'{outcome.entropy[arm, world, :, -1].mean():.4f}',
      f'{outcome.distance[arm, world].mean():.3f}',
    ]
    for arm, name in enumerate(ARMS)
  ]
  return Table(
    title=f'The decisive test, {WORLDS[world]}',
    header=(
      'method',
      'reward lost',
      'over seeds',
      'mass on the optimal set',
      'stuck prompts, %',
      'entropy at 2 %, nats',
      'entropy at the end',
      'TV from none',
    ),
    rows=rows,
    caption=f'{outcome.gap.shape[-1]} seeds of eight prompts. A prompt is '
    'stuck if less than half of its answers are optimal; TV is the total '
    'variation of response distributions from ‘none’ under the same seed.',
  )
