# SPDX-License-Identifier: Apache-2.0
"""Tests of the page of theory claims."""

from __future__ import annotations

import pytest
from theory_checks import QUICK

from covrl.report.pages.theory import HIGHLIGHTS, write_theory_page
from covrl.theory.runner import CheckedClaims
from covrl.theory.sections import CLAIMS, find_claims


def check_claims(*claims):
  return CheckedClaims(QUICK, [claim.run(QUICK) for claim in claims], 1.0)


def test_page_has_every_claim_check_and_plot(tmp_path):
  checked = check_claims(
    *find_claims('7'), *find_claims('8'), *find_claims('9'), *find_claims('31')
  )
  page = write_theory_page(tmp_path / 'theory', checked).read_text()
  for result in checked.results:
    assert f'<h3>{result.claim.name}</h3>' in page
    for plot in result.evidence.plots:
      assert plot.title in page
  assert 'hold as printed: 2; under a condition' in page
  assert 'does not state: 1; that do not hold: 1.' in page
  assert '<b>under the condition: </b>error against autodiff' in page
  assert 'θ<sub>t</sub>' in page
  assert 'disagree with the record' not in page


def test_page_lists_claims_that_disagree_with_the_record(tmp_path):
  (claim,) = find_claims('7')
  page = write_theory_page(
    tmp_path, check_claims(claim.scaled(-1.0))
  ).read_text()
  assert 'Claims that disagree with the record: 1. Lemma IV.1 (7).' in page


@pytest.mark.parametrize('name', HIGHLIGHTS)
def test_highlights_name_existing_claims(name):
  assert name in [claim.name for claim in CLAIMS]
