# SPDX-License-Identifier: Apache-2.0
"""The API reference is built without warnings and lists the public names."""

import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name('make_docs.py')


@pytest.mark.slow
def test_pages_are_built_without_a_warning(tmp_path):
  done = subprocess.run(
    [sys.executable, str(SCRIPT), str(tmp_path)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, '', '')
  top = (tmp_path / 'covrl.html').read_text()
  assert 'id="kl_cov"' in top
  assert 'id="TokenStats"' in top
  assert 'id="cispo"' in (tmp_path / 'covrl' / 'losses.html').read_text()
