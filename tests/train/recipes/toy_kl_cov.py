# SPDX-License-Identifier: Apache-2.0
"""The toy task with KL-Cov and an entropy bonus."""

from train import toy


def kl_cov():
  return toy.recipe()
