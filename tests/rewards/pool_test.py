# SPDX-License-Identifier: Apache-2.0
"""The reward pool returns outcomes in order and in time, whatever a scorer does."""

import math
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import pytest
from rewards.leftovers import descendants

from covrl.rewards import Outcome, RewardPool, Status

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


@pytest.fixture(autouse=True)
def _scorers_are_importable(monkeypatch):
  monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def scorers():
  import scorers

  return scorers


def statuses(outcomes: list[Outcome]) -> list[str]:
  return [outcome.status.value for outcome in outcomes]


def children() -> set[int]:
  """Returns all child processes of this one, zombies included."""
  pids = set()
  for stat in pathlib.Path('/proc').glob('[0-9]*/stat'):
    try:
      fields = stat.read_text().rsplit(')', 1)[1].split()
    except OSError:
      continue
    if int(fields[1]) == os.getpid():
      pids.add(int(stat.parent.name))
  return pids


def is_running(pid: int) -> bool:
  """Returns whether a process exists and is not a zombie."""
  try:
    stat = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return stat.rsplit(')', 1)[1].split()[0] not in 'ZX'


def test_scores_come_in_order(scorers):
  with RewardPool(scorers.echo, workers=2) as pool:
    first = pool.submit([str(n) for n in range(40)], [None] * 40)
    second = pool.submit(['-1.5'], [None])
    assert [outcome.score for outcome in first.result()] == list(range(40))
    assert second.result() == [Outcome(-1.5, Status.SCORED)]
    assert pool.submit([], []).result() == []


def test_bad_response_does_not_affect_others(scorers):
  responses = ['1', 'hang', '2', 'exit', '3', 'raise', 'nan', 'none', '4']
  with RewardPool(scorers.echo, workers=1, timeout=0.5) as pool:
    outcomes = pool.submit(responses, [None] * len(responses)).result()
  assert statuses(outcomes) == [
    *('scored', 'timeout', 'scored', 'crash', 'scored', 'crash'),
    *('invalid', 'invalid', 'scored'),
  ]
  scores = [
    outcome.score for outcome in outcomes if not math.isnan(outcome.score)
  ]
  assert scores == [1.0, 2.0, 3.0, 4.0]
  details = [outcome.detail for outcome in outcomes]
  assert '0.5 s' in details[1]
  assert 'exit code 3' in details[3]
  assert details[5] == 'LookupError: no such thing'
  assert details[7] == 'the scorer returned None'


def test_kills_a_hang_in_c_code_in_time(scorers):
  with RewardPool(scorers.echo, workers=1, timeout=0.5) as pool:
    pool.warm_up()
    start = time.monotonic()
    outcomes = pool.submit(['spin', '1'], [None, None]).result()
    assert time.monotonic() - start < 10.0
  assert statuses(outcomes) == ['timeout', 'scored']


@pytest.mark.skipif(sys.platform != 'linux', reason='limits memory on Linux')
def test_memory_is_limited(scorers):
  with RewardPool(scorers.echo, workers=1, memory_limit=1 << 28) as pool:
    outcomes = pool.submit(['allocate', '1'], [None, None]).result()
  assert statuses(outcomes) == ['crash', 'scored']
  assert 'MemoryError' in outcomes[0].detail


def test_scores_equal_responses_once(scorers, tmp_path):
  path = str(tmp_path / 'calls')
  with RewardPool(scorers.record_call) as pool:
    outcomes = pool.submit(['a', 'b', 'a', 'a'], [path] * 4).result()
    assert [outcome.score for outcome in outcomes] == [1.0] * 4
    pool.submit(['a'], [path]).result()
  calls = pathlib.Path(path).read_text().split()
  assert sorted(calls) == ['a', 'a', 'b']


def test_cancelled_responses_are_not_scored(scorers, tmp_path):
  path = str(tmp_path / 'calls')
  with RewardPool(scorers.record_call, workers=1) as pool:
    call = pool.open(2)
    pool.cancel(call)
    pool.add(call, 0, 'dropped', path)
    pool.submit(['begun'], [path]).result()
    assert not call.future.done()
  assert pathlib.Path(path).read_text().split() == ['begun']


