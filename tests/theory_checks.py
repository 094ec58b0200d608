# SPDX-License-Identifier: Apache-2.0
"""Helpers of the tests of theory claims."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from covrl.theory import runner
from covrl.theory.claim import Claim, Settings

QUICK = Settings(quick=True)

_EXPERIMENT_SECTIONS = (
  'VIII.',
  'Cross terms',
  'Asymptotic unbiasedness',
  'Derived',
)


def uses_experiments(claim: Claim) -> bool:
  """Whether a claim reads the results of long experiments.

  Tests of these claims are in a file of their own, so that they share the
  cached results of one process.
  """
  in_section = claim.section.startswith(_EXPERIMENT_SECTIONS)
  return in_section or claim.name == 'Cor. V.1'


def over_claims(claims: Sequence[Claim]) -> pytest.MarkDecorator:
  """Parametrizes a test over claims."""
  return pytest.mark.parametrize(
    'claim', claims, ids=[claim.name for claim in claims]
  )


def over_perturbations(claims: Sequence[Claim]) -> pytest.MarkDecorator:
  """Parametrizes a test over claims with a wrong formula.

  All but the first wrong formula of each claim are marked as slow.
  """
  return pytest.mark.parametrize(
    'perturbed',
    [
      pytest.param(
        perturbed,
        id=f'{claim.name}, {index}',
        marks=pytest.mark.slow if index else (),
      )
      for claim in claims
      for index, perturbed in enumerate(claim.perturbations())
    ],
  )


def assert_agrees_with_record(claim: Claim) -> None:
  """Asserts that a claim has its recorded verdict and correct formula."""
  result = claim.run(QUICK)
  assert not [check for check in result.evidence.corrected if not check.passes]
  assert result.agrees, result.evidence
  assert claim.wrong_factors


def assert_disagrees_with_record(perturbed: Claim) -> None:
  """Asserts that `covrl theory` reports a wrong formula as a disagreement."""
  assert not runner.run_claims(quick=True, claims=[perturbed]).agrees
