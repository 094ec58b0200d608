# SPDX-License-Identifier: Apache-2.0
"""Weights & Biases: one run for all starts; failures do not end a run."""

import importlib.util
import json
import random
import sys
import types

import pytest

from covrl.config import ConfigError, LoggingConfig
from covrl.run.metrics_writer import MetricsWriter, check_wandb

LOGGING = LoggingConfig(wandb_project='p', tensorboard=False)


class Service:
  """A run of Weights & Biases that fails after some calls.

  As there, the step of a run that is continued is that after the last one.
  """

  def __init__(self, calls, step=0):
    self.calls, self.logged, self.step = calls, [], step

  def log(self, values, step):
    if len(self.logged) == self.calls:
      raise ConnectionError('no route\nto host')
    assert step == self.step
    self.step = step + 1
    self.logged.append(values)

  def finish(self):
    raise ConnectionError('no route to host')


def write(monkeypatch, tmp_path, init, steps=3):
  """Writes metrics; returns the notes and the lines of the file."""
  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(init=init))
  file, notes = tmp_path / 'metrics.jsonl', []
  writer = MetricsWriter(file, LOGGING, name='toy', warn=notes.append)
  for step in range(steps):
    writer.write(step=step, iteration=0, phase='train', loss=0.5)
  writer.close()
  return notes, [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize('calls', [0, 2, 3])
def test_a_service_that_fails_does_not_end_a_run(monkeypatch, tmp_path, calls):
  service = Service(calls)
  notes, lines = write(monkeypatch, tmp_path, lambda **options: service)
  assert [line['step'] for line in lines] == [0, 1, 2]
  assert [values['train/step'] for values in service.logged] == list(
    range(calls)
  )
  (note,) = notes
  assert note == (
    'Weights & Biases receives no further metrics, metrics.jsonl has all: no route'
    ' to host'
  )


@pytest.mark.parametrize(
  ('received', 'sent'),
  # All lines; a killed start whose last lines were lost; repeated updates; all
  # that is repeated and more.
  [(0, range(5)), (2, range(2, 5)), (4, [4]), (7, [])],
)
def test_a_start_sends_the_lines_that_the_service_lacks(
  monkeypatch, tmp_path, received, sent
):
  file, service = tmp_path / 'metrics.jsonl', Service(9, received)
  writer = MetricsWriter(file, LoggingConfig(tensorboard=False), name='toy')
  for step in range(3):
    writer.write(step=step, iteration=0, phase='train', loss=0.5)
  saved = writer.sync()
  writer.close()
  wandb = types.SimpleNamespace(init=lambda **options: service)
  monkeypatch.setitem(sys.modules, 'wandb', wandb)
  writer = MetricsWriter(file, LOGGING, name='toy', saved=saved)
  for step in (3, 4):
    writer.write(step=step, iteration=0, phase='train', loss=0.5)
  writer.close()
  assert [line['train/step'] for line in service.logged] == list(sent)


def test_a_service_that_refuses_the_run_raises_an_error_with_the_project(
  monkeypatch, tmp_path
):
  def init(**options):
    raise PermissionError('log in')

  refusal = r"the project 'p' of .*, got: log in"
  for advice in ('', '; without wandb_id.txt a new run is opened there'):
    with pytest.raises(RuntimeError, match=f'{refusal}{advice}$'):
      write(monkeypatch, tmp_path, init)


def test_all_starts_of_a_run_send_to_one_run(monkeypatch, tmp_path):
  calls = []

  def init(**options):
    calls.append(options)
    return Service(9)

  (tmp_path / 'a').mkdir()
  (tmp_path / 'b').mkdir()
  random.seed(0)
  write(monkeypatch, tmp_path / 'a', init)
  write(monkeypatch, tmp_path / 'a', init)
  random.seed(0)
  write(monkeypatch, tmp_path / 'b', init)
  first, second, other = calls
  assert first == second
  assert first | {'id': ''} == {
    **{'project': 'p', 'name': 'toy', 'id': '', 'resume': 'allow'}
  }
  assert first['id']
  assert first['id'] != other['id']
  # A file without an id, as after a full disk, is written again.
  (tmp_path / 'a' / 'wandb_id.txt').write_text('a/b')
  write(monkeypatch, tmp_path / 'a', init)
  write(monkeypatch, tmp_path / 'a', init)
  assert calls[3]['id'] == calls[4]['id'] not in (first['id'], 'a/b')


def test_a_missing_package_is_refused_before_the_run(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  check_wandb(LoggingConfig())
  with pytest.raises(ConfigError, match='needs wandb, which is not installed'):
    check_wandb(LOGGING)
