# SPDX-License-Identifier: Apache-2.0
"""Claims that read the results of long experiments."""

from theory_checks import (
  assert_agrees_with_record,
  assert_disagrees_with_record,
  over_claims,
  over_perturbations,
  uses_experiments,
)

from covrl.theory.sections import CLAIMS

EXPERIMENT_CLAIMS = [claim for claim in CLAIMS if uses_experiments(claim)]


@over_claims(EXPERIMENT_CLAIMS)
def test_claim_agrees_with_its_record(claim):
  assert_agrees_with_record(claim)


@over_perturbations(EXPERIMENT_CLAIMS)
def test_wrong_formula_is_detected(perturbed):
  assert_disagrees_with_record(perturbed)
