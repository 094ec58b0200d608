# SPDX-License-Identifier: Apache-2.0
"""Invalid results of a scorer affect only their own response, whose outcome has the reason."""

import math
import pathlib
import time

import pytest

from covrl.rewards import Outcome, RewardPool, Status, _worker_main

HERE = pathlib.Path(__file__).parent
INVALID, CRASH = Status.INVALID, Status.CRASH


@pytest.fixture(scope='module')
def pool():
  """A pool whose scorer does what a response names."""
  with pytest.MonkeyPatch.context() as patch:
    patch.syspath_prepend(str(HERE))
    import odd_scorers

    with RewardPool(odd_scorers.score, workers=1, timeout=1.0) as opened:
      opened.warm_up()
      yield opened


def score_all(pool, *responses, reference=None):
  """Outcomes of some responses."""
  references = [reference] * len(responses)
  return pool.submit(list(responses), references).result(timeout=60)


@pytest.mark.parametrize(
  ('response', 'score'),
  [('float32', 0.5), ('int64', 2.0), ('bool_', 1.0), ('array', 0.25)],
)
def test_scalars_of_numpy_are_numbers(pool, response, score):
  assert score_all(pool, response) == [Outcome(score, Status.SCORED)]


@pytest.mark.parametrize(
  ('response', 'status', 'detail'),
  [
    ('arrays', INVALID, 'the scorer returned array([0.25, 0.5 ])'),
    ('text', INVALID, "the scorer returned '1.0'"),
    ('list', INVALID, 'the scorer returned [1.0]'),
    ('generator', INVALID, 'the scorer returned <generator'),
    ('dict', INVALID, 'the scorer returned {0: 0, 1: 0'),
    ('huge', INVALID, 'the scorer returned 1000000'),
    ('complex', INVALID, 'the scorer returned 1j'),
    ('no text', INVALID, 'the scorer returned an object of NoText'),
    ('unprintable', CRASH, 'UnprintableError'),
    ('surrogate', CRASH, 'ValueError: \\ud800'),
    ('long', CRASH, 'ValueError: xxxx'),
    ('exit', CRASH, 'SystemExit: 3'),
    ('status', INVALID, "the scorer returned an Outcome with status 'fine'"),
    ('no status', INVALID, 'the scorer returned an Outcome with status None'),
    ('score', INVALID, "the scorer returned an Outcome with score 'one'"),
    ('nothing', INVALID, 'the scorer returned an Outcome with score None'),
  ],
)
def test_results_that_are_not_numbers_are_in_the_detail_of_the_outcome(
  pool, response, status, detail
):
  outcome, after = score_all(pool, response, '3')
  assert (outcome.status, math.isnan(outcome.score)) == (status, True)
  assert outcome.detail.startswith(detail), outcome.detail
  assert len(outcome.detail) <= 2_100
  outcome.detail.encode()
  assert after == Outcome(3.0, Status.SCORED)


def test_details_are_texts_of_limited_length(pool, tmp_path):
  assert score_all(pool, 'detail')[0].detail == "{'a': 1}"
  (outcome,) = score_all(pool, 'long detail')
  assert (outcome.score, len(outcome.detail) <= 2_100) == (1.0, True)
  marker = tmp_path / 'executed'
  (outcome,) = score_all(pool, 'code', reference=str(marker))
  assert 'Unpickled' in outcome.detail
  assert not marker.exists()


@pytest.mark.parametrize(
  'response',
  [
    *('half', 'noise', 'forged', 'forged line', 'deep', 'much'),
    *('close', 'shutdown', 'fork', 'stop later'),
  ],
)
def test_a_broken_channel_affects_one_response(pool, response):
  """A worker is replaced if its scorer writes to the channel; scores stay in order."""
  began = time.monotonic()
  first, *others = score_all(pool, response, '2', '3', '4')
  assert time.monotonic() - began < 20.0
  assert first.status in (CRASH, Status.TIMEOUT, Status.SCORED)
  assert first.score == 1.0 or first.detail
  unscored = [outcome for outcome in others if not outcome.has_score]
  assert len(unscored) + (not first.has_score) <= 1, (first, others)
  for outcome, score in zip(others, (2.0, 3.0, 4.0), strict=True):
    assert outcome.detail if outcome in unscored else outcome.score == score
  (later,) = score_all(pool, '5')
  # What a slow process writes late affects a later response, if no earlier one.
  assert later.score == 5.0 or (first.has_score and not unscored), later
  assert score_all(pool, '6') == [Outcome(6.0, Status.SCORED)]


def test_the_trainer_executes_nothing_that_a_worker_sends(pool, tmp_path):
  marker = tmp_path / 'executed'
  outcome, after = score_all(pool, 'forged code', '2', reference=str(marker))
  assert not marker.exists()
  assert not outcome.has_score
  assert after.score == 2.0


def test_output_of_scorers_is_discarded(pool, capfd):
  assert score_all(pool, 'print') == [Outcome(1.0, Status.SCORED)]
  assert capfd.readouterr() == ('', '')


def test_statuses_of_workers_are_those_of_the_library():
  assert list(_worker_main._STATUSES) == [status.value for status in Status]
