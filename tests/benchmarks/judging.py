# SPDX-License-Identifier: Apache-2.0
"""Security and cost of the judge, which runs programs and their tests in a sandbox.

  python tests/benchmarks/judging.py                      # all parts
  python tests/benchmarks/judging.py --parts=speed        # a minute
  python tests/benchmarks/judging.py --table=judge.md     # and writes a table

`speed`: latency of one program at a time, and throughput with one thread per
processor. `battery`: the outcome of every program of `tests/rewards/battery`.
`leaks`: processes, files and other leftovers of 1,000 attacks; a control program (not an attack) is
timed before, during and after.

Other load on the machine affects wall-clock times; the CPU times beside them
depend little on it.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import math
import os
import pathlib
import resource
import statistics
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

from rewards.battery import CASES, Case
from rewards.leftovers import leftovers
from rich.console import Console
from rich.table import Table

from covrl.rewards import Judge, Outcome

Tests = Sequence[Mapping[str, Any]]
CONSOLE = Console()

# A program that sorts, lines that read its input, and tests of each kind.
SORT = """
def merge(a, b):
  out, i, j = [], 0, 0
  while i < len(a) and j < len(b):
    if a[i] <= b[j]: out.append(a[i]); i += 1
    else: out.append(b[j]); j += 1
  return out + a[i:] + b[j:]

def sort(items):
  if len(items) < 2: return items
  half = len(items) // 2
  return merge(sort(items[:half]), sort(items[half:]))
"""
READ = '\nprint(*sort(list(map(int, input().split()))))\n'
ITEMS = [(7 * n) % 101 for n in range(60)]
PRINT = {
  'stdin': ' '.join(map(str, ITEMS)),
  'stdout': ' '.join(map(str, sorted(ITEMS))),
}
CALL = {'call': 'sort', 'args': [ITEMS], 'result': sorted(ITEMS)}
ASSERT = {'asserts': f'assert sort({ITEMS}) == {sorted(ITEMS)}'}
PROGRAMS: dict[str, tuple[str, Tests]] = {
  'stdin, 1 test': (SORT + READ, [PRINT]),
  'stdin, 10 tests': (SORT + READ, [PRINT] * 10),
  'call, 1 test': (SORT, [CALL]),
  'call, 10 tests': (SORT, [CALL] * 10),
  'asserts': (SORT, [ASSERT]),
}

# Time limit of an attack, in seconds.
ATTACK_SECONDS = 0.2
# A program that prints its CPU and wall-clock seconds as one word, which the outcome
# of another expected word shows.
CONTROL = """
import time
start = time.perf_counter()
sum(i * i for i in range(10**6))
print(f'{time.process_time():.5f}/{time.perf_counter() - start:.5f}')
"""


def main() -> None:
  """Measures and prints tables."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('--parts', default='speed,battery,leaks')
  parser.add_argument('--runs', type=int, default=1000)
  parser.add_argument('--rounds', type=int, default=60)
  parser.add_argument('--table', type=pathlib.Path)
  parser.add_argument('--backend', default=None)
  arguments = parser.parse_args()
  judge = Judge(backend=arguments.backend)
  load = os.getloadavg()[0]
  CONSOLE.print(
    f'backend {judge.backend}, {os.cpu_count()} processors, load {load:.1f}'
  )
  parts: dict[str, Callable[[], None]] = {
    'speed': lambda: show_speed(judge, arguments.rounds),
    'battery': lambda: show_battery(judge, arguments.table),
    'leaks': lambda: show_leaks(judge, arguments.runs),
  }
  for part in arguments.parts.split(','):
    parts[part]()


def show_speed(judge: Judge, rounds: int) -> None:
  """Measures latency of single programs and throughput with all processors."""
  table = Table(title='A control program, from submission to the outcome')
  for column in ('tests', 'p50 ms', 'p95 ms', 'CPU ms', 'programs/s'):
    table.add_column(column, justify='right')
  threads = len(os.sched_getaffinity(0))
  for name, (program, tests) in PROGRAMS.items():
    assert_full_score(judge.judge(program, tests))
    times = []
    before = processor_seconds()
    for _ in range(rounds):
      start = time.perf_counter()
      assert_full_score(judge.judge(program, tests))
      times.append(time.perf_counter() - start)
    cpu_seconds = (processor_seconds() - before) / rounds
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      start = time.perf_counter()
      arguments = [program] * (2 * rounds), [tests] * (2 * rounds)
      for outcome in pool.map(judge.judge, *arguments):
        assert_full_score(outcome)
      rate = 2 * rounds / (time.perf_counter() - start)
    quantiles = statistics.quantiles(times, n=20)
    table.add_row(
      name,
      *(f'{1000 * t:.0f}' for t in (quantiles[9], quantiles[18], cpu_seconds)),
      f'{rate:.0f}',
    )
  CONSOLE.print(table)


