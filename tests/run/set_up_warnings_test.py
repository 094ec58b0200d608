# SPDX-License-Identifier: Apache-2.0
"""Warnings of a set-up are printed and recorded, those of other processes, too."""

import io
import json

import pytest
import rich.console

from covrl.parallel import distributed
from covrl.run.progress import Progress
from covrl.run.set_up_warnings import SetUpWarnings


@pytest.fixture
def warnings(directory):
  """The warnings, and a function that returns printed and recorded ones."""
  output = io.StringIO()

  def read():
    file = directory.path / 'notices.jsonl'
    text = file.read_text() if file.exists() else ''
    recorded = [json.loads(line)['text'] for line in text.splitlines()]
    printed = [
      line.partition('warning: ')[2]
      for line in output.getvalue().splitlines()
      if 'warning: ' in line
    ]
    return printed, recorded

  with Progress(rich.console.Console(file=output, width=80)) as progress:
    yield SetUpWarnings(progress, directory), read


def test_warnings_among_notes_are_recorded_once_they_are_published(warnings):
  set_up, read = warnings
  set_up.note('24 of 24 problems')
  set_up.note('warning: parameters of bfloat16 are trained')
  assert read() == (['parameters of bfloat16 are trained'], [])
  set_up.publish()
  set_up.publish()
  texts = ['parameters of bfloat16 are trained']
  assert read() == (texts, texts)
  set_up.warn('at once')
  assert read() == ([*texts, 'at once'], [*texts, 'at once'])


def test_warnings_that_another_process_alone_has_name_it(warnings, monkeypatch):
  set_up, read = warnings
  others = [['of both', 'this machine allows no namespaces'], ['of both']]
  monkeypatch.setattr(distributed, 'process_count', lambda: 3)
  monkeypatch.setattr(
    distributed, 'gather_objects', lambda texts: [texts, *others]
  )
  set_up.note('warning: of both')
  set_up.publish()
  printed = ['of both', 'process 1: this machine allows no namespaces']
  assert read() == (printed, printed)


def test_a_warning_of_several_other_processes_is_one(warnings, monkeypatch):
  set_up, read = warnings
  monkeypatch.setattr(distributed, 'process_count', lambda: 3)
  monkeypatch.setattr(
    distributed, 'gather_objects', lambda texts: [texts, ['a'], ['a']]
  )
  set_up.publish()
  assert read() == (['process 1 and 1 more: a'],) * 2
