# SPDX-License-Identifier: Apache-2.0
"""Section VI, the covariance-based mechanism, with covrl's own methods."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Bool, Float

import covrl
from covrl.entropy.chain import init_token_state
from covrl.entropy.selectors import top_score
from covrl.theory import softmax as sm
from covrl.theory import tokens as tk
from covrl.theory import tree as trees
from covrl.theory.claims import (
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
from covrl.theory.section_3 import EXACT
from covrl.theory.section_5 import entropy_slope
from covrl.types import TokenMoments

SECTION = Section('VI. The covariance-based mechanism')
claim = SECTION.claim


class Batch(NamedTuple):
  """Sampled tokens of a few bandits, and c* of each."""

  tree: trees.Tree
  logits: jax.Array
  tokens: tk.Tokens
  scores: Float[np.ndarray, 'B T']


class Outcome(NamedTuple):
  """What a chain selected of a batch, and the logits after its update."""

  selection: covrl.Selection
  logits: Float[np.ndarray, 'P K']

  @property
  def mask(self) -> Bool[np.ndarray, 'B T']:
    """The chosen tokens."""
    return np.asarray(self.selection.mask)

  @property
  def entropy(self) -> float:
    """Mean over prompts, after the update."""
    return entropies(self.logits)


@functools.cache
def sampled_bandit(lab: Lab) -> Batch:
  """Responses of one token to four prompts, the same for every claim."""
  random = lab.random()
  tree = trees.random_tree(random, prompts=4, depth=1, actions=8)
  logits = jnp.asarray(1.5 * random.normal(size=tree.rewards.shape))
  tokens, scores = _sampled(tree, logits, lab.key(), 64)
  return Batch(tree, logits, tokens, np.asarray(scores))


@functools.partial(jax.jit, static_argnums=3)
def _sampled(
  tree: trees.Tree, logits: jax.Array, key: jax.Array, responses: int
) -> tuple[tk.Tokens, jax.Array]:
  tokens = tk.sampled(tree, logits, key, responses=responses)
  stats = tk.statistics(logits, tokens)
  moments = tk.moments(logits, tokens)
  return tokens, covrl.exact_score(stats, moments, tokens.advantages)


def outcome(
  lab: Lab, make: Callable[..., optax.GradientTransformation], number: float
) -> Outcome:
  """One update of the batch under a chain, with η = 1e-5.

  Args:
    lab: which lab.
    make: a chain with one selector, of a number.
    number: traced, so that chains that differ by it are compiled once.
  """
  batch = sampled_bandit(lab)
  run = _compiled(make)
  selection, logits = run(batch.logits, batch.tokens, lab.key(), number)
  return Outcome(selection, np.asarray(logits)[:, 0])


@functools.cache
def _compiled(make: Callable[..., optax.GradientTransformation]) -> Any:
  """An update under a chain, and what the chain selected."""

  def run(
    logits: jax.Array, tokens: tk.Tokens, key: jax.Array, number: jax.Array
  ) -> tuple[covrl.Selection, jax.Array]:
    plan, chain = covrl.Plan(), make(number)
    more = {'step': jnp.zeros((), int), 'key': key, 'plan': plan}
    state = init_token_state(chain)
    made = tk.update(logits, tokens, chain, state, learning_rate=RATE, **more)
    return plan.selections()[0], made.logits

  return jax.jit(run)


RATE = 1e-5


def plain_update(
  logits: jax.Array, tokens: tk.Tokens
) -> Float[np.ndarray, 'P K']:
  """The logits after one update without a chain."""
  return np.asarray(_plain(logits, tokens))[:, 0]


@jax.jit
def _plain(logits: jax.Array, tokens: tk.Tokens) -> jax.Array:
  chain = optax.identity()
  state = init_token_state(chain)
  return tk.update(logits, tokens, chain, state, learning_rate=RATE).logits


def entropies(logits: Float[np.ndarray, 'P K']) -> float:
  """Mean entropy over prompts."""
  return float(sm.entropy(sm.softmax(logits)).mean())


@claim(
  'Def. VI.1 (17)',
  printed='C(s, a) = (log π(a) − E log π)(Δz_a − E Δz) is a token’s part in '
  'the covariance: E_π C = Cov(log π, Δz).',
  holds='As printed. The effect of one sampled token is another number: c* = '
  'w [π(a) f(a) − κ], κ = Cov(log π, π), ΔH = −η c*; E_π c* = Cov(log π, π A).',
  verdict='holds',
  formula=lambda w, pi, f, kappa: w * (pi * f - kappa),
)
def token_covariance(lab: Lab, formula: Formula) -> Evidence:
  """Compares C and c* with what a single sampled token does to entropy."""
  random = lab.random()
  z = sm.random_logits(random, 200, 6, (0.3, 1.0, 2.0))
  pi, w = sm.softmax(z), random.normal(size=(200, 6))
  f, own = sm.surprise(pi), sm.centred(pi, w)
  kappa = sm.covariance(pi, np.log(pi), pi)[:, None]
  c = f * sm.centred(pi, pi * own)
  covariance = sm.covariance(pi, np.log(pi), pi * own)
  directions = own[..., None] * (np.eye(6) - pi[:, None, :])
  effect = -entropy_slope(z[:, None], directions)
  exact = formula(own, pi, f, kappa)
  squares = TokenMoments(
    square=jnp.asarray(sm.mean(pi, pi))[:, None],
    square_log=jnp.asarray(sm.mean(pi, pi * np.log(pi)))[:, None],
    square_log_square=jnp.zeros((200, 1)),
  )
  entropy = jnp.asarray(sm.entropy(pi))[:, None]
  stats = covrl.TokenStats(logprobs=jnp.log(pi), entropy=entropy)
  ours = covrl.exact_score(stats, squares, jnp.asarray(own))
  return Evidence(
    printed=[
      below('E C less Cov', abs(sm.mean(pi, c) - covariance).max(), EXACT)
    ],
    holds=[
      below('c* less the effect of one token', abs(exact - effect).max(), 1e-8),
      below(
        'E c* less Cov(log π, π A)',
        abs(sm.mean(pi, exact) - covariance).max(),
        EXACT,
      ),
      below('covrl.exact_score less c*', abs(ours - exact).max(), EXACT),
      above('C less the effect of one token', abs(c - effect).max(), 0.1),
    ],
  )


@claim(
  'Def. VI.2 (18)',
  printed='|I_clip| = r N tokens of the band lose their part in the loss.',
  holds='|I_clip| = min(⌊r N⌋, eligible). A loss term of 0 and a detached one '
  'have the same gradient, not the same value; the tokens stay in the 1/N.',
  verdict='holds if enough tokens lie in the band',
  formula=lambda quota, eligible: min(quota, eligible),
)
def clip_operator(lab: Lab, formula: Formula) -> Evidence:
  """Selects with covrl.clip_cov, from a wide band and from a narrow one."""
  batch = sampled_bandit(lab)
  wide, narrow = (outcome(lab, _clip_above, low) for low in (0.0, 2.5))
  misses = [
    abs(
      made.mask.sum()
      - formula(int(made.selection.quota), int(made.selection.eligible))
    )
    for made in (wide, narrow)
  ]
  kept = jnp.where(wide.mask, 0, batch.tokens.weights)
  zeroed = plain_update(batch.logits, batch.tokens._replace(weights=kept))
  return Evidence(
    printed=[
      near(
        'selected over ⌊r N⌋, narrow band',
        narrow.mask.sum() / int(narrow.selection.quota),
        1,
        0,
      )
    ],
    holds=[
      below('selected less min(⌊r N⌋, eligible)', max(misses), 0),
      below(
        'zeroing less detaching, in gradient',
        abs(zeroed - wide.logits).max() / RATE,
        1e-9,
      ),
    ],
  )


def _clip_above(low: Any) -> optax.GradientTransformation:
  return covrl.clip_cov(0.1, low, 50.0, allow_large=True)


def _detach_top(fraction: Any) -> optax.GradientTransformation:
  """No gradient from the tokens of highest c*."""
  selector = top_score(fraction, score='exact', allow_large=True)
  return covrl.token_masked(optax.set_to_zero(), selector)


def _detach_largest(fraction: Any) -> optax.GradientTransformation:
  """No gradient from the tokens of highest |c*|."""
  selector = top_score(fraction, score='exact', signed=False, allow_large=True)
  return covrl.token_masked(optax.set_to_zero(), selector)


@claim(
  'Prop. VI.1 (19)',
  printed='After detaching r N tokens the covariance that drives the update is '
  'Cov − r/(1 − r) (E[C|I] − Cov), the mean over those kept.',
  holds='With the 1/N of (18), ΔH = −η (Cov − r E[c*|I]): (1 − r) times what '
  'the mean over kept tokens says. The algebra is right, the prediction is not.',
  verdict='fails',
  formula=lambda covariance, r, chosen: covariance - r * chosen,
)
def effective_covariance(lab: Lab, formula: Formula) -> Evidence:
  """Detaches a tenth of the tokens and measures entropy."""
  batch = sampled_bandit(lab)
  made = outcome(lab, _detach_top, 0.1)
  scores, mask = batch.scores, made.mask
  r, mean, chosen = mask.mean(), scores.mean(), scores[mask].mean()
  measured = (entropies(np.asarray(batch.logits)[:, 0]) - made.entropy) / RATE
  measured *= batch.tree.prompts
  printed = mean - r / (1 - r) * (chosen - mean)
  return Evidence(
    printed=[
      below('relative error of −ΔH/η', abs(printed / measured - 1), 0.01)
    ],
    holds=[
      below(
        'relative error with the 1/N',
        abs(formula(mean, r, chosen) / measured - 1),
        1e-3,
      ),
      below(
        '(19) less the mean over kept tokens',
        abs(printed - scores[~mask].mean()),
        EXACT,
      ),
    ],
  )


@claim(
  'Def. VI.3 (20)',
  printed='The top k by |C(s, a)| are the tokens that collapse entropy.',
  holds='Ranked by |c*| many of them raise entropy, and penalising those '
  'costs it. Ranked by signed c* none does; detaching a set I saves (η/N) '
  'Σ_I c*. The published code ranks by sign, and so does covrl.',
  verdict='holds if ranked by sign',
  formula=lambda scores, n: scores.sum() / n,
)
def kl_operator(lab: Lab, formula: Formula) -> Evidence:
  """Selects a fifth by sign and by size, detaches it, measures entropy."""
  batch = sampled_bandit(lab)
  plain = entropies(plain_update(batch.logits, batch.tokens))
  picked, saved, misses = [], [], []
  for chain in (_detach_top, _detach_largest):
    made = outcome(lab, chain, 0.2)
    picked.append(batch.scores[made.mask])
    # The mean over prompts, each of which has a share of the weight.
    saved.append((made.entropy - plain) / RATE * batch.tree.prompts)
    predicted = formula(picked[-1], batch.scores.size)
    misses.append(abs(predicted / saved[-1] - 1))
  return Evidence(
    printed=[
      below(
        'share of the chosen that raise entropy', (picked[1] < 0).mean(), 0.0
      )
    ],
    holds=[
      below('the same, ranked by sign', (picked[0] < 0).mean(), 0.0),
      above('entropy saved, by sign over by size', saved[0] / saved[1], 1.5),
      below('relative error of (η/N) Σ_I c*', max(misses), 0.01),
    ],
  )


@claim(
  'Thm VI.1 (21)',
  printed='The penalty adds −η β ∂KL(π_old ‖ π)/∂z, proportional to π − π_old.',
  holds='As printed: ∂KL/∂z = π − π_old, for the KL of the whole state.',
  verdict='holds',
  formula=lambda pi, old: pi - old,
)
def penalty_gradient(lab: Lab, formula: Formula) -> Evidence:
  """Compares with the penalty of covrl's chain, over every pair."""
  random = lab.random()
  tree = trees.random_tree(random, prompts=5, depth=1, actions=6)
  zeros = jnp.zeros_like(tree.rewards)
  silent = trees.Tree(rewards=zeros, ends=tree.ends, depth=1)
  old = jnp.asarray(random.normal(size=zeros.shape))
  new = old + jnp.asarray(random.normal(size=zeros.shape))
  moved = np.asarray(_penalised(silent, old, new)) - np.asarray(new)
  change = -formula(sm.softmax(np.asarray(new)), sm.softmax(np.asarray(old)))
  return Evidence(
    printed=[
      below('error of −(π − π_old)', abs(moved * 5 - change).max(), EXACT)
    ]
  )


