# SPDX-License-Identifier: Apache-2.0
"""Grading of answers to mathematical problems.

An answer is extracted from the response (`extraction`), normalized
(`normalize`), parsed (`lexer`, `parser`), put into a canonical form (`canonical`)
and compared (`equivalence`; expressions by `numeric`, sets by `real_sets`,
quantities by `units`). Expressions that cannot be parsed go to the math-verify
library (`math_verify`). `grading` combines these steps.
"""

from covrl.rewards.math.extraction import RULES as RULES
from covrl.rewards.math.extraction import extract as extract
from covrl.rewards.math.grading import grade_math as grade_math
from covrl.rewards.math.grading import math_reward as math_reward
from covrl.rewards.math.grading import score_math as score_math
