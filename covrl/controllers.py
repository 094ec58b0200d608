# SPDX-License-Identifier: Apache-2.0
"""Controllers of coefficients: stateful schedules that read the entropy."""

from covrl.entropy import EntropyPrediction as EntropyPrediction
from covrl.entropy import adaptive_band as adaptive_band
from covrl.entropy import adaptive_bonus as adaptive_bonus
from covrl.entropy import doubling_scale as doubling_scale
from covrl.entropy import entropy_band as entropy_band
from covrl.entropy import proportional_integral as proportional_integral
from covrl.entropy import target_entropy as target_entropy
