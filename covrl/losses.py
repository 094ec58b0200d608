# SPDX-License-Identifier: Apache-2.0
"""Losses of policies, critics and process reward models, divergences and weights.

A policy loss is a function `(stats, **context) -> (value, LossAux)`.
"""

from covrl.objectives import LossAux as LossAux
from covrl.objectives import cispo as cispo
from covrl.objectives import clipped_surrogate as clipped_surrogate
from covrl.objectives import clipped_value_loss as clipped_value_loss
from covrl.objectives import divergence as divergence
from covrl.objectives import divergence_gradient as divergence_gradient
from covrl.objectives import dppo as dppo
from covrl.objectives import geo_mean as geo_mean
from covrl.objectives import gspo as gspo
from covrl.objectives import outcome_cross_entropy as outcome_cross_entropy
from covrl.objectives import policy_gradient as policy_gradient
from covrl.objectives import sapo as sapo
from covrl.objectives import token_weights as token_weights
from covrl.objectives import vespo as vespo