def test_replaces_a_worker_that_dies_idle(scorers):
  before = children()
  with RewardPool(scorers.echo, workers=1) as pool:
    pool.warm_up()
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.2)
    assert pool.submit(['7'], [None]).result() == [Outcome(7.0, Status.SCORED)]


def test_workers_start_where_the_working_directory_was_removed(
  scorers, tmp_path, monkeypatch
):
  """A scratch directory is removed before and during a run."""
  # Python itself does not start with a relative one there.
  monkeypatch.delenv('PYTHONPATH', raising=False)
  folder = tmp_path / 'scratch'
  for removed_before in (True, False):
    folder.mkdir()
    monkeypatch.chdir(folder)
    before = children()
    if removed_before:
      folder.rmdir()
    with RewardPool(scorers.echo, workers=1) as pool:
      pool.warm_up()
      if not removed_before:
        folder.rmdir()
      (worker,) = children() - before
      os.kill(worker, signal.SIGKILL)
      time.sleep(0.2)
      assert pool.submit(['7'], [None]).result()[0].score == 7.0
    monkeypatch.chdir(tmp_path)


def test_close_leaves_no_process_behind(scorers):
  before = children()
  pool = RewardPool(scorers.echo, workers=2)
  pool.warm_up()
  pending = pool.submit(['hang'] * 2 + ['1'], [None, 0, None])
  assert len(children() - before) == 2
  start = time.monotonic()
  pool.close()
  assert time.monotonic() - start < 5.0
  assert children() == before
  with pytest.raises(RuntimeError, match='closed'):
    pending.result()
  with pytest.raises(RuntimeError, match='closed'):
    pool.submit(['1'], [None])
  pool.close()


def test_close_while_workers_start_leaves_no_process_behind(scorers):
  before = children()
  RewardPool(scorers.echo, workers=2).close()
  assert children() == before


def test_workers_end_with_a_killed_program(tmp_path):
  script = tmp_path / 'program.py'
  script.write_text(
    textwrap.dedent("""
      import sys, time
      sys.path[:0] = [sys.argv[1], sys.argv[2]]
      import scorers
      from covrl.rewards import RewardPool
      if __name__ == '__main__':
        pool = RewardPool(scorers.echo, workers=2, timeout=0.5)
        pool.warm_up()
        pool.submit(['1', 'spin'], [None, None])
        pids = [w._process.pid for w in pool._workers]
        print(*pids, flush=True)
        time.sleep(3600)
      """)
  )
  program = subprocess.Popen(
    [sys.executable, str(script), str(HERE), str(ROOT)],
    stdout=subprocess.PIPE,
    text=True,
  )
  with program:
    assert program.stdout is not None
    workers = [int(pid) for pid in program.stdout.readline().split()]
    program.kill()
  assert len(workers) == 2
  deadline = time.monotonic() + 10.0
  while any(map(is_running, workers)) and time.monotonic() < deadline:
    time.sleep(0.05)
  assert not any(map(is_running, workers))


@pytest.mark.parametrize('stopped_seconds', [2.5, 5.0])
def test_responses_are_scored_again_after_all_processes_were_stopped(
  tmp_path, stopped_seconds
):
  """A scheduler suspends a job, for less and more than the pool's timeout."""
  calls = tmp_path / 'calls'
  script = tmp_path / 'program.py'
  script.write_text(
    textwrap.dedent("""
      import sys
      sys.path[:0] = [sys.argv[1], sys.argv[2]]
      import scorers
      from covrl.rewards import RewardPool
      if __name__ == '__main__':
        with RewardPool(scorers.measure_time, workers=1, timeout=1.4) as pool:
          outcomes = pool.submit(['1.2'], [sys.argv[3]]).result()
        print(outcomes[0].status.value, outcomes[0].score)
      """)
  )
  with subprocess.Popen(
    [sys.executable, str(script), str(HERE), str(ROOT), str(calls)],
    stdout=subprocess.PIPE,
    text=True,
  ) as program:
    wait_until(calls.exists)
    time.sleep(0.1)
    processes = [program.pid, *descendants(program.pid)]
    for signal_number in (signal.SIGSTOP, signal.SIGCONT):
      for pid in processes:
        os.kill(pid, signal_number)
      if signal_number == signal.SIGSTOP:
        time.sleep(stopped_seconds)
    assert program.stdout is not None
    assert program.stdout.read() == 'scored 1.0\n'
  assert len(calls.read_text().splitlines()) == 2


