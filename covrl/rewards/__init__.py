# SPDX-License-Identifier: Apache-2.0
"""Scores for finished responses, computed in killable processes.

A task states what a response is worth as a sequence of named parts:

  rewards = (
    maths_reward(sources=('math', 'gsm8k')),      # is the answer right?
    code_reward(sources=('kodcode',)),            # does the program work?
    Reward(name='mine', score='module:function', weight=0.5),
    format_reward(r'<think>.*</think>.*', weight=0.1),
    Overlong(max_length=8192, buffer=1024),       # DAPO's length penalty
  )

Each `Reward` is a function `(response, reference) -> number or Outcome` that
runs in worker processes of its own, under a time and a memory limit; each part
judges the responses of its `sources`, and the reward is the weighted sum.
`Scoring(rewards, sources=…)` owns the processes and turns responses into
`Scores`: `totals()` to train on, `marks()` (no shaping) to evaluate by. NaN
says that a response could not be judged; it is masked, never scored 0.

In a script, without any of this, one answer at a time:

  grade_math(response, reference) -> Outcome

Workers import this room, so nothing heavy may be imported here.
"""

from covrl.rewards.code import code_reward as code_reward
from covrl.rewards.code import judge_of as judge_of
from covrl.rewards.code import score_code as score_code
from covrl.rewards.countdown import COUNTDOWN_EXAMPLE as COUNTDOWN_EXAMPLE
from covrl.rewards.countdown import may_be_correct as may_be_correct
from covrl.rewards.countdown import score_countdown as score_countdown
from covrl.rewards.math import grade_math as grade_math
from covrl.rewards.math import maths_reward as maths_reward
from covrl.rewards.math import score_math as score_math
from covrl.rewards.outcome import Outcome as Outcome
from covrl.rewards.outcome import Status as Status
from covrl.rewards.pool import RewardPool as RewardPool
from covrl.rewards.reward import TOTAL as TOTAL
from covrl.rewards.reward import Overlong as Overlong
from covrl.rewards.reward import Reward as Reward
from covrl.rewards.reward import RewardPart as RewardPart
from covrl.rewards.reward import ScoreFunction as ScoreFunction
from covrl.rewards.reward import format_reward as format_reward
from covrl.rewards.reward import overlong_penalty as overlong_penalty
from covrl.rewards.sandbox import Judge as Judge
from covrl.rewards.sandbox import JudgeError as JudgeError
from covrl.rewards.sandbox import find_program as find_program
from covrl.rewards.sandbox import judge_code as judge_code
from covrl.rewards.scoring import PendingScores as PendingScores
from covrl.rewards.scoring import Scores as Scores
from covrl.rewards.scoring import Scoring as Scoring
