# SPDX-License-Identifier: Apache-2.0
"""Selectors for `token_masked`, and selections of tokens by arrays of scores.

A selector is a function `(stats, **context) -> Selection`; `select_top` and
`select_random` return the `Selection` of arrays.
"""

from covrl.entropy import Selection as Selection
from covrl.entropy import all_but as all_but
from covrl.entropy import random_in_band as random_in_band
from covrl.entropy import random_tokens as random_tokens
from covrl.entropy import rarest_negative as rarest_negative
from covrl.entropy import select_random as select_random
from covrl.entropy import select_top as select_top
from covrl.entropy import top_entropy as top_entropy
from covrl.entropy import top_score as top_score
