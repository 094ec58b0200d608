# SPDX-License-Identifier: Apache-2.0
"""Tasks: the problems a policy is trained on and how responses are graded."""

from covrl.tasks.arithmetic import arithmetic_task as arithmetic_task
from covrl.tasks.task import Task as Task
from covrl.tasks.task import countdown_steps_task as countdown_steps_task
from covrl.tasks.task import countdown_task as countdown_task
from covrl.tasks.task import maze_task as maze_task
from covrl.tasks.text import text_task as text_task
