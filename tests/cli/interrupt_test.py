# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends a command with one line; `covrl train` saves its run instead."""

import os
import signal
import subprocess
import sys

import pytest

from covrl import config
from covrl.cli import main
from covrl.run.progress import Progress


def interrupt(*args, **kwargs):
  """Sends Ctrl-C to this process."""
  with Progress() as progress:
    progress.stage('working', 10)
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
  ('function', 'arguments'),
  [
    ('recipes', ['recipes']),
    ('load', ['plan', '--config=countdown:kl_cov']),
    ('load', ['train', '--config=countdown:kl_cov', '--workdir=unused']),
  ],
)
def test_ends_with_one_line_and_status_130(
  capsys, monkeypatch, function, arguments
):
  # A shell's background jobs ignore Ctrl-C, and so does a test session in one.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  monkeypatch.setattr(config, function, interrupt)
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  signal.signal(signal.SIGINT, before)
  assert ended.value.code == 130
  captured = capsys.readouterr()
  assert captured.err.splitlines() == ['working 0/10', 'covrl: interrupted']
  assert captured.out == ''


def test_closed_output_ends_without_a_traceback():
  reader, writer = os.pipe()
  os.close(reader)
  done = subprocess.run(
    [sys.executable, '-m', 'covrl.cli', 'recipes'],
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(writer)
  assert (done.returncode, done.stderr) == (1, '')
