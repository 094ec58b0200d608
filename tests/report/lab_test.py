# SPDX-License-Identifier: Apache-2.0
"""The theory lab's page shows what was measured."""

from __future__ import annotations

import pytest
from theory_checks import QUICK

from covrl.report.lab import HIGHLIGHTS, write_lab_page
from covrl.theory.command import Run
from covrl.theory.table import CLAIMS, named


def run(*claims):
  return Run(QUICK, [claim.run(QUICK) for claim in claims], 1.0)


def test_the_page_has_every_claim_check_and_picture(tmp_path):
  done = run(*named('7'), *named('8'), *named('9'), *named('31'))
  page = write_lab_page(tmp_path / 'lab', done).read_text()
  for result in done.results:
    assert f'<h3>{result.claim.name}</h3>' in page
    for picture in result.evidence.pictures:
      assert picture.title in page
  assert 'As printed, 2 statements hold, 1 holds under' in page
  assert '<b>if so: </b>error against autodiff' in page
  assert 'θ<sub>t</sub>' in page
  assert 'not the recorded one' not in page


def test_the_page_says_which_verdicts_are_not_as_recorded(tmp_path):
  (claim,) = named('7')
  page = write_lab_page(tmp_path, run(claim.times(-1.0))).read_text()
  assert '1 of these verdicts is not the recorded one' in page


@pytest.mark.parametrize('name', HIGHLIGHTS)
def test_what_the_page_begins_with_are_claims(name):
  assert name in [claim.name for claim in CLAIMS]
