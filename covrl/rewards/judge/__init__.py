# SPDX-License-Identifier: Apache-2.0
"""Programs that nobody vouches for, judged by what they produce in a sandbox."""

from covrl.rewards.judge.forms import find_program as find_program
from covrl.rewards.judge.judging import Judge as Judge
from covrl.rewards.judge.judging import default_judge as default_judge
from covrl.rewards.judge.judging import judge_code as judge_code
from covrl.rewards.judge.levels import JudgeError as JudgeError