@jax.jit
def _penalised(tree: trees.Tree, old: jax.Array, new: jax.Array) -> jax.Array:
  chain = covrl.add_divergence_penalty(1.0, 'full')
  pairs = tk.expected(tree, old)
  return tk.update(
    new,
    pairs,
    chain,
    init_token_state(chain),
    learning_rate=1.0,
    old_logits=old,
    full_divergence=True,
  ).logits


@claim(
  'Thm VI.1, reading',
  printed='That term opposes updates that would increase covariance.',
  holds='It opposes every displacement. It is 0 at π = π_old, so the first '
  'update of a rollout is untouched; it acts on all logits of the state; and '
  'where an update raised entropy it pulls entropy down, by η β Cov(log π, '
  'π − π_old).',
  verdict='fails',
  formula=lambda pi, old: sm.covariance(pi, np.log(pi), pi - old),
)
def penalty_reading(lab: Lab, formula: Formula) -> Evidence:
  """Displaces policies at random and measures what the penalty does."""
  random = lab.random()
  z = sm.random_logits(random, 1000, 6, (0.5, 1.0, 2.0))
  old = sm.softmax(z)
  moved = z + 0.3 * random.normal(size=z.shape)
  pi = sm.softmax(moved)
  effect = entropy_slope(moved, -(pi - old))
  rose = sm.entropy(pi) > sm.entropy(old)
  return Evidence(
    printed=[
      above('least effect on entropy, after it rose', effect[rose].min(), 0.0)
    ],
    holds=[
      below(
        'Cov(log π, π − π_old) less the effect',
        abs(formula(pi, old) - effect).max(),
        1e-8,
      ),
      below('the same at π = π_old', abs(formula(old, old)).max(), 0.0),
      above(
        'share that pulls down after a rise', (effect[rose] < 0).mean(), 0.5
      ),
      above('share of a state’s logits it moves', (pi != old).mean(), 1.0),
    ],
  )


