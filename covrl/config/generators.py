# SPDX-License-Identifier: Apache-2.0
"""Seeding of the global random number generators that recipes may draw from."""

import random


def seed_generators(seed: int) -> None:
  """Seeds the global generators of `random` and numpy.

  covrl draws from generators of its own. A recipe whose functions draw from the
  global ones then builds the same run when it is resumed.

  Args:
    seed: the seed of the configuration.
  """
  # Imported here, since the configuration is read by commands without arrays.
  import numpy as np

  random.seed(seed)
  np.random.seed(seed)
