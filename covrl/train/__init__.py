# SPDX-License-Identifier: Apache-2.0
"""The jitted step, the loop, checkpoints, metrics, evaluation."""

from covrl.train.checkpoint import Checkpoint as Checkpoint
from covrl.train.checkpoint import CheckpointError as CheckpointError
from covrl.train.checkpoint import CheckpointStore as CheckpointStore
from covrl.train.questions import text_task as text_task
from covrl.train.start import Watch as Watch
from covrl.train.start import train as train
from covrl.train.step import Loss as Loss
from covrl.train.step import StepSettings as StepSettings
from covrl.train.step import make_train_step as make_train_step
from covrl.train.stopping import Stopped as Stopped
from covrl.train.task import Task as Task
from covrl.train.task import countdown_task as countdown_task