@claim(
  'Thm VI.2 (22)',
  printed='δ = η Cov(log π, π − π_old) > 0 wherever the covariance of the '
  'update was positive.',
  holds='Not always: with π_old = (.2425, .6006, .0313, .1256), A = (1.199, '
  '.055, −.796, −2.379) and η = ½ the covariance is positive, entropy falls, '
  'and δ < 0. With two actions δ > 0 whenever entropy fell.',
  verdict='fails',
  formula=lambda pi, old: sm.covariance(pi, np.log(pi), pi - old),
)
def kl_dynamics(lab: Lab, formula: Formula) -> Evidence:
  """The counterexample, and how common its kind is."""
  old = np.array([[0.2425, 0.6006, 0.0313, 0.1256]])
  a = sm.centred(old, np.array([[1.199, 0.055, -0.796, -2.379]]))
  after = sm.softmax(np.log(old) + 0.5 * old * a)
  covariance = sm.covariance(old, np.log(old), old * a)
  random = lab.random()
  shares = {}
  for actions in (2, 4):
    z = sm.random_logits(
      random, lab.size(20_000, 5000), actions, (0.5, 1.0, 2.0)
    )
    p = sm.softmax(z)
    own = sm.centred(p, random.normal(size=p.shape))
    q = sm.softmax(z + 0.5 * p * own)
    fell = (sm.covariance(p, np.log(p), p * own) > 0) & (
      sm.entropy(q) < sm.entropy(p)
    )
    shares[actions] = (formula(q, p)[fell] < 0).mean()
  return Evidence(
    printed=[above('δ/η of the counterexample', formula(after, old)[0], 0.0)],
    holds=[
      above('its covariance', covariance[0], 0.01),
      below(
        'its change of entropy', (sm.entropy(after) - sm.entropy(old))[0], -0.01
      ),
      above('share of δ < 0, four actions', shares[4], 0.005),
      below('share of δ < 0, two actions', shares[2], 0.0),
      below(
        'δ/η less the effect on entropy',
        abs(formula(after, old) - entropy_slope(np.log(after), old - after))[0],
        1e-9,
      ),
    ],
  )


