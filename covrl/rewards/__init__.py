# SPDX-License-Identifier: Apache-2.0
"""Scores for finished responses, computed in killable processes.

Workers import this room, so nothing heavy may be imported here.
"""

from covrl.rewards.countdown import COUNTDOWN_EXAMPLE as COUNTDOWN_EXAMPLE
from covrl.rewards.countdown import may_be_correct as may_be_correct
from covrl.rewards.countdown import score_countdown as score_countdown
from covrl.rewards.judge import Judge as Judge
from covrl.rewards.judge import JudgeError as JudgeError
from covrl.rewards.judge import find_program as find_program
from covrl.rewards.judge import judge_code as judge_code
from covrl.rewards.outcome import Outcome as Outcome
from covrl.rewards.outcome import Status as Status
from covrl.rewards.pool import RewardPool as RewardPool
