# SPDX-License-Identifier: Apache-2.0
"""Config section of PRIME's process reward model and advantages."""

import dataclasses
from typing import Literal

from covrl.config.bounds import LearningRate, NonNegativeFloat, PositiveFloat


@dataclasses.dataclass(kw_only=True, slots=True)
class PrimeConfig:
  """PRIME's process reward model and advantages, for recipes that have one.

  The model learns whether the reward is above 0.5. Outcomes in the advantages are
  the rewards as they are, penalties included.

  Attributes:
    initial: initial parameters of the process reward model: those of the policy
      ('policy'), random ones ('random'), or a pretrained model's (a directory or
      a name on the Hugging Face hub).
    learning_rate: learning rate of its parameter chain, constant.
    weight_decay: weight decay of its parameter chain.
    max_gradient_norm: global norm to which its gradients are clipped.
    coefficient: β, scale of process rewards and of the logit of an outcome.
    reference: the model that process rewards are relative to: the reference
      policy of `train.keep_reference` ('frozen'), or the policy before the
      rollout's updates ('old').
    update: when the model is updated on an iteration's outcomes: before its rows
      are scored, or after that, with the policy.
    form: combination of process rewards and outcomes, that of the paper or of
      the authors' code; see `covrl.advantages.process_advantages`.
    normalise: whether process rewards are divided by their largest return in the
      iteration.
    whiten: whether advantages are whitened over the iteration's tokens, to mean 0
      and variance 1.
    process_coefficient: weight of process rewards in the advantages; 5 as in the
      authors' code. Whitening cancels a factor that both weights have in common.
    outcome_coefficient: weight of outcomes in the advantages.
  """

  initial: str = 'policy'
  learning_rate: LearningRate = 1e-6
  weight_decay: NonNegativeFloat = 0.0
  max_gradient_norm: PositiveFloat = 10.0
  coefficient: PositiveFloat = 0.05
  reference: Literal['frozen', 'old'] = 'frozen'
  update: Literal['before', 'after'] = 'after'
  form: Literal['paper', 'code'] = 'code'
  normalise: bool = True
  whiten: bool = True
  process_coefficient: NonNegativeFloat = 5.0
  outcome_coefficient: NonNegativeFloat = 5.0
