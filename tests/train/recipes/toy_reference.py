# SPDX-License-Identifier: Apache-2.0
"""The toy task with a penalty towards a reference policy.

KL-Cov selects tokens with coefficient 0, for its metrics only.
"""

import optax
from train import toy

import covrl
from covrl.config import Recipe


def reference() -> Recipe:
  """GRPO with a KL penalty to the policy before the first update."""
  return toy.recipe(
    token_tx=lambda config: optax.chain(
      covrl.kl_cov(config.entropy.fraction, 0.0, score='exact'),
      covrl.kl_to_reference(config.entropy.coefficient),
    )
  )
