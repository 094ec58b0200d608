# SPDX-License-Identifier: Apache-2.0
"""Saves and restores training progress."""

from __future__ import annotations

import dataclasses
from typing import Any

from covrl.config import Config
from covrl.data import StreamState
from covrl.run.checkpoint import (
  Checkpoint,
  CheckpointError,
  CheckpointStore,
  to_host,
)
from covrl.train.compiled import CompiledPrograms, without_base
from covrl.train.rollout_batch import RolloutBatch
from covrl.train.rollout_collector import RolloutCollector
from covrl.types import TrainState


@dataclasses.dataclass
class RunPosition:
  """The position of a run, saved with every checkpoint.

  Attributes:
    iteration: index of the current iteration.
    update: number of updates made in this iteration.
    evaluated: index of the iteration before which the policy was last
      evaluated, −1 for none.
    entropy: mean token entropy at the last update, in nats.
    prompts: position in the stream of prompts after the rollout of the current
      iteration, or before it if no update has been made yet.
  """

  iteration: int = 0
  update: int = 0
  evaluated: int = -1
  entropy: float | None = None
  prompts: StreamState | None = None

  def updates_made(self, config: Config) -> int:
    """Returns the number of updates since the start of the run."""
    return self.iteration * config.updates_per_iteration + self.update


def save_run(
  store: CheckpointStore,
  config: Config,
  position: RunPosition,
  state: TrainState,
  rollout: RolloutBatch | None,
  metrics_size: int,
) -> None:
  """Writes a checkpoint, unless the newest one is of the same update.

  Args:
    store: the run's checkpoints.
    config: the run's configuration.
    position: the position of the run.
    state: the training state.
    rollout: the data of an unfinished iteration.
    metrics_size: bytes of metrics written so far.
  """
  updates = position.updates_made(config)
  if store.position == updates:
    # Replacing the only checkpoint would risk its loss.
    return
  arrays: dict[str, Any] = {'state': without_base(state)}
  notes = {
    'iteration': position.iteration,
    'position': dataclasses.asdict(position),
    'metrics_size': metrics_size,
  }
  if rollout is not None:
    arrays['rollout'] = rollout.arrays()
    notes['rollout_metrics'] = rollout.metrics
  store.save(updates, arrays, notes)


def restore_run(
  saved: Checkpoint, programs: CompiledPrograms, collector: RolloutCollector
) -> tuple[RunPosition, TrainState, RolloutBatch | None]:
  """Restores what `save_run` wrote, and the collector's position.

  The state lacks the frozen base of adapters, which checkpoints do not store.

  Raises:
    CheckpointError: the checkpoint is damaged or of another program.
  """
  notes = saved.notes
  if 'position' not in notes:
    raise CheckpointError(
      f'the checkpoint {saved.path} was written by another version of covrl'
    )
  position = RunPosition(**notes['position'])
  if position.prompts is not None:
    collector.position = position.prompts
  like: dict[str, Any] = {'state': without_base(programs.abstract_state())}
  if position.update > 0:
    like['rollout'] = collector.padding_batch().arrays()
  arrays = saved.restore(like)
  rollout = None
  if position.update > 0:
    rollout = RolloutBatch(
      **to_host(arrays['rollout']), metrics=notes['rollout_metrics']
    )
  return position, arrays['state'], rollout
