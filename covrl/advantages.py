# SPDX-License-Identifier: Apache-2.0
"""Advantages of responses, from rewards and groups, and of tokens."""

from covrl.objectives import gae as gae
from covrl.objectives import group_relative as group_relative
from covrl.objectives import implicit_rewards as implicit_rewards
from covrl.objectives import leave_one_out as leave_one_out
from covrl.objectives import length_adaptive_decay as length_adaptive_decay
from covrl.objectives import max_likelihood as max_likelihood
from covrl.objectives import opo as opo
from covrl.objectives import pass_at_k as pass_at_k
from covrl.objectives import process_advantages as process_advantages
from covrl.objectives import quantile_relative as quantile_relative
from covrl.objectives import reinforce_plus_plus as reinforce_plus_plus
from covrl.objectives import (
  reinforce_plus_plus_baseline as reinforce_plus_plus_baseline,
)
from covrl.objectives import remax as remax
from covrl.objectives import token_rewards as token_rewards
from covrl.objectives import unlikeliness as unlikeliness
