# SPDX-License-Identifier: Apache-2.0
"""Public names of `covrl` and its namespaces."""

import pathlib
import re
import subprocess
import sys

import pytest

import covrl


def test_top_level_has_at_most_four_dozen_names():
  names = [name for name in vars(covrl) if not name.startswith('_')]
  functions = [name for name in names if callable(getattr(covrl, name))]
  assert len(functions) <= 48


def test_unknown_names_are_refused_with_the_name_that_is_meant():
  assert callable(covrl.advantages.pass_at_k)
  with pytest.raises(
    AttributeError, match=r'it is covrl\.advantages\.pass_at_k'
  ):
    _ = covrl.pass_at_k
  with pytest.raises(AttributeError, match="no attribute 'kl_kov'"):
    _ = covrl.kl_kov


def test_packages_are_imported_on_first_use():
  program = (
    'import sys, covrl\n'
    "heavy = ('covrl.rewards', 'covrl.train', 'grain', 'orbax')\n"
    'assert not [name for name in heavy if name in sys.modules]\n'
    "assert covrl.rewards.grade_math(r'\\boxed{2}', '2')\n"
  )
  subprocess.run([sys.executable, '-c', program], check=True)


def test_every_package_is_an_attribute():
  root = pathlib.Path(covrl.__file__).parent
  packages = {path.parent.name for path in root.glob('[a-z]*/__init__.py')}
  assert {'rewards', 'entropy', 'objectives', 'statistics'} < packages
  for name in packages:
    assert covrl.__getattr__(name) is sys.modules[f'covrl.{name}']
  assert packages < set(dir(covrl))


def test_every_name_in_the_readme_exists():
  readme = (pathlib.Path(__file__).parents[1] / 'README.md').read_text()
  names = set(re.findall(r'\bcovrl\.(\w+)', readme))
  assert {'rewards', 'losses', 'kl_cov'} <= names
  for name in names:
    assert hasattr(covrl, name), name
