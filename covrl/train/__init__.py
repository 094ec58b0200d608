# SPDX-License-Identifier: Apache-2.0
"""The jitted train step, the training state and the training loop."""

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
