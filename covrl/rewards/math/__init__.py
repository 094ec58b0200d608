# SPDX-License-Identifier: Apache-2.0
"""Grading of answers to mathematical problems.

An answer is extracted from the response (`extraction`), normalized (`normalize`,
`number_bases`), parsed (`lexer`, `parser`, `brackets`), put into a canonical form
(`canonical`; answers in integers by `integers` and `integer_sets`) and compared
(`equivalence`; chains of equations by `chains`, expressions by `numeric` and
`modular`, sets by `real_sets` and `families`, quantities by `compare_answers`,
`quantities` and `units`, times by `clock`). Expressions that cannot be parsed go
to the math-verify library (`math_verify`). `grading` combines these steps.
"""

from covrl.rewards.math.extraction import RULES as RULES
from covrl.rewards.math.extraction import extract as extract
from covrl.rewards.math.grading import grade_math as grade_math
from covrl.rewards.math.grading import math_reward as math_reward
from covrl.rewards.math.grading import score_math as score_math
