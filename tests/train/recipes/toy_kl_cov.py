# SPDX-License-Identifier: Apache-2.0
"""The toy task with KL-Cov and a bonus."""

from train import toy

get_config = toy.get_config
make_advantages = toy.make_advantages
make_loss = toy.make_loss
make_model = toy.make_model
make_task = toy.make_task
make_token_tx = toy.make_token_tx
make_tx = toy.make_tx
make_warm_start_tx = toy.make_warm_start_tx
