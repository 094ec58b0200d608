# SPDX-License-Identifier: Apache-2.0
"""covrl: entropy control for reinforcement learning of language models.

The names below are the library: statistics of tokens, losses and advantages
over them, and token chains that edit the losses' cotangents. The trainer is
`covrl.train`, the command line `covrl`.
"""

from covrl import presets as presets
from covrl.entropy import Outlook as Outlook
from covrl.entropy import Plan as Plan
from covrl.entropy import Selection as Selection
from covrl.entropy import SelectionSummary as SelectionSummary
from covrl.entropy import adaptive_bonus as adaptive_bonus
from covrl.entropy import add_divergence_penalty as add_divergence_penalty
from covrl.entropy import add_entropy_bonus as add_entropy_bonus
from covrl.entropy import all_but as all_but
from covrl.entropy import as_loss as as_loss
from covrl.entropy import ce_gppo as ce_gppo
from covrl.entropy import clip_cov as clip_cov
from covrl.entropy import definition_score as definition_score
from covrl.entropy import detach_drain as detach_drain
from covrl.entropy import doubling_scale as doubling_scale
from covrl.entropy import entrocraft as entrocraft
from covrl.entropy import entropic as entropic
from covrl.entropy import entropy_band as entropy_band
from covrl.entropy import entropy_bonus as entropy_bonus
from covrl.entropy import entropy_change as entropy_change
from covrl.entropy import entropy_shaped as entropy_shaped
from covrl.entropy import exact_score as exact_score
from covrl.entropy import explain as explain
from covrl.entropy import forking_tokens as forking_tokens
from covrl.entropy import init_token_state as init_token_state
from covrl.entropy import jvp_score as jvp_score
from covrl.entropy import kl_cov as kl_cov
from covrl.entropy import kl_to_reference as kl_to_reference
from covrl.entropy import proportional_integral as proportional_integral
from covrl.entropy import random_in_band as random_in_band
from covrl.entropy import random_tokens as random_tokens
from covrl.entropy import repo as repo
from covrl.entropy import sample_weights as sample_weights
from covrl.entropy import scale_by_token as scale_by_token
from covrl.entropy import select_random as select_random
from covrl.entropy import select_top as select_top
from covrl.entropy import state_score as state_score
from covrl.entropy import steer as steer
from covrl.entropy import target_entropy as target_entropy
from covrl.entropy import token_covariance as token_covariance
from covrl.entropy import token_masked as token_masked
from covrl.entropy import top_entropy as top_entropy
from covrl.entropy import top_score as top_score
from covrl.entropy import (
  truncated_importance_weights as truncated_importance_weights,
)
from covrl.entropy import update_signal as update_signal
from covrl.objectives import LossAux as LossAux
from covrl.objectives import cispo as cispo
from covrl.objectives import clipped_surrogate as clipped_surrogate
from covrl.objectives import divergence as divergence
from covrl.objectives import divergence_gradient as divergence_gradient
from covrl.objectives import dppo as dppo
from covrl.objectives import gae as gae
from covrl.objectives import geo_mean as geo_mean
from covrl.objectives import group_relative as group_relative
from covrl.objectives import gspo as gspo
from covrl.objectives import leave_one_out as leave_one_out
from covrl.objectives import opo as opo
from covrl.objectives import pass_at_k as pass_at_k
from covrl.objectives import policy_gradient as policy_gradient
from covrl.objectives import reinforce_plus_plus as reinforce_plus_plus
from covrl.objectives import (
  reinforce_plus_plus_baseline as reinforce_plus_plus_baseline,
)
from covrl.objectives import remax as remax
from covrl.objectives import sapo as sapo
from covrl.objectives import token_weights as token_weights
from covrl.objectives import unlikeliness as unlikeliness
from covrl.pretrained import load_pretrained as load_pretrained
from covrl.pretrained import save_pretrained as save_pretrained
from covrl.statistics import token_stats as token_stats
from covrl.statistics import (
  token_stats_from_logits as token_stats_from_logits,
)
from covrl.types import Rollouts as Rollouts
from covrl.types import TokenBatch as TokenBatch
from covrl.types import TokenContext as TokenContext
from covrl.types import TokenMoments as TokenMoments
from covrl.types import TokenStats as TokenStats
from covrl.types import TrainState as TrainState
