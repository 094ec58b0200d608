# SPDX-License-Identifier: Apache-2.0
"""Extras for TPUs and GPUs: their versions of JAX, and that they resolve."""

import pathlib
import re
import shutil
import subprocess
import tomllib

import pytest

PYPROJECT = pathlib.Path(__file__).parents[1] / 'pyproject.toml'


def project():
  """Returns the table `project` of pyproject.toml."""
  return tomllib.loads(PYPROJECT.read_text())['project']


@pytest.mark.parametrize('extra', ['tpu', 'gpu', 'gpu-compile'])
def test_extras_take_the_versions_of_jax_that_covrl_does(extra):
  (jax_requirement,) = [
    x for x in project()['dependencies'] if x.startswith('jax>')
  ]
  (extra_requirement,) = [
    x for x in project()['optional-dependencies'][extra] if x.startswith('jax[')
  ]
  assert re.sub(r'\[.*\]', '', extra_requirement) == jax_requirement


@pytest.mark.slow
@pytest.mark.skipif(
  shutil.which('uv') is None,
  reason='uv, which resolves without downloading wheels, is not on the PATH',
)
@pytest.mark.parametrize('python', ['3.11', '3.12', '3.13'])
@pytest.mark.parametrize('extra', ['gpu', 'gpu-compile'])
def test_extras_for_gpus_resolve(extra, python):
  """Needs a package index; plugin and jaxlib have one version."""
  completed = subprocess.run(
    [
      *('uv', 'pip', 'compile', '--quiet', '--no-header', '--no-annotate'),
      *('--python-version', python, '--python-platform', 'linux'),
      *('--extra', extra, str(PYPROJECT)),
    ],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
  )
  assert completed.returncode == 0, completed.stderr
  files = dict(
    line.split(' ')[0].split('==')
    for line in completed.stdout.splitlines()
    if '==' in line
  )
  assert files['jax-cuda12-plugin'] == files['jax-cuda12-pjrt']
  assert files['jax-cuda12-plugin'] == files['jaxlib']
  assert int(files['nvidia-cudnn-cu12'].split('.')[0]) == 9
