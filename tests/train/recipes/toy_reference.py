# SPDX-License-Identifier: Apache-2.0
"""The toy task, held to a reference policy; KL-Cov only looks on."""

import optax
from train import toy

import covrl

get_config = toy.get_config
make_advantages = toy.make_advantages
make_loss = toy.make_loss
make_model = toy.make_model
make_task = toy.make_task
make_tx = toy.make_tx
make_warm_start_tx = toy.make_warm_start_tx


def make_token_tx(config):
  return optax.chain(
    covrl.kl_cov(config.entropy.fraction, 0.0, score='exact'),
    covrl.kl_to_reference(config.entropy.coefficient),
  )
