# SPDX-License-Identifier: Apache-2.0
"""Randomly damaged model files are read, or refused in one sentence."""

import pathlib
import subprocess
import sys

import pytest
from pretrained.fuzz_readers import READERS

SCRIPT = pathlib.Path(__file__).with_name('fuzz_readers.py')


@pytest.mark.slow
@pytest.mark.parametrize('reader', READERS)
def test_damaged_files_are_read_or_refused(reader):
  completed = subprocess.run(
    [sys.executable, str(SCRIPT), reader, '0', '300'],
    stdout=subprocess.PIPE,
    text=True,
    timeout=600,
  )
  assert (completed.returncode, completed.stdout) == (0, '')