KINDS = ('full', 'k2', 'k3', 'abs', 'k1')


@claim(
  'Thm VI.2, size of βδ',
  printed='β δ counteracts the entropy decrease at first order, its size '
  'controlled by β.',
  holds='π − π_old = O(η), so β δ = O(β η²), the order of the neglected '
  'remainder: after two updates it is β η² Cov(log π, π (u − E u)), u = π A. '
  'k2 and k3 are as small. |log r|, as published, is of first order: a soft '
  'threshold on the advantage. k1 averages to nothing over all tokens of a '
  'state, and over a selected few is a full-size push down.',
  verdict='fails',
  formula=lambda pi, u: sm.covariance(pi, np.log(pi), pi * sm.centred(pi, u)),
)
def estimators(lab: Lab, formula: Formula) -> Evidence:
  """Four updates of one rollout under each estimator of M in (20)."""
  tree, logits, rates = _one_state(lab), _start(lab), RATES
  plain = _effect(lab, None)
  relative = {
    kind: abs(_effect(lab, kind) / plain - 1)[:, -1] for kind in KINDS
  }
  pi = sm.softmax(np.asarray(logits)[0])
  own = sm.centred(pi, np.asarray(tree.rewards)[0])
  once = (_effect(lab, 'full') - plain)[:, 1]
  predicted = formula(pi, pi * own)[0] * rates**2
  exponents = {kind: sm.slope(rates, relative[kind]) for kind in KINDS}
  names = {'full': 'full KL', 'abs': '|log r|'}
  return Evidence(
    printed=[
      near(
        'exponent in η of the relative effect, full KL',
        exponents['full'],
        0,
        0.2,
      )
    ],
    holds=[
      *(
        near(f'the same, {names.get(kind, kind)}', exponents[kind], order, 0.1)
        for kind, order in zip(KINDS, (1, 1, 1, 0, 1), strict=True)
      ),
      near(
        'β δ over its prediction, two updates, η = 1e-3',
        (once / predicted)[2],
        1,
        0.02,
      ),
    ],
    pictures=[
      Picture(
        'What the penalty does to entropy, by estimator',
        'learning rate η',
        'effect on ΔH, relative to no penalty',
        [
          Curve(names.get(kind, kind), rates, relative[kind], points=True)
          for kind in KINDS
        ],
        caption='Four updates of one rollout, β = 1, every token penalised. '
        'The full KL of the theorem vanishes with the step; |log r|, which is '
        'what was published, does not.',
        log_x=True,
        log_y=True,
      )
    ],
  )


