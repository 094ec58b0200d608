# SPDX-License-Identifier: Apache-2.0
"""covrl: entropy control for reinforcement learning of language models."""

from covrl.types import Rollouts as Rollouts
from covrl.types import TokenBatch as TokenBatch
from covrl.types import TokenContext as TokenContext
from covrl.types import TokenMoments as TokenMoments
from covrl.types import TokenStats as TokenStats
from covrl.types import TrainState as TrainState
