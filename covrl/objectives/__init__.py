# SPDX-License-Identifier: Apache-2.0
"""Advantages, policy losses and divergences: pure functions on arrays.

`advantages` (per response), `returns` and `gae` (per token) turn rewards into
advantages, `token_rewards` assigns rewards and penalties to tokens, `weights`
turns masks into token weights, and `losses` and `sequence_losses` combine both
with the policy's statistics. `value_losses` train a critic. `process_rewards`
computes advantages from the rewards of a process reward model, and
`outcome_scores` its loss and diagnostics. All are independent of networks and
of the batch's layout.
"""

from covrl.objectives.advantages import group_relative as group_relative
from covrl.objectives.advantages import leave_one_out as leave_one_out
from covrl.objectives.advantages import opo as opo
from covrl.objectives.advantages import pass_at_k as pass_at_k
from covrl.objectives.advantages import unlikeliness as unlikeliness
from covrl.objectives.base import LossAux as LossAux
from covrl.objectives.divergences import DIVERGENCES as DIVERGENCES
from covrl.objectives.divergences import (
  DivergenceEstimator as DivergenceEstimator,
)
from covrl.objectives.divergences import divergence as divergence
from covrl.objectives.divergences import (
  divergence_gradient as divergence_gradient,
)
from covrl.objectives.gae import gae as gae
from covrl.objectives.gae import length_adaptive_decay as length_adaptive_decay
from covrl.objectives.losses import cispo as cispo
from covrl.objectives.losses import clipped_surrogate as clipped_surrogate
from covrl.objectives.losses import dppo as dppo
from covrl.objectives.losses import policy_gradient as policy_gradient
from covrl.objectives.losses import sapo as sapo
from covrl.objectives.outcome_scores import OutcomeAux as OutcomeAux
from covrl.objectives.outcome_scores import (
  calibration_error as calibration_error,
)
from covrl.objectives.outcome_scores import (
  outcome_cross_entropy as outcome_cross_entropy,
)
from covrl.objectives.outcome_scores import pair_accuracy as pair_accuracy
from covrl.objectives.process_rewards import PrimeForm as PrimeForm
from covrl.objectives.process_rewards import (
  ProcessAdvantages as ProcessAdvantages,
)
from covrl.objectives.process_rewards import (
  implicit_rewards as implicit_rewards,
)
from covrl.objectives.process_rewards import (
  process_advantages as process_advantages,
)
from covrl.objectives.returns import discounted_returns as discounted_returns
from covrl.objectives.returns import reinforce_plus_plus as reinforce_plus_plus
from covrl.objectives.returns import (
  reinforce_plus_plus_baseline as reinforce_plus_plus_baseline,
)
from covrl.objectives.returns import remax as remax
from covrl.objectives.returns import whiten as whiten
from covrl.objectives.sequence_losses import geo_mean as geo_mean
from covrl.objectives.sequence_losses import gspo as gspo
from covrl.objectives.sequence_losses import vespo as vespo
from covrl.objectives.success_rates import max_likelihood as max_likelihood
from covrl.objectives.success_rates import (
  quantile_relative as quantile_relative,
)
from covrl.objectives.token_rewards import (
  adapt_coefficient as adapt_coefficient,
)
from covrl.objectives.token_rewards import token_rewards as token_rewards
from covrl.objectives.value_losses import ValueAux as ValueAux
from covrl.objectives.value_losses import (
  clipped_value_loss as clipped_value_loss,
)
from covrl.objectives.value_losses import (
  explained_variance as explained_variance,
)
from covrl.objectives.weights import WEIGHT_MODES as WEIGHT_MODES
from covrl.objectives.weights import WeightMode as WeightMode
from covrl.objectives.weights import token_weights as token_weights