RATES, UPDATES = np.logspace(-4, -1, 7), 4


def _one_state(lab: Lab) -> trees.Tree:
  return trees.random_tree(lab.random(), prompts=1, depth=1, actions=6)


def _start(lab: Lab) -> jax.Array:
  return jnp.asarray(lab.random().normal(size=(2, 1, 1, 6))[1])


@functools.cache
def _effect(lab: Lab, kind: str | None) -> Float[np.ndarray, 'n U']:
  """ΔH after each update of a rollout, for each learning rate."""
  tree, logits = _one_state(lab), _start(lab)
  chain = (
    optax.identity()
    if kind is None
    else covrl.add_divergence_penalty(1.0, kind, dead_zone=1e-12)
  )

  def run(rate: jax.Array) -> jax.Array:
    pairs = tk.expected(tree, logits)

    def once(state: Any, _: None) -> tuple[Any, jax.Array]:
      made = tk.update(
        state[0],
        pairs,
        chain,
        state[1],
        learning_rate=rate,
        old_logits=logits,
        full_divergence=kind == 'full',
      )
      return (made.logits, made.token_state), made.logits

    start = (logits, init_token_state(chain))
    return jax.lax.scan(once, start, length=UPDATES)[1]

  ends = np.asarray(jax.jit(jax.vmap(run))(jnp.asarray(RATES)))[:, :, 0, 0]
  return sm.entropy(sm.softmax(ends)) - entropies(np.asarray(logits)[:, 0])
