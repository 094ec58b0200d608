# SPDX-License-Identifier: Apache-2.0
"""Training: a run alternates rollouts and updates of the policy.

`setup` makes all objects of a run from its recipe, and restores them from a checkpoint
or starts with a supervised warm start (`sft`). `loop.train`, one function, then
evaluates, rolls out and updates until the last iteration. For a rollout, `collect`
draws prompts, samples and scores responses, and chooses the groups to train on, which
`rollout_batch` assembles. An update is `step`, a pure function of state and batch: a
forward pass, the loss, the token chain, one pull-back and the parameter chain;
`compiled` jits it with the programs that score tokens. `networks` holds second
networks, such as a critic, which are trained beside the policy and estimate advantages,
and `warnings` finds parts of a recipe that have no effect, or another than it seems.
"""

from covrl.run.checkpoint import Checkpoint as Checkpoint
from covrl.run.checkpoint import CheckpointError as CheckpointError
from covrl.run.checkpoint import CheckpointStore as CheckpointStore
from covrl.run.preemption import Stopped as Stopped
from covrl.tasks.task import Task as Task
from covrl.tasks.task import countdown_task as countdown_task
from covrl.tasks.text import text_task as text_task
from covrl.train.loop import TrainOptions as TrainOptions
from covrl.train.loop import train as train
from covrl.train.step import Loss as Loss
from covrl.train.step import StepSettings as StepSettings
from covrl.train.step import make_train_step as make_train_step
