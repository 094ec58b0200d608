# SPDX-License-Identifier: Apache-2.0
"""Section VI.A–B: a token's contribution to the covariance, and Clip-Cov.

In the statements, c* is the exact score of a token (`covrl.exact_score`), w a token's
weight in the loss, I the set of detached tokens, and f = log π + H.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import covrl
from covrl.theory import categorical, sampled_batch
from covrl.theory.claim import Formula, Section, Settings
from covrl.theory.evidence import (
  EXACT_TOLERANCE,
  Evidence,
  at_least,
  at_most,
  close_to,
)
from covrl.types import TokenMoments

SECTION = Section('VI.A–B A token’s covariance and Clip-Cov')
claim = SECTION.claim


@claim(
  'Def. VI.1 (17)',
  printed='C(s, a) = (log π(a) − E log π)(Δz_a − E Δz) is a token’s '
  'contribution to the covariance: E_π C = Cov(log π, Δz).',
  corrected='As printed. The effect of one sampled token is a different value: c* = '
  'w [π(a) f(a) − κ], κ = Cov(log π, π), ΔH = −η c*; E_π c* = Cov(log π, π A).',
  verdict='holds',
  formula=lambda w, pi, f, kappa: w * (pi * f - kappa),
  wrong_formulas=(
    lambda w, pi, f, kappa: w * pi * f,
    lambda w, pi, f, kappa: w * (pi * f + kappa),
  ),
)
def token_covariance(settings: Settings, formula: Formula) -> Evidence:
  """Compares C and c* with the entropy change caused by one sampled token."""
  rng = settings.rng()
  z = categorical.random_logits(rng, 200, 6, (0.3, 1.0, 2.0))
  pi, w = categorical.softmax(z), rng.normal(size=(200, 6))
  f, advantages = categorical.centred_logprobs(pi), categorical.centred(pi, w)
  kappa = categorical.covariance(pi, np.log(pi), pi)[:, None]
  c = f * categorical.centred(pi, pi * advantages)
  covariance = categorical.covariance(pi, np.log(pi), pi * advantages)
  directions = advantages[..., None] * (np.eye(6) - pi[:, None, :])
  effect = -categorical.entropy_derivative(z[:, None], directions)
  exact = formula(advantages, pi, f, kappa)

  def per_token(values: Float[np.ndarray, ' n']) -> Array:
    """Repeats the value of each state for all of its actions."""
    return jnp.broadcast_to(jnp.asarray(values)[:, None], pi.shape)

  moments = TokenMoments(
    square=per_token(categorical.expectation(pi, pi)),
    square_log=per_token(categorical.expectation(pi, pi * np.log(pi))),
    square_log_square=jnp.zeros(pi.shape),
  )
  entropy = per_token(categorical.entropy(pi))
  stats = covrl.TokenStats(logprobs=jnp.log(pi), entropy=entropy)
  library_score = covrl.exact_score(stats, moments, jnp.asarray(advantages))
  return Evidence(
    printed=[
      at_most(
        'E C minus Cov',
        abs(categorical.expectation(pi, c) - covariance).max(),
        EXACT_TOLERANCE,
      )
    ],
    corrected=[
      at_most(
        'c* minus the effect of one token', abs(exact - effect).max(), 1e-8
      ),
      at_most(
        'E c* minus Cov(log π, π A)',
        abs(categorical.expectation(pi, exact) - covariance).max(),
        EXACT_TOLERANCE,
      ),
      at_most(
        'covrl.exact_score minus c*',
        abs(library_score - exact).max(),
        EXACT_TOLERANCE,
      ),
      at_least('C minus the effect of one token', abs(c - effect).max(), 0.1),
    ],
  )


@claim(
  'Def. VI.2 (18)',
  printed='I_clip is drawn uniformly from the tokens with C in [ω_low, ω_high], '
  '|I_clip| = r N, and its tokens’ part of the loss is 0.',
  corrected='|I_clip| = min(⌊r N⌋, eligible). A detached loss term has the same '
  'gradient as a term of 0 but another value; the tokens still count in the N '
  'of the mean; and the expression printed as a loss is an objective.',
  verdict='holds if enough tokens lie in the band',
  formula=lambda quota, eligible: min(quota, eligible),
)
def clip_operator(settings: Settings, formula: Formula) -> Evidence:
  """Draws tokens with covrl.clip_cov from a wide and from a narrow band."""
  batch = sampled_batch.sample_bandit_batch(settings)
  (wide, logits), (narrow, _) = (
    sampled_batch.draw_clip_cov(settings, low, 50.0) for low in (0.0, 2.5)
  )
  quota = int(wide.quota[0])
  count_errors = [
    abs(
      selection.mask.sum((1, 2)) - formula(quota, int(selection.eligible[0]))
    ).max()
    for selection in (wide, narrow)
  ]
  masks = np.asarray(wide.mask)
  zeroed = sampled_batch.updated_logits(batch, 1.0 - masks[0])
  selection_rates = masks.mean(0)[masks.any(0)]
  return Evidence(
    printed=[
      close_to(
        'selected divided by ⌊r N⌋, narrow band',
        narrow.mask[0].sum() / quota,
        1,
        0,
      )
    ],
    conditional=[
      close_to(
        'selected divided by ⌊r N⌋, wide band', wide.mask[0].sum() / quota, 1, 0
      ),
      close_to(
        'fraction of tokens in the band that some draw selects',
        selection_rates.size / int(wide.eligible[0]),
        1,
        0.02,
      ),
      close_to(
        'χ² of the number of draws per token, per degree of freedom',
        _chi_square(selection_rates, sampled_batch.CLIP_COV_DRAWS),
        1,
        0.4,
      ),
    ],
    corrected=[
      at_most('selected minus min(⌊r N⌋, eligible)', max(count_errors), 0),
      at_most(
        'gradient with zeroed minus with detached tokens',
        abs(zeroed - logits[0]).max() / sampled_batch.LEARNING_RATE,
        1e-9,
      ),
    ],
  )


def _chi_square(selection_rates: Float[np.ndarray, ' n'], draws: int) -> float:
  """χ² per degree of freedom of counts; about 1 for equal probabilities."""
  chance = selection_rates.mean()
  return float(draws * selection_rates.var(ddof=1) / (chance * (1 - chance)))


@claim(
  'Prop. VI.1 (19)',
  printed='After detaching r N tokens the covariance that drives the update is '
  'Cov − r/(1 − r) (E[C|I] − Cov), which is less than Cov if E[C|I] > Cov.',
  corrected='This is the mean over the remaining tokens. Under (18), a mean over '
  'all N tokens, the update follows Cov − r E[c*|I], which is (1 − r) times as '
  'large, and less than Cov if E[c*|I] > 0. C must be c*, the effect of a '
  'sampled token.',
  verdict='holds if the loss is a mean over the remaining tokens',
  formula=lambda covariance, r, chosen_mean: covariance - r * chosen_mean,
  wrong_formulas=(
    lambda covariance, r, chosen_mean: (
      covariance - r / (1 - r) * (chosen_mean - covariance)
    ),
  ),
)
def effective_covariance(settings: Settings, formula: Formula) -> Evidence:
  """Detaches a tenth of the tokens and measures the entropy change."""
  batch = sampled_batch.sample_bandit_batch(settings)
  scores, mask = (
    batch.exact_scores,
    sampled_batch.top_tokens(batch.exact_scores, 0.1),
  )
  r, mean, chosen_mean = mask.mean(), scores.mean(), scores[mask].mean()
  printed = mean - r / (1 - r) * (chosen_mean - mean)
  detached = sampled_batch.entropy_decrease(batch, 1.0 - mask)
  rescaled = sampled_batch.entropy_decrease(batch, (1.0 - mask) / (1 - r))
  return Evidence(
    printed=[
      at_most('relative error of −ΔH/η', abs(printed / detached - 1), 0.01)
    ],
    conditional=[
      at_most('relative error of −ΔH/η', abs(printed / rescaled - 1), 1e-3),
      at_most(
        '(19) minus the mean over remaining tokens',
        abs(printed - scores[~mask].mean()),
        EXACT_TOLERANCE,
      ),
    ],
    corrected=[
      at_most(
        'relative error under (18)',
        abs(formula(mean, r, chosen_mean) / detached - 1),
        1e-3,
      ),
    ],
  )