def show_battery(judge: Judge, path: pathlib.Path | None) -> None:
  """Runs every program of the battery and compares outcomes."""
  os.environ['COVRL_CANARY'] = 'a-secret-of-the-trainer'
  lines = ['| kind | program | expected | outcome | |', '|---|---|---|---|---|']
  num_expected: collections.Counter[str] = collections.Counter()
  unexpected = []
  for case in CASES:
    outcome = judge.judge(case.program, case.tests, time_limit=case.time_limit)
    is_expected = outcome.status in case.statuses and (
      outcome.score == case.score
      or (math.isnan(outcome.score) and math.isnan(case.score))
    )
    num_expected[case.kind] += is_expected
    if not is_expected:
      unexpected.append((case.name, outcome))
    lines.append(
      f'| {case.kind} | {case.name} | {case.score:g} | {outcome.score:g},'
      f' {outcome.status.value} | {"" if is_expected else "**wrong**"} |'
    )
  table = Table(title='Battery of attack and control programs')
  for column in ('kind', 'programs', 'as expected'):
    table.add_column(column, justify='right')
  for kind, count in collections.Counter(case.kind for case in CASES).items():
    table.add_row(kind, str(count), str(num_expected[kind]))
  CONSOLE.print(table)
  for name, outcome in unexpected:
    CONSOLE.print(name, outcome)
  if path is not None:
    title = textwrap.dedent(f"""\
      # Attack and control programs in the sandbox

      By `python tests/benchmarks/judging.py --parts=battery --table=…`, backend
      {judge.backend}: {sum(num_expected.values())} of {len(CASES)} attack and control
      programs have the expected outcome. Programs of the kind `sandbox escape` print
      what they could reach outside the sandbox: they score 1 if they reach nothing.

      """)
    path.write_text(title + '\n'.join(lines) + '\n', encoding='utf-8')


def show_leaks(judge: Judge, runs: int) -> None:
  """Counts leftovers of attacks and times a control program."""
  attacks = [
    case
    for case in CASES
    if case.kind in ('resource exhaustion', 'reward hack')
  ]
  control_times(judge)
  leftovers_before, times_before = leftovers(), control_times(judge)
  end = threading.Event()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    concurrent_control = pool.submit(control_times_until, judge, end)
    start = time.perf_counter()
    for index in range(runs):
      judge_attack(judge, attacks[index % len(attacks)])
    elapsed = time.perf_counter() - start
    end.set()
    times_during = concurrent_control.result()
  times_after, leftovers_after = control_times(judge), leftovers()
  table = Table(title=f'{runs} attacks in {elapsed:.0f} s')
  for column in ('', 'before', 'after'):
    table.add_column(column, justify='right')
  for name in leftovers_before:
    table.add_row(name, str(leftovers_before[name]), str(leftovers_after[name]))
  CONSOLE.print(table)
  table = Table(title='A control program at the same time, medians')
  for column in ('', 'before', 'during', 'after'):
    table.add_column(column, justify='right')
  for index, name in enumerate(('CPU ms', 'wall ms')):
    values = (times_before[index], times_during[index], times_after[index])
    table.add_row(name, *(f'{1000 * value:.0f}' for value in values))
  CONSOLE.print(table)


def judge_attack(judge: Judge, case: Case) -> None:
  """Runs an attack briefly and asserts that it scores 0 or has no score."""
  outcome = judge.judge(case.program, case.tests, time_limit=ATTACK_SECONDS)
  if outcome.score > 0.0:
    raise SystemExit(f'{case.name} must score 0, got {outcome}')


def control_times(judge: Judge, count: int = 15) -> tuple[float, float]:
  """Returns the median CPU and wall time of the control program."""
  times = [run_control(judge) for _ in range(count)]
  return (
    statistics.median(t for t, _ in times),
    statistics.median(t for _, t in times),
  )


def control_times_until(
  judge: Judge, end: threading.Event
) -> tuple[float, float]:
  """Returns the median CPU and wall time of runs until `end` is set."""
  times = []
  while not end.is_set():
    times.append(run_control(judge))
  return (
    statistics.median(t for t, _ in times),
    statistics.median(t for _, t in times),
  )


def run_control(judge: Judge) -> tuple[float, float]:
  """Returns CPU and wall time of the control program, measured by itself."""
  outcome = judge.judge(CONTROL, [{'stdin': '', 'stdout': 'seconds'}])
  measured = outcome.detail.rpartition("got '")[2].rstrip("'").split('/')
  if len(measured) != 2:
    raise SystemExit(
      f'the control program must print two numbers, got {outcome}'
    )
  return float(measured[0]), float(measured[1])


def assert_full_score(outcome: Outcome) -> None:
  """Asserts a full score."""
  if outcome.score != 1.0:
    raise SystemExit(f'a control program must score 1, got {outcome}')


def processor_seconds() -> float:
  """Returns the CPU seconds of this process and its children."""
  usages = map(
    resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  )
  return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == '__main__':
  main()
