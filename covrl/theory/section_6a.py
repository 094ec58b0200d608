# SPDX-License-Identifier: Apache-2.0
"""Section VI.A–B: a token's part in the covariance, and Clip-Cov."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

import covrl
from covrl.theory import batches
from covrl.theory import softmax as sm
from covrl.theory.claims import (
  EXACT,
  Evidence,
  Formula,
  Lab,
  Section,
  above,
  below,
  near,
)
from covrl.types import TokenMoments

SECTION = Section('VI.A–B A token’s covariance and Clip-Cov')
claim = SECTION.claim


@claim(
  'Def. VI.1 (17)',
  printed='C(s, a) = (log π(a) − E log π)(Δz_a − E Δz) is a token’s part in '
  'the covariance: E_π C = Cov(log π, Δz).',
  holds='As printed. The effect of one sampled token is another number: c* = '
  'w [π(a) f(a) − κ], κ = Cov(log π, π), ΔH = −η c*; E_π c* = Cov(log π, π A).',
  verdict='holds',
  formula=lambda w, pi, f, kappa: w * (pi * f - kappa),
  slips=(
    lambda w, pi, f, kappa: w * pi * f,
    lambda w, pi, f, kappa: w * (pi * f + kappa),
  ),
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
  effect = -sm.entropy_slope(z[:, None], directions)
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
  printed='I_clip is drawn uniformly from the tokens with C in [ω_low, ω_high], '
  '|I_clip| = r N, and its tokens’ part of the loss is 0.',
  holds='|I_clip| = min(⌊r N⌋, eligible). A loss term of 0 and a detached one '
  'have the same gradient, not the same value; the tokens stay in the 1/N of '
  'the mean; and what is printed as a loss is an objective.',
  verdict='holds if enough tokens lie in the band',
  formula=lambda quota, eligible: min(quota, eligible),
)
def clip_operator(lab: Lab, formula: Formula) -> Evidence:
  """Draws with covrl.clip_cov, from a wide band and from a narrow one."""
  batch = batches.sampled_bandit(lab)
  (wide, logits), (narrow, _) = (
    batches.clipped(lab, low, 50.0) for low in (0.0, 2.5)
  )
  quota = int(wide.quota[0])
  misses = [
    abs(some.mask.sum((1, 2)) - formula(quota, int(some.eligible[0]))).max()
    for some in (wide, narrow)
  ]
  masks = np.asarray(wide.mask)
  zeroed = batches.updated(batch, 1.0 - masks[0])
  shares = masks.mean(0)[masks.any(0)]
  return Evidence(
    printed=[
      near(
        'selected over ⌊r N⌋, narrow band', narrow.mask[0].sum() / quota, 1, 0
      )
    ],
    given=[
      near('selected over ⌊r N⌋, wide band', wide.mask[0].sum() / quota, 1, 0),
      near(
        'tokens ever drawn, over those in the band',
        shares.size / int(wide.eligible[0]),
        1,
        0.02,
      ),
      near(
        'χ² of how often each is drawn, over its degrees of freedom',
        _chi_square(shares, batches.DRAWS),
        1,
        0.4,
      ),
    ],
    holds=[
      below('selected less min(⌊r N⌋, eligible)', max(misses), 0),
      below(
        'zeroing less detaching, in gradient',
        abs(zeroed - logits[0]).max() / batches.RATE,
        1e-9,
      ),
    ],
  )


def _chi_square(shares: Float[np.ndarray, ' n'], draws: int) -> float:
  """Of counts against equal chances; about 1 if they are equal."""
  chance = shares.mean()
  return float(draws * shares.var(ddof=1) / (chance * (1 - chance)))


@claim(
  'Prop. VI.1 (19)',
  printed='After detaching r N tokens the covariance that drives the update is '
  'Cov − r/(1 − r) (E[C|I] − Cov), which is less than Cov if E[C|I] > Cov.',
  holds='That is the mean over the tokens kept. Under (18), a mean over all N, '
  'the update follows Cov − r E[c*|I], (1 − r) times that, and is less than Cov '
  'if E[c*|I] > 0; C must be c*, what a sampled token does.',
  verdict='holds if the loss is a mean over the tokens kept',
  formula=lambda covariance, r, chosen: covariance - r * chosen,
  slips=(
    lambda covariance, r, chosen: (
      covariance - r / (1 - r) * (chosen - covariance)
    ),
  ),
)
def effective_covariance(lab: Lab, formula: Formula) -> Evidence:
  """Detaches a tenth of the tokens and measures entropy."""
  batch = batches.sampled_bandit(lab)
  scores, mask = batch.exact, batches.top(batch.exact, 0.1)
  r, mean, chosen = mask.mean(), scores.mean(), scores[mask].mean()
  printed = mean - r / (1 - r) * (chosen - mean)
  detached = batches.entropy_taken(batch, 1.0 - mask)
  rescaled = batches.entropy_taken(batch, (1.0 - mask) / (1 - r))
  return Evidence(
    printed=[
      below('relative error of −ΔH/η', abs(printed / detached - 1), 0.01)
    ],
    given=[
      below('relative error of −ΔH/η', abs(printed / rescaled - 1), 1e-3),
      below(
        '(19) less the mean over kept tokens',
        abs(printed - scores[~mask].mean()),
        EXACT,
      ),
    ],
    holds=[
      below(
        'relative error under (18)',
        abs(formula(mean, r, chosen) / detached - 1),
        1e-3,
      ),
    ],
  )
