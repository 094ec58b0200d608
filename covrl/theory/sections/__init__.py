# SPDX-License-Identifier: Apache-2.0
"""All claims in the paper's order, one module per section of the paper."""

from __future__ import annotations

from covrl.theory.claim import Claim
from covrl.theory.sections import (
  annealing,
  derived,
  section_3_preliminaries,
  section_4_foundations,
  section_4_policy_gradient,
  section_5_bonus,
  section_5_bonus_limits,
  section_6_clip_cov,
  section_6_kl_cov,
  section_6_kl_estimators,
  section_7_bias,
  section_7_convergence,
  section_7_stability,
  section_7_variance,
  section_8_guidelines,
  unbiasedness,
)

SECTIONS = (
  section_3_preliminaries.SECTION,
  section_4_foundations.SECTION,
  section_4_policy_gradient.SECTION,
  section_5_bonus.SECTION,
  section_5_bonus_limits.SECTION,
  section_6_clip_cov.SECTION,
  section_6_kl_cov.SECTION,
  section_6_kl_estimators.SECTION,
  section_7_bias.SECTION,
  section_7_variance.SECTION,
  section_7_convergence.SECTION,
  section_7_stability.SECTION,
  section_8_guidelines.SECTION,
  annealing.SECTION,
  unbiasedness.SECTION,
  derived.SECTION,
)

CLAIMS: tuple[Claim, ...] = tuple(
  claim for section in SECTIONS for claim in section.claims
)


def find_claims(name: str) -> tuple[Claim, ...]:
  """Returns the claims whose name matches, in the paper's order.

  Args:
    name: such as 'VII.4', '(33)' or 'Lemma IV.1'.

  Raises:
    ValueError: no claim matches.

  >>> [claim.name for claim in find_claims('IV.1')]
  ['Lemma IV.1 (7)', 'Prop. IV.1 (9)', 'Thm IV.1 (10)', 'Remark IV.1']
  """
  claims = tuple(claim for claim in CLAIMS if claim.matches(name))
  if not claims:
    names = ', '.join(claim.name for claim in CLAIMS)
    raise ValueError(f'a claim must be one of {names}, got {name!r}')
  return claims
