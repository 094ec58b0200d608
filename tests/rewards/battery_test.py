# SPDX-License-Identifier: Apache-2.0
"""Every attack and control program gets the expected outcome and leaves nothing."""

import collections
import concurrent.futures

import numpy as np
import pytest
from rewards.battery import CASES, Case
from rewards.leftovers import leftovers, leftovers_once_ended

from covrl.rewards import Judge

CANARY = 'a-secret-of-the-trainer'


@pytest.fixture(scope='module')
def judge():
  judge = Judge(backend='bubblewrap')
  # The first program imports modules and opens files that stay open.
  judge.judge('print(1)', [{'stdin': '', 'stdout': '1'}])
  before = leftovers()
  yield judge
  assert leftovers_once_ended(before) == before


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
  """Sets a variable of the environment that no program may read."""
  monkeypatch.setenv('COVRL_CANARY', CANARY)


def test_battery_has_enough_programs():
  kinds = collections.Counter(case.kind for case in CASES)
  assert kinds['control'] >= 40
  assert kinds.total() - kinds['control'] >= 60
  assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize(
  'case', CASES, ids=lambda case: f'{case.kind}: {case.name}'
)
def test_program_gets_the_expected_outcome(judge: Judge, case: Case):
  outcome = judge.judge(case.program, case.tests, time_limit=case.time_limit)
  np.testing.assert_equal(outcome.score, case.score, str(outcome))
  assert outcome.status in case.statuses, outcome
  assert CANARY not in outcome.detail


def test_concurrent_programs_do_not_disturb_each_other(judge: Judge):
  short_cases = [case for case in CASES if case.kind != 'resource exhaustion'][
    ::3
  ]
  with concurrent.futures.ThreadPoolExecutor(6) as pool:
    outcomes = list(
      pool.map(lambda case: judge.judge(case.program, case.tests), short_cases)
    )
  scores = [outcome.score for outcome in outcomes]
  np.testing.assert_equal(scores, [case.score for case in short_cases])
