# SPDX-License-Identifier: Apache-2.0
"""Public names of `covrl` and its namespaces."""

import subprocess
import sys

import pytest

import covrl


def test_top_level_has_at_most_four_dozen_names():
  names = [name for name in vars(covrl) if not name.startswith('_')]
  functions = [name for name in names if callable(getattr(covrl, name))]
  assert len(functions) <= 48


def test_metric_and_advantage_are_not_confused():
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
