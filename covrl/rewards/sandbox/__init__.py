# SPDX-License-Identifier: Apache-2.0
"""Judging of untrusted programs by the output that they produce in a sandbox."""

from covrl.rewards.sandbox.backends import JudgeError as JudgeError
from covrl.rewards.sandbox.judge import Judge as Judge
from covrl.rewards.sandbox.judge import default_judge as default_judge
from covrl.rewards.sandbox.judge import judge_code as judge_code
from covrl.rewards.sandbox.test_formats import find_program as find_program
