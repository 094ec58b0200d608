# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C ends a command with one line; `covrl train` saves its run instead."""

import signal

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
  monkeypatch.setattr(config, function, interrupt)
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  assert ended.value.code == 130
  captured = capsys.readouterr()
  assert captured.err.splitlines() == ['working 0/10', 'covrl: interrupted']
  assert captured.out == ''
