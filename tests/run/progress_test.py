# SPDX-License-Identifier: Apache-2.0
"""Progress display: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import io
import sys

import pytest
import rich.console

from covrl.run import streams
from covrl.run.progress import Progress


class Clock:
  """A clock set by the test."""

  def __init__(self):
    self.now = 0.0

  def __call__(self) -> float:
    return self.now


def output_of(run, *, terminal=False, **options):
  """Text that a progress display prints while `run` updates it."""
  stream = io.StringIO()
  console = rich.console.Console(
    file=stream, width=100, force_terminal=terminal
  )
  clock = Clock()
  with Progress(console, clock=clock, **options) as progress:
    run(progress, clock)
  return stream.getvalue()


def test_plain_lines_come_at_intervals_and_include_the_last_step():
  def run(progress, clock):
    progress.stage('train', 100)
    for step in range(1, 101):
      clock.now += 1.0
      progress.update(step, reward=step / 100)

  lines = output_of(run).splitlines()
  assert lines[0] == 'train 0/100'
  assert len(lines) == 11
  assert lines[1] == 'train 10/100 · reward 0.100 · 0:01:30 left'
  assert lines[-1] == 'train 100/100 · reward 1.000'


def test_the_final_message_is_printed_after_the_last_step():
  def run(progress, clock):
    progress.stage('train', 2)
    progress.update(2, reward=0.5)
    progress.finish('finished')

  assert output_of(run).splitlines() == [
    'train 0/2',
    'train 2/2 · reward 0.500',
    'finished',
  ]


def test_plain_lines_for_stages_and_notes_come_at_once():
  def run(progress, clock):
    progress.stage('warm start', 2_000)
    progress.update(2_000, loss=0.5, tokens_per_second=51_234.0)
    progress.note('evaluation: mean@8 0.28 [greedy 0.37]')
    progress.stage('compiling', None)
    progress.stage('train', 60)
    progress.update(1, entropy=0.29, unknown=1.0)

  assert output_of(run).splitlines() == [
    'warm start 0/2,000',
    'evaluation: mean@8 0.28 [greedy 0.37]',
    'warm start 2,000/2,000 · loss 0.500 · 51,234 tokens/s',
    'compiling',
    'train 0/60',
    'train 1/60 · entropy 0.290 nats',
  ]


def test_a_metric_without_a_value_is_displayed_as_nan():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(1, entropy=0.25, reward=0.5)
    clock.now += 10.0
    progress.update(
      2, entropy=float('nan'), reward=float('nan'), updates_without_tokens=1.0
    )
    clock.now += 10.0
    progress.update(3, entropy=0.25, skipped_updates=2.0)

  lines = output_of(run).splitlines()
  assert lines[1].startswith(
    'train 2/60 · reward nan · entropy nan nats · 1 updates without tokens'
  )
  assert lines[2].startswith(
    'train 3/60 · reward nan · entropy 0.250 nats · 2 updates skipped'
  )


def test_time_left_excludes_the_first_step():
  def run(progress, clock):
    progress.stage('train', 11)
    clock.now += 500.0  # compiling
    progress.update(1)
    clock.now += 12.0
    progress.update(3)

  assert output_of(run).splitlines()[-1] == 'train 3/11 · 0:00:48 left'


def test_time_left_excludes_steps_before_resuming():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(40)
    clock.now += 20.0
    progress.update(50)

  assert output_of(run).splitlines()[-1] == 'train 50/60 · 0:00:20 left'


def test_terminal_shows_a_bar_and_keeps_notes():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(30, reward=0.5, entropy=0.25)
    progress.note('a note that stays')

  text = output_of(run, terminal=True)
  for words in ('30/60', 'reward 0.500', '0.250 nats', 'a note that stays'):
    assert words in text
  assert '━' in text
  assert text.count('\x1b[?25l') == text.count('\x1b[?25h') == 1


def test_terminal_shows_the_time_of_uncounted_stages():
  def run(progress, clock):
    progress.stage('compiling', None)
    clock.now += 75.0

  text = output_of(run, terminal=True)
  assert 'compiling' in text
  assert '1:15' in text


def test_disabled_progress_prints_nothing():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(60, reward=0.5)
    progress.note('unseen')

  assert output_of(run, enabled=False) == ''
  assert output_of(run, enabled=False, terminal=True) == ''


def test_terminal_shows_the_last_step_once():
  def run(progress, clock):
    progress.stage('train', 2)
    progress.update(2, reward=0.5)

  # The display ends with its bar; no plain line repeats it.
  final = output_of(run, terminal=True).rpartition('\x1b[2K')[2]
  assert final.count('2/2') == 1
  assert final.count('reward 0.500') == 1
  assert output_of(run).splitlines() == [
    'train 0/2',
    'train 2/2 · reward 0.500',
  ]


def count_problems(progress, clock):
  """Counts 30 problems in three steps of eight seconds."""
  progress.stage('evaluating')
  count = progress.counter('problems')
  for done in range(10, 31, 10):
    count(done, 30)
    clock.now += 8.0


def test_counter_prints_plain_lines_at_intervals():
  def run(progress, clock):
    count_problems(progress, clock)
    progress.update(1)

  assert output_of(run).splitlines() == [
    'evaluating',
    'problems 30/30',
    'evaluating 1',
  ]


def test_counter_shows_a_bar_until_all_is_done():
  frames = output_of(count_problems, terminal=True).split('\x1b[2K')
  assert any('evaluating' in text for text in frames)
  assert 'problems' not in frames[-1]


def test_reports_every_call_to_a_watchdog_even_when_disabled():
  calls = []

  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(1)
    progress.note('a note')

  output_of(run, enabled=False, on_progress=lambda: calls.append(None))
  assert len(calls) == 3


def test_writes_to_standard_error(capsys):
  with Progress() as progress:
    progress.stage('compiling')
  captured = capsys.readouterr()
  assert captured.err == 'compiling\n'
  assert captured.out == ''


@pytest.mark.parametrize('terminal', [False, True])
def test_exceptions_pass_through_and_end_the_display(terminal):
  stream = io.StringIO()
  console = rich.console.Console(file=stream, force_terminal=terminal)

  def fail():
    with Progress(console) as progress:
      progress.stage('train', 60)
      progress.update(7, reward=float('nan'))
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    fail()
  assert '7/60' in stream.getvalue()
  assert 'reward nan' in stream.getvalue()


class FullStream(io.StringIO):
  """A stream that cannot be written, as a file on a full disk."""

  def write(self, text: str) -> int:
    raise OSError(errno.ENOSPC, 'full')


class ClosedPipe(FullStream):
  """A pipe without a reader."""

  def write(self, text: str) -> int:
    raise BrokenPipeError


@pytest.mark.parametrize('stream', [FullStream(), ClosedPipe()])
@pytest.mark.parametrize('terminal', [False, True])
def test_messages_that_cannot_be_written_change_nothing(stream, terminal):
  console = rich.console.Console(file=stream, force_terminal=terminal)
  with Progress(console) as progress:
    progress.stage('train', 2)
    progress.update(1)
    progress.note('note')


def test_characters_that_an_encoding_lacks_are_escaped(monkeypatch):
  """In the locale C, standard output is ASCII."""
  stdout = io.BytesIO()
  monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(stdout, 'ascii'))
  monkeypatch.setattr(sys, 'stderr', io.TextIOWrapper(io.BytesIO(), 'ascii'))
  streams.prepare()
  print('k = 0.02, β', flush=True)
  assert stdout.getvalue() == b'k = 0.02, \\u03b2\n'
