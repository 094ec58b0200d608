# SPDX-License-Identifier: Apache-2.0
"""Every attack and control program gets the expected outcome; nothing is left."""

import collections
import concurrent.futures

import pytest
from rewards.battery import ROWS, Row
from rewards.leftovers import leftovers

from covrl.rewards import Judge

CANARY = 'a-secret-of-the-trainer'


@pytest.fixture(scope='module')
def judge():
  judge = Judge(backend='bubblewrap')
  # The first program imports modules and opens files that stay open.
  judge.judge('print(1)', [{'stdin': '', 'stdout': '1'}])
  before = leftovers()
  yield judge
  assert leftovers() == before


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
  monkeypatch.setenv('COVRL_CANARY', CANARY)


def test_battery_has_enough_programs():
  kinds = collections.Counter(row.kind for row in ROWS)
  assert kinds['forging'] + kinds['taking'] + kinds['reaching'] >= 60
  assert kinds['control'] >= 40
  assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize('row', ROWS, ids=lambda row: f'{row.kind}: {row.name}')
def test_program_gets_the_expected_outcome(judge: Judge, row: Row):
  outcome = judge.judge(row.program, row.tests, time_limit=row.time_limit)
  assert outcome.score == row.score, outcome
  assert outcome.status in row.statuses, outcome
  assert CANARY not in outcome.detail


def test_concurrent_programs_do_not_disturb_each_other(judge: Judge):
  quick = [row for row in ROWS if row.kind != 'taking'][::3]
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    outcomes = list(
      pool.map(lambda row: judge.judge(row.program, row.tests), quick)
    )
  scores = [outcome.score for outcome in outcomes]
  assert scores == [row.score for row in quick]
