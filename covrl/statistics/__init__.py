# SPDX-License-Identifier: Apache-2.0
"""Per-token statistics from hidden states, without a [B, T, V] array."""

from covrl.statistics.reference import (
  token_stats_from_logits as token_stats_from_logits,
)
from covrl.statistics.stats import token_stats as token_stats
from covrl.statistics.truncated import NO_TRUNCATION as NO_TRUNCATION
from covrl.statistics.truncated import Truncation as Truncation