def wait_until(condition: Callable[[], bool]) -> None:
  deadline = time.monotonic() + 60.0
  while not condition() and time.monotonic() < deadline:
    time.sleep(0.02)
  assert condition()


def test_workers_do_not_import_jax(scorers):
  modules = ['jax', 'numpy', 'covrl.rewards.countdown', 'scorers']
  with RewardPool(scorers.has_module, workers=1) as pool:
    outcomes = pool.submit(modules, [None] * 4).result()
  assert [outcome.score for outcome in outcomes] == [0.0, 0.0, 0.0, 1.0]


def test_scoring_countdown_does_not_import_jax(scorers):
  with RewardPool(scorers.countdown_loads, workers=1, timeout=60.0) as pool:
    outcomes = pool.submit(['jax', 'reasoning_gym'], [None] * 2).result()
  assert [outcome.score for outcome in outcomes] == [0.0, 1.0]


def test_reports_a_scorer_that_fails_to_start(scorers):
  with RewardPool(scorers.fail, example=('', None)) as pool:
    with pytest.raises(RuntimeError, match='OSError: the licence server'):
      pool.warm_up()
    with pytest.raises(RuntimeError, match='the licence server is down'):
      pool.submit(['1'], [None])


def test_gives_up_a_worker_that_never_becomes_ready(scorers):
  with RewardPool(
    scorers.echo, example=('hang', None), start_timeout=1.0
  ) as pool:
    pending = pool.submit(['1'], [None])
    with pytest.raises(RuntimeError, match='not ready after 1 s'):
      pending.result(timeout=10.0)


def test_a_replaced_worker_must_load_the_same_code(tmp_path, monkeypatch):
  """An installed module may be edited or upgraded during a run."""
  file = tmp_path / 'edited_scorer.py'
  text = """
import os
def score(response, reference):
  return os._exit(3) if response == 'exit' else 1.0
"""
  file.write_text(text)
  monkeypatch.syspath_prepend(str(tmp_path))
  with RewardPool('edited_scorer:score', workers=1) as pool:
    outcomes = pool.submit(['exit', '1'], [None, None]).result()
    assert statuses(outcomes) == ['crash', 'scored']
    file.write_text(text.replace('1.0', '7.0'))
    assert pool.submit(['2'], [None]).result()[0].score == 1.0
    pending = pool.submit(['exit', '3'], [None, None])
    with pytest.raises(RuntimeError, match=r'edited_scorer\.py. was changed'):
      pending.result()


def test_a_score_of_random_numbers_depends_on_its_arguments_only(scorers):
  """A resumed run has other workers, which score in another order."""
  responses = ['a', 'b', 'c', 'd\ud800', 'e', 'f']
  scores = []
  for ordered_responses in (responses, responses[::-1]):
    with RewardPool(scorers.random_score, workers=2, example=('', [])) as pool:
      outcomes = pool.submit(ordered_responses, [['x', 1]] * 6).result()
      scores.append([outcome.score for outcome in outcomes])
  assert scores[0] == scores[1][::-1]
  assert len(set(scores[0])) == 6


def test_refuses_invalid_arguments(scorers):
  with pytest.raises(ValueError, match='workers can import'):
    RewardPool(lambda response, reference: 1.0)
  with pytest.raises(
    ValueError, match='timeout must be finite and positive, got 0'
  ):
    RewardPool(scorers.echo, timeout=0.0)
  with (
    RewardPool(scorers.echo, workers=1) as pool,
    pytest.raises(ValueError, match='1 for 2'),
  ):
    pool.submit(['1', '2'], [None])


def test_references_that_are_not_json_are_refused(scorers):
  nested: list[object] = []
  for _ in range(100_000):
    nested = [nested]
  with RewardPool(scorers.echo, workers=1) as pool:
    for reference, shown in (
      (10**5000, 'a value of type int'),
      (nested, 'a value of type list'),
      ({1}, '{1}'),
    ):
      with pytest.raises(ValueError, match=f'must be JSON, got {shown}'):
        pool.submit(['a'], [reference])
