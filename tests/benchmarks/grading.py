# SPDX-License-Identifier: Apache-2.0
"""Throughput, latency and memory of grading mathematical answers.

`PYTHONPATH=tests python tests/benchmarks/grading.py [ANSWERS]` grades pairs of response
and reference of `tests/rewards/math_battery.txt`: the ordinary ones repeatedly, one at
a time and from two threads, then those that would make a naive grader hang. Prints a
table in Markdown. Memory is the proportional set size of this
process and its workers, in which shared pages count once.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import os
import pathlib
import statistics
import sys
import time

from rewards.math_battery import Pair, pairs

from covrl.rewards import Status, grade_math


def main(count: int) -> None:
  """Measures and prints."""
  battery = list(pairs())
  ordinary = [pair for pair in battery if pair.category != 'hangs']
  adversarial = [pair for pair in battery if pair.category == 'hangs']
  began = time.perf_counter()
  # Only a worker process grades an integral: this starts the workers.
  grade_math(r'\boxed{\int_0^1 x dx}', '1/2')
  rows = [('first answer, with its workers', f'{seconds_since(began):.2f} s')]
  memory = [memory_in_mib()]
  times: list[float] = []
  began = time.perf_counter()
  for number, pair in zip(range(count), itertools.cycle(ordinary)):
    times.append(grading_seconds(pair))
    if (number + 1) % (count // 4) == 0:
      memory.append(memory_in_mib())
  rate = count / seconds_since(began)
  percentiles = statistics.quantiles(times, n=100)
  with concurrent.futures.ThreadPoolExecutor(2) as threads:
    began = time.perf_counter()
    list(
      threads.map(
        grading_seconds, itertools.islice(itertools.cycle(ordinary), count)
      )
    )
    rate_two_threads = count / seconds_since(began)
  memory.append(memory_in_mib())
  slowest = max(map(grading_seconds, adversarial))
  rows += [
    ('answers', f'{count:,}'),
    ('rate, one at a time', f'{rate:.0f} per second'),
    ('rate, two at a time', f'{rate_two_threads:.0f} per second'),
    ('median', f'{1e3 * percentiles[49]:.2f} ms'),
    ('95th percentile', f'{1e3 * percentiles[94]:.2f} ms'),
    ('slowest ordinary answer', f'{max(times):.2f} s'),
    ('slowest of those meant to hang', f'{slowest:.2f} s'),
    ('memory after each quarter, MiB', ', '.join(f'{m:.0f}' for m in memory)),
    ('load of the machine', f'{os.getloadavg()[0]:.1f}'),
  ]
  print('| grading | |\n|---|---|')
  for name, value in rows:
    print(f'| {name} | {value} |')


def grading_seconds(pair: Pair) -> float:
  """Grades an answer and returns the seconds that this takes."""
  began = time.perf_counter()
  outcome = grade_math(pair.response, pair.reference)
  if outcome.status is Status.INFRASTRUCTURE:
    print(f'line {pair.line}: {outcome.detail}', file=sys.stderr)
  return seconds_since(began)


def seconds_since(began: float) -> float:
  """Returns the elapsed seconds."""
  return time.perf_counter() - began


def memory_in_mib() -> float:
  """Memory of this process and its descendants, in MiB."""
  total = 0
  for process in [os.getpid(), *descendants(os.getpid())]:
    rollup = pathlib.Path(f'/proc/{process}/smaps_rollup').read_text()
    (line,) = [x for x in rollup.splitlines() if x.startswith('Pss:')]
    total += int(line.split()[1])
  return total / 1024


def descendants(parent: int) -> list[int]:
  """Child processes of a process, and their descendants."""
  tasks = pathlib.Path(f'/proc/{parent}/task').glob('*/children')
  children = [
    int(child) for task in tasks for child in task.read_text().split()
  ]
  return children + [d for child in children for d in descendants(child)]


if __name__ == '__main__':
  main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
