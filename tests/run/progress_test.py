# SPDX-License-Identifier: Apache-2.0
"""Live on a terminal, plain and rare elsewhere."""

from __future__ import annotations

import io

import pytest
import rich.console

from covrl.run.progress import Progress


class Clock:
  """Time that passes when told."""

  def __init__(self):
    self.now = 0.0

  def __call__(self) -> float:
    return self.now


def written(run, *, terminal=False, **options):
  stream = io.StringIO()
  console = rich.console.Console(
    file=stream, width=100, force_terminal=terminal
  )
  clock = Clock()
  with Progress(console, clock=clock, **options) as progress:
    run(progress, clock)
  return stream.getvalue()


def test_plain_lines_are_rare_and_the_last_is_said():
  def run(progress, clock):
    progress.stage('train', 100)
    for step in range(1, 101):
      clock.now += 1.0
      progress.update(step, reward=step / 100)

  lines = written(run).splitlines()
  assert lines[0] == 'train: 100 to do'
  assert len(lines) == 11
  assert lines[1] == 'train 10/100 · reward 0.100 · 1:30 left'
  assert lines[-1] == 'train 100/100 · reward 1.000'


def test_stages_and_notes_are_said_at_once():
  def run(progress, clock):
    progress.stage('warm start', 2_000)
    progress.update(2_000, loss=0.5, tokens_per_second=51_234.0)
    progress.note('evaluation: mean@8 0.28 [greedy 0.37]')
    progress.stage('compiling', None)
    progress.stage('train', 60)
    progress.update(1, entropy=0.29, unknown=1.0)

  assert written(run).splitlines() == [
    'warm start: 2,000 to do',
    'evaluation: mean@8 0.28 [greedy 0.37]',
    'warm start 2,000/2,000 · loss 0.500 · 51,234 tokens/s',
    'compiling',
    'train: 60 to do',
    'train 1/60 · entropy 0.290 nats',
  ]


def test_time_left_leaves_compilation_out():
  def run(progress, clock):
    progress.stage('train', 11)
    clock.now += 500.0  # compiling
    progress.update(1)
    clock.now += 12.0
    progress.update(3)

  assert written(run).splitlines()[-1] == 'train 3/11 · 0:48 left'


def test_a_resumed_stage_counts_from_where_it_resumed():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(40)
    clock.now += 20.0
    progress.update(50)

  assert written(run).splitlines()[-1] == 'train 50/60 · 0:20 left'


def test_a_terminal_shows_a_bar_and_keeps_notes():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(30, reward=0.5, entropy=0.25)
    progress.note('a note that stays')

  text = written(run, terminal=True)
  for words in ('30/60', 'reward 0.500', '0.250 nats', 'a note that stays'):
    assert words in text
  assert '━' in text
  assert text.count('\x1b[?25l') == text.count('\x1b[?25h') == 1


def test_a_terminal_shows_stages_without_steps():
  def run(progress, clock):
    progress.stage('compiling', None)
    clock.now += 75.0

  text = written(run, terminal=True)
  assert 'compiling' in text
  assert '1:15' in text


def test_other_processes_are_silent():
  def run(progress, clock):
    progress.stage('train', 60)
    progress.update(60, reward=0.5)
    progress.note('unheard')

  assert written(run, enabled=False) == ''
  assert written(run, enabled=False, terminal=True) == ''


@pytest.mark.parametrize('terminal', [False, True])
def test_an_error_passes_through_and_the_display_ends(terminal):
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
