# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, into a checkpoint and out of it."""

from __future__ import annotations

import dataclasses
from typing import Any

from covrl.data import StreamState
from covrl.run.checkpoint import Checkpoint, CheckpointStore, as_host
from covrl.train.compiled import Programs, without_base
from covrl.train.rollout_batch import Iteration
from covrl.train.rollout_collector import Collector
from covrl.types import TrainState


@dataclasses.dataclass
class Place:
  """All that a checkpoint must say beside the arrays.

  Attributes:
    iteration: which is next, or under way.
    update: updates made of it.
    evaluated: the last iteration that was evaluated.
    entropy: of the last update.
    draws: where the prompts stood when the iteration's rollout was done, or
      where they stand before it.
  """

  iteration: int = 0
  update: int = 0
  evaluated: int = -1
  entropy: float | None = None
  draws: StreamState | None = None


def save_place(
  store: CheckpointStore,
  position: int,
  place: Place,
  state: TrainState,
  iteration: Iteration | None,
  metrics_size: int,
) -> None:
  """Writes a checkpoint of everything.

  Args:
    store: the run's checkpoints.
    position: updates made.
    place: where the run stands.
    state: the training state.
    iteration: if it is unfinished.
    metrics_size: of what has been written about the run so far.
  """
  arrays: dict[str, Any] = {'state': without_base(state)}
  notes = {
    'iteration': place.iteration,
    'place': dataclasses.asdict(place),
    'metrics_size': metrics_size,
  }
  if iteration is not None:
    arrays['iteration'] = iteration.arrays()
    notes['rollout_metrics'] = iteration.metrics
  store.save(position, arrays, notes)


def restore_place(
  saved: Checkpoint, programs: Programs, collector: Collector
) -> tuple[Place, TrainState, Iteration | None]:
  """What `save_place` wrote; the collector goes to where it was.

  The base of adapters is in no checkpoint.
  """
  notes = saved.notes
  place = Place(**notes['place'])
  if place.draws is not None:
    collector.place = place.draws
  like: dict[str, Any] = {'state': without_base(programs.abstract_state())}
  if place.update > 0:
    like['iteration'] = collector.blank().arrays()
  arrays = saved.restore(like)
  if place.update == 0:
    return place, arrays['state'], None
  pending = as_host(arrays['iteration'])
  iteration = Iteration(**pending, metrics=notes['rollout_metrics'])
  return place, arrays['state'], iteration
