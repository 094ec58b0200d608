# SPDX-License-Identifier: Apache-2.0
"""Grading answers to mathematical problems.

A response's answer is found (`extraction`), spelt in one way (`cleaning`), read
(`tokens`, `reading`), put in one form (`settling`) and compared (`comparison`:
expressions by `numeric`, sets by `real_sets`, measures by `units`); what cannot
be read goes to math-verify (`second_opinion`). `grading` joins them.
"""

from covrl.rewards.math.extraction import RULES as RULES
from covrl.rewards.math.extraction import extract as extract
from covrl.rewards.math.grading import grade_math as grade_math
from covrl.rewards.math.grading import maths_reward as maths_reward
from covrl.rewards.math.grading import score_math as score_math
