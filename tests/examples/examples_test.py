# SPDX-License-Identifier: Apache-2.0
"""The example loops learn, and control entropy as documented."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from examples import grpo_jax, grpo_nnx


def test_the_loop_in_plain_jax_learns_and_lowers_entropy():
  reward, entropy = np.array(grpo_jax.main()).T
  assert reward[0] < 0.1
  assert reward[-10:].mean() > 0.95
  assert entropy[-1] < 0.2 < entropy[30]


def test_the_loop_in_nnx_learns_and_follows_its_entropy_schedule():
  reward, entropy = np.array(grpo_nnx.main(300)).T
  assert reward[-20:].mean() > 2 * reward[:20].mean()
  target = np.array([grpo_nnx.TARGET_ENTROPY(i) for i in range(300)])
  # Entropy begins above the schedule, which falls by a nat in 400 updates.
  assert np.abs(entropy - target)[200:].max() < 0.15
  assert np.abs(entropy - target)[240:].mean() < 0.05


@pytest.mark.slow
def test_tutorial_shows_that_a_bonus_keeps_entropy():
  file = pathlib.Path(__file__).with_name('tutorial.py')
  script = (
    'import runpy\n'
    f'curves = runpy.run_path({str(file)!r})["curves"]\n'
    'plain, bonus = curves.values()\n'
    'assert plain[-1] < bonus[-1] < plain[0], curves\n'
  )
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run(
    [sys.executable, '-c', script],
    env=environment | {'JAX_PLATFORMS': 'cpu'},
    check=True,
    timeout=600,
  )
