# SPDX-License-Identifier: Apache-2.0
"""Dockerfile of the launcher, checked as text without building an image."""

import pathlib
import re
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FILE = ROOT / 'launch' / 'templates' / 'Dockerfile'


@pytest.fixture(scope='module')
def instructions():
  """Pairs of instruction and argument, with continued lines joined."""
  text = re.sub(r'^\s*#.*\n', '', FILE.read_text(), flags=re.MULTILINE)
  lines = re.sub(r'\\\n\s*', ' ', text).splitlines()
  return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_instructions_are_known_and_in_order(instructions):
  names = [name for name, _ in instructions]
  known = {'FROM', 'ARG', 'RUN', 'WORKDIR', 'COPY', 'ENV', 'CMD'}
  assert set(names) <= known
  assert names[0] == 'FROM'
  assert names[-1] == 'CMD'
  # Packages of the system are cached before the sources change.
  assert names.index('RUN') < names.index('COPY')


def test_base_image_is_pinned_to_a_supported_python(instructions):
  tag = instructions[0][1].partition(':')[2]
  version = re.match(r'(3\.\d+)-', tag)
  assert version is not None
  assert version[1] in ('3.11', '3.12', '3.13')


def test_commands_leave_no_caches_and_reach_the_program(instructions):
  for name, argument in instructions:
    if name == 'RUN' and 'apt-get install' in argument:
      assert argument.startswith('apt-get update')
      assert '--no-install-recommends' in argument
      assert argument.endswith('rm -rf /var/lib/apt/lists/*')
    if name == 'RUN' and 'pip install' in argument:
      assert '--no-cache-dir' in argument
    if name == 'CMD':
      # Without a shell, so that SIGTERM reaches the program.
      assert argument.startswith('["covrl"')


def test_copies_exist_and_extras_are_declared(instructions):
  for name, argument in instructions:
    if name == 'COPY':
      for source in argument.split()[:-1]:
        assert (ROOT / source).exists(), source
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  extras = set(project['optional-dependencies'])
  assert {'tpu', 'gpu', 'wandb'} <= extras
  (arg,) = [argument for name, argument in instructions if name == 'ARG']
  assert arg.partition('=')[2] in extras
