# SPDX-License-Identifier: Apache-2.0
"""Time for which a process was stopped is not counted."""

import time

import pytest

from covrl.parallel.running_time import RunningTime


@pytest.fixture
def clock(monkeypatch):
  """Replaces `time.monotonic`; returns a function that sets the time."""
  seconds = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: seconds[0])
  return lambda value: seconds.__setitem__(0, value)


def test_the_time_between_reads_is_counted_up_to_twice_the_interval(clock):
  running = RunningTime(1.0)
  clock(101.0)
  assert running.read() == 1.0
  clock(103.0)
  assert (running.read(), running.was_stopped) == (3.0, False)
  # Stopped for an hour.
  clock(3703.0)
  assert (running.read(), running.was_stopped) == (5.0, True)
  clock(3704.0)
  assert (running.read(), running.was_stopped) == (6.0, True)


def test_a_start_in_the_past_counts(clock):
  assert RunningTime(1.0, start=98.5).read() == 1.5
