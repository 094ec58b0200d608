# SPDX-License-Identifier: Apache-2.0
"""The example loops learn, and control entropy as documented."""

import numpy as np
from examples import grpo_jax, grpo_nnx


def test_plain_jax_learns():
  reward, entropy = np.array(grpo_jax.main()).T
  assert reward[0] < 0.1
  assert reward[-10:].mean() > 0.95
  assert entropy[-1] < 0.2 < entropy[30]


def test_nnx_learns_and_follows_its_schedule():
  reward, entropy = np.array(grpo_nnx.main(300)).T
  assert reward[-20:].mean() > 2 * reward[:20].mean()
  target = np.array([grpo_nnx.TARGET(i) for i in range(300)])
  # Entropy begins above the schedule, which falls by a nat in 400 updates.
  assert np.abs(entropy - target)[200:].max() < 0.15
  assert np.abs(entropy - target)[240:].mean() < 0.05
