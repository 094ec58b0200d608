# SPDX-License-Identifier: Apache-2.0
"""Rewards of responses, computed in killable worker processes.

A task's reward is a sequence of named parts:

  rewards = (
    math_reward(sources=('math', 'gsm8k')),       # correct answer
    code_reward(sources=('kodcode',)),            # share of passed tests
    Reward(name='mine', score='module:function', weight=0.5),
    format_reward(r'<think>.*</think>.*', weight=0.1),
    Overlong(max_length=8192, buffer=1024),       # DAPO's length penalty
  )

Each `Reward` is a function `(response, reference) -> number or Outcome` that runs
in separate worker processes with a time and a memory limit. Each part scores the
responses of its `sources`, and the total is the weighted sum. `Scoring(rewards,
sources=…)` owns the processes and turns responses into `Scores`: `totals()` for
training, `grades()` (in [0, 1], without shaping) for evaluation. A response that
could not be scored has the score NaN: it is masked, never scored 0.

A script can grade single answers without any of this:

  grade_math(response, reference) -> Outcome

Workers import this package, so it must not import anything heavy.
"""

from covrl.rewards._worker_process import ENVIRONMENT as ENVIRONMENT
from covrl.rewards.code import cached_judge as cached_judge
from covrl.rewards.code import code_reward as code_reward
from covrl.rewards.code import score_code as score_code
from covrl.rewards.countdown import COUNTDOWN_EXAMPLE as COUNTDOWN_EXAMPLE
from covrl.rewards.countdown import score_countdown as score_countdown
from covrl.rewards.countdown_steps import (
  COUNTDOWN_STEPS_EXAMPLE as COUNTDOWN_STEPS_EXAMPLE,
)
from covrl.rewards.countdown_steps import (
  score_countdown_steps as score_countdown_steps,
)
from covrl.rewards.math import grade_math as grade_math
from covrl.rewards.math import math_reward as math_reward
from covrl.rewards.math import score_math as score_math
from covrl.rewards.mazes import MAZE_EXAMPLE as MAZE_EXAMPLE
from covrl.rewards.mazes import score_maze as score_maze
from covrl.rewards.outcome import Outcome as Outcome
from covrl.rewards.outcome import Status as Status
from covrl.rewards.pool import RewardPool as RewardPool
from covrl.rewards.reward import CORRECT_ABOVE as CORRECT_ABOVE
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
from covrl.rewards.scores import GRADE_TOLERANCE as GRADE_TOLERANCE
from covrl.rewards.scores import PendingScores as PendingScores
from covrl.rewards.scores import Scores as Scores
from covrl.rewards.scoring import Scoring as Scoring
from covrl.rewards.scoring import ScoringCall as ScoringCall
