# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of rewards."""

import pytest

from covrl.rewards import Judge
from covrl.rewards.math import grading
from covrl.rewards.math.math_verify import MathVerifyResult


@pytest.fixture(scope='module')
def no_math_verify():
  """Replaces math-verify, which forks: the test process has JAX's threads."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      grading, 'check_equivalence', lambda *_: MathVerifyResult.DIFFERENT
    )
    yield


@pytest.fixture(scope='module')
def judge():
  """A judge that runs programs in bubblewrap."""
  return Judge(backend='bubblewrap')
