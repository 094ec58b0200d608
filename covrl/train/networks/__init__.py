# SPDX-License-Identifier: Apache-2.0
"""Second networks beside the policy, and estimators that read their outputs.

A recipe's `networks` names them, its `estimator` turns rewards and their outputs
into advantages:

  networks=lambda config: {'critic': critic(config)},
  estimator=critic_advantages,

or, with a process reward model, `{'prm': process_reward_model(config)}` and
`prime_advantages`.
"""

from covrl.train.networks.critic import critic as critic
from covrl.train.networks.critic import critic_advantages as critic_advantages
from covrl.train.networks.estimator import Credit as Credit
from covrl.train.networks.estimator import CreditInputs as CreditInputs
from covrl.train.networks.estimator import Estimator as Estimator
from covrl.train.networks.network import Network as Network
from covrl.train.networks.prime import prime_advantages as prime_advantages
from covrl.train.networks.prime import (
  process_reward_model as process_reward_model,
)
