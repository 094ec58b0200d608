# SPDX-License-Identifier: Apache-2.0
"""Config section of PPO's critic, its advantages and its rewards."""

import dataclasses
from typing import Literal

from covrl.config.bounds import (
  LearningRate,
  NonNegative,
  NonNegativeFloat,
  PositiveFloat,
  Share,
)


@dataclasses.dataclass(kw_only=True, slots=True)
class CriticConfig:
  """PPO's critic, advantages and rewards, for recipes that have a critic.

  Attributes:
    initial: initial parameters of the critic: those of the policy ('policy'),
      random ones ('random'), or a pretrained model's (a directory or a name on
      the Hugging Face hub). The value head is 0 at first.
    learning_rate: learning rate of its parameter chain, constant.
    weight_decay: weight decay of its parameter chain.
    max_gradient_norm: global norm to which its gradients are clipped.
    clip: range around its old value beyond which a change of a value does not
      lower the loss; 0 for none.
    warm_up: updates at the start of the run that train the critic and not the
      policy, which is fixed meanwhile; they count as updates of the run.
    discount: γ, discount of rewards per token.
    trace_decay: λ of the policy's advantages.
    length_decay: α; above 0, λ of the policy's advantages is 1 − 1/(α · length)
      of the response instead (VAPO, 0.05).
    critic_trace_decay: λ of the returns that the critic learns.
    whiten: whether advantages are whitened over the tokens of an update, to mean
      0 and variance 1.
    reward_clip: bound of the magnitude of a response's reward; 0 for none.
    kl: estimator of the divergence from the reference policy in the reward; see
      `covrl.losses.divergence`.
    kl_coefficient: coefficient of that divergence; 0 for none.
    kl_target: divergence, in nats per token, that the coefficient is adapted to
      after every rollout; 0 keeps the coefficient.
    kl_horizon: sequences after which an error of 20 % or more has changed the
      coefficient by 20 %.
  """

  initial: str = 'policy'
  learning_rate: LearningRate = 1e-5
  weight_decay: NonNegativeFloat = 0.01
  max_gradient_norm: PositiveFloat = 1.0
  clip: NonNegativeFloat = 0.5
  warm_up: NonNegative = 0
  discount: Share = 1.0
  trace_decay: Share = 1.0
  length_decay: NonNegativeFloat = 0.0
  critic_trace_decay: Share = 1.0
  whiten: bool = True
  reward_clip: NonNegativeFloat = 0.0
  kl: Literal['k1', 'k2', 'k3'] = 'k1'
  kl_coefficient: NonNegativeFloat = 0.0
  kl_target: NonNegativeFloat = 0.0
  kl_horizon: PositiveFloat = 10000.0
