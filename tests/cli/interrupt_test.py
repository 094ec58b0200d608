# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C, and standard streams that are closed, full or without a reader."""

import os
import signal
import subprocess
import sys

import pytest
from train.process import ENVIRONMENT

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
def test_an_interrupted_command_ends_with_one_line_and_status_130(
  capsys, monkeypatch, function, arguments
):
  # A shell's background jobs ignore Ctrl-C, and so does a test session in one.
  handler_before = signal.signal(signal.SIGINT, signal.default_int_handler)
  monkeypatch.setattr(config, function, interrupt)
  with pytest.raises(SystemExit) as ended:
    main(arguments)
  signal.signal(signal.SIGINT, handler_before)
  assert ended.value.code == 130
  captured = capsys.readouterr()
  assert captured.err.splitlines() == ['working 0/10', 'covrl: interrupted']
  assert captured.out == ''


def test_closed_output_ends_without_a_traceback():
  reader, writer = os.pipe()
  os.close(reader)
  completed = subprocess.run(
    [sys.executable, '-m', 'covrl.cli', 'recipes'],
    stdout=writer,
    stderr=subprocess.PIPE,
    text=True,
  )
  os.close(writer)
  assert (completed.returncode, completed.stderr) == (1, '')


@pytest.mark.parametrize(
  ('shell', 'status', 'message'),
  [
    ('covrl recipes >/dev/full', 45, 'standard output cannot be written: no'),
    ('covrl recipes nonsense 2>&-', 2, None),
    ('covrl recipes nonsense 2>/dev/full', 2, None),
    ('covrl recipes nonsense >&- 2>&-', 2, None),
    # The status of the first command of a pipe.
    ('covrl report . 2>&1 | true; exit ${PIPESTATUS[0]}', 2, None),
  ],
)
def test_streams_do_not_change_the_status(tmp_path, shell, status, message):
  completed = subprocess.run(
    [
      'bash',
      '-c',
      f'covrl() {{ {sys.executable} -m covrl.cli "$@"; }}; {shell}',
    ],
    cwd=tmp_path,
    env=ENVIRONMENT,
    capture_output=True,
    text=True,
  )
  assert completed.returncode == status, completed
  if message is not None:
    assert completed.stderr.startswith(f'covrl: {message}')
    assert len(completed.stderr.splitlines()) == 1


def test_no_file_gets_the_descriptor_of_a_closed_stream(tmp_path):
  script = (
    'import os\n'
    'from covrl.run import streams\n'
    'streams.prepare()\n'
    'with open("a", "w") as file:\n'
    '  assert file.fileno() > 2\n'
    'print("a", flush=True)\n'
  )
  subprocess.run(
    ['bash', '-c', f"{sys.executable} -c '{script}' <&- >&- 2>&-"],
    cwd=tmp_path,
    env=ENVIRONMENT,
    check=True,
  )
