# SPDX-License-Identifier: Apache-2.0
"""Entropy control: selection of tokens, token transforms, methods."""

from covrl.entropy.base import update_signal as update_signal
from covrl.entropy.controllers.bands import (
  AdaptiveBandState as AdaptiveBandState,
)
from covrl.entropy.controllers.bands import adaptive_band as adaptive_band
from covrl.entropy.controllers.bands import entropy_band as entropy_band
from covrl.entropy.controllers.coefficients import (
  AdaptiveBonusState as AdaptiveBonusState,
)
from covrl.entropy.controllers.coefficients import (
  DoublingScaleState as DoublingScaleState,
)
from covrl.entropy.controllers.coefficients import (
  ProportionalIntegralState as ProportionalIntegralState,
)
from covrl.entropy.controllers.coefficients import (
  adaptive_bonus as adaptive_bonus,
)
from covrl.entropy.controllers.coefficients import (
  doubling_scale as doubling_scale,
)
from covrl.entropy.controllers.coefficients import (
  proportional_integral as proportional_integral,
)
from covrl.entropy.controllers.target_entropy import (
  target_entropy as target_entropy,
)
from covrl.entropy.decisions import DecisionCache as DecisionCache
from covrl.entropy.decisions import Selection as Selection
from covrl.entropy.inspection import explain as explain
from covrl.entropy.inspection import required_truncation as required_truncation
from covrl.entropy.inspection import selection_sources as selection_sources
from covrl.entropy.jvp import jvp_score as jvp_score
from covrl.entropy.loss import as_loss as as_loss
from covrl.entropy.methods.covariance import clip_cov as clip_cov
from covrl.entropy.methods.covariance import entropy_bonus as entropy_bonus
from covrl.entropy.methods.covariance import kl_cov as kl_cov
from covrl.entropy.methods.detachment import detach_drain as detach_drain
from covrl.entropy.methods.likely_tokens import aent as aent
from covrl.entropy.methods.likely_tokens import lp_reg as lp_reg
from covrl.entropy.methods.off_policy import (
  ImportanceWeightState as ImportanceWeightState,
)
from covrl.entropy.methods.off_policy import ce_gppo as ce_gppo
from covrl.entropy.methods.off_policy import kl_to_reference as kl_to_reference
from covrl.entropy.methods.off_policy import (
  truncated_importance_weights as truncated_importance_weights,
)
from covrl.entropy.methods.rejection import decoupled_ppo as decoupled_ppo
from covrl.entropy.methods.rejection import (
  entropy_ratio_clip as entropy_ratio_clip,
)
from covrl.entropy.methods.rejection import icepop as icepop
from covrl.entropy.methods.rejection import reject_sequences as reject_sequences
from covrl.entropy.methods.relative import forking_tokens as forking_tokens
from covrl.entropy.methods.relative import steer as steer
from covrl.entropy.methods.shaping import entrocraft as entrocraft
from covrl.entropy.methods.shaping import entropic as entropic
from covrl.entropy.methods.shaping import entropy_shaped as entropy_shaped
from covrl.entropy.methods.shaping import repo as repo
from covrl.entropy.methods.shaping import sample_weights as sample_weights
from covrl.entropy.prediction import EntropyPrediction as EntropyPrediction
from covrl.entropy.prediction import entropy_change as entropy_change
from covrl.entropy.scores import definition_score as definition_score
from covrl.entropy.scores import exact_score as exact_score
from covrl.entropy.scores import state_score as state_score
from covrl.entropy.scores import token_covariance as token_covariance
from covrl.entropy.selection import exact_quantile as exact_quantile
from covrl.entropy.selection import select_random as select_random
from covrl.entropy.selection import select_top as select_top
from covrl.entropy.selectors import all_but as all_but
from covrl.entropy.selectors import random_in_band as random_in_band
from covrl.entropy.selectors import random_tokens as random_tokens
from covrl.entropy.selectors import rarest_negative as rarest_negative
from covrl.entropy.selectors import top_entropy as top_entropy
from covrl.entropy.selectors import top_score as top_score
from covrl.entropy.transforms import (
  DivergencePenaltyState as DivergencePenaltyState,
)
from covrl.entropy.transforms import SelectionSummary as SelectionSummary
from covrl.entropy.transforms import TokenMaskedState as TokenMaskedState
from covrl.entropy.transforms import (
  add_divergence_penalty as add_divergence_penalty,
)
from covrl.entropy.transforms import add_entropy_bonus as add_entropy_bonus
from covrl.entropy.transforms import scale_by_token as scale_by_token
from covrl.entropy.transforms import token_masked as token_masked
from covrl.statistics.exact import exact_mean as exact_mean
from covrl.statistics.exact import exact_sum as exact_sum
