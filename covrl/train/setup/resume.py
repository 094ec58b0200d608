# SPDX-License-Identifier: Apache-2.0
"""Saves and restores training progress, or starts a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from covrl.config import Config
from covrl.data import StreamState
from covrl.run.checkpoint import (
  Checkpoint,
  CheckpointError,
  CheckpointStore,
)
from covrl.run.consistency import versions
from covrl.run.metrics_writer import MetricsState, MetricsWriter
from covrl.run.preemption import StopSignal
from covrl.run.progress import Progress
from covrl.train.collect.collector import CollectorState
from covrl.train.compiled import without_frozen_base
from covrl.train.health import UpdateHealth
from covrl.train.rollout_batch import RolloutBatch
from covrl.train.setup.build import Components
from covrl.train.setup.initial_policy import (
  add_adapter_params,
  initial_base_params,
)
from covrl.train.setup.inputs import warm_start_of
from covrl.train.sft import is_warm_start_finished, warm_start
from covrl.types import TrainState


@dataclasses.dataclass
class RunPosition:
  """The position of a run, saved with every checkpoint.

  Attributes:
    iteration: index of the current iteration.
    update: number of updates made in this iteration.
    evaluated: index of the iteration before which the policy was last
      evaluated, −1 for none.
    health: counts of updates that changed nothing.
    last_entropy: mean token entropy at the last update, in nats.
    prompts: position in the stream of prompts after the rollout of the current
      iteration, or before it if no update has been made yet.
  """

  iteration: int = 0
  update: int = 0
  evaluated: int = -1
  last_entropy: float | None = None
  prompts: StreamState | None = None
  health: UpdateHealth = dataclasses.field(default_factory=UpdateHealth)

  def updates_made(self, config: Config) -> int:
    """Returns the number of updates since the start of the run."""
    return self.iteration * config.updates_per_iteration + self.update


def save_run(
  store: CheckpointStore,
  config: Config,
  position: RunPosition,
  state: TrainState,
  rollout: RolloutBatch | None,
  collector_state: CollectorState,
  metrics: MetricsState,
  inputs: Mapping[str, str],
  records: Mapping[str, Any],
) -> None:
  """Writes a checkpoint, or updates the metadata of the last one.

  If the last checkpoint is of the same update, only its metadata is replaced:
  the evaluation that follows a checkpoint adds its metrics in this way.

  Args:
    store: the run's checkpoints.
    config: the run's configuration.
    position: the position of the run.
    state: the training state.
    rollout: the data of an unfinished iteration.
    collector_state: the state of the collector.
    metrics: the metrics so far, see `MetricsWriter.sync`.
    inputs: fingerprints of the inputs by name, see `covrl.train.setup.inputs`.
    records: what to store of the run's files, see `RunDirectory.records`.
  """
  arrays: dict[str, Any] = {'state': without_frozen_base(state)}
  metadata = {
    'iteration': position.iteration,
    'position': dataclasses.asdict(position),
    'metrics': metrics,
    'inputs': inputs,
    'versions': versions(config),
    **records,
  }
  if rollout is not None:
    arrays['rollout'] = rollout.arrays()
    metadata['rollout_metrics'] = rollout.metrics
    metadata['update_metrics'] = list(rollout.update_metrics)
  # Responses sampled for the next iteration, and groups carried over to it.
  sampled = {'ahead': collector_state.ahead, 'carried': collector_state.carried}
  arrays |= {
    name: groups.arrays()
    for name, groups in sampled.items()
    if groups is not None
  }
  metadata['sampled'] = [*(sampled.keys() & arrays.keys())]
  updates = position.updates_made(config)
  # Replacing the arrays of the only checkpoint would risk its loss.
  if store.position != updates or not store.replace_metadata(metadata):
    store.save(updates, arrays, metadata)


def is_finished(saved: Checkpoint, config: Config) -> bool:
  """Returns whether a run has nothing to train and nothing to evaluate.

  Its checkpoint is that of the end, evaluated, or one in the middle of an iteration
  after the last one, where `train.iterations` is less than it was.
  """
  position = saved.metadata.get('position', {})
  return saved.metadata['iteration'] >= config.train.iterations and (
    position.get('update', 0) > 0
    or position.get('evaluated', -1) >= saved.metadata['iteration']
  )


def describe_end(saved: Checkpoint, config: Config) -> str:
  """Returns the position of a finished run's checkpoint as a predicate.

  Args:
    saved: the checkpoint, see `is_finished`.
    config: the run's configuration.
  """
  done, asked = saved.metadata['iteration'], config.train.iterations
  updates = saved.metadata.get('position', {}).get('update', 0)
  if done == asked and not updates:
    return f'is finished: {done} of {asked} iterations; raise train.iterations to go on'
  position = f'{done} iterations'
  if updates:
    position += f' and {updates} of the {config.updates_per_iteration} updates of the next'
  return (
    f'has trained more than train.iterations={asked}: its checkpoint has {position};'
    ' raise train.iterations to go on'
  )


def schedule_warning(config: Config) -> str:
  """Returns a sentence on schedules that end before the run; else nothing."""
  end, iterations = config.train.schedule_iterations, config.train.iterations
  if not 0 < end < iterations:
    return ''
  return (
    f'schedules run over {end} of {iterations} iterations'
    ' (train.schedule_iterations) and keep their last values after them'
  )


def extension_warning(config: Config, saved: Checkpoint | None) -> str:
  """Returns a sentence on a run that is extended and samples ahead; else nothing.

  Nothing is sampled ahead in a run's last iteration, so that the policy after it
  samples the next one, and not the policy before it.

  Args:
    config: the run's configuration.
    saved: the checkpoint to resume from, if any.
  """
  if saved is None or not config.rollout.pipeline:
    return ''
  position = saved.metadata.get('position', {})
  iterations_begun = position.get('iteration', 0) + (
    position.get('update', 0) > 0
  )
  if 'ahead' in saved.metadata.get('sampled', ()) or not (
    0 < iterations_begun < config.train.iterations
  ):
    return ''
  return (
    f'the run had {iterations_begun} iterations when its checkpoint was written, and no'
    f' responses were sampled ahead for iteration {iterations_begun}'
    ' (rollout.pipeline): the resumed run differs from an uninterrupted one of'
    f' {config.train.iterations} iterations'
  )


def saved_metrics(saved: Checkpoint | None) -> MetricsState | None:
  """Returns the metrics at a checkpoint; `None` without a checkpoint.

  Raises:
    CheckpointError: the checkpoint is of another version of covrl.
  """
  if saved is None:
    return None
  if 'metrics' not in saved.metadata:
    raise _version_error(saved)
  return saved.metadata['metrics']


def start_or_resume(
  run: Components,
  config: Config,
  saved: Checkpoint | None,
  warm_starts: CheckpointStore,
  writer: MetricsWriter,
  progress: Progress,
  warn: Callable[[str], object],
  stop: StopSignal,
  metadata: Mapping[str, Any],
) -> tuple[RunPosition, TrainState, RolloutBatch | None]:
  """Returns position, state and unfinished iteration to go on from.

  Args:
    run: the objects of the run; its collector is moved to the position.
    config: the run's configuration.
    saved: the checkpoint to resume from; `None` starts the run, after its warm
      start if it has one.
    warm_starts: the store of the warm start.
    writer: receives the metrics of the warm start.
    progress: displays the warm start.
    warn: receives a sentence if updates of the warm start are skipped.
    stop: requests to stop.
    metadata: stored with the checkpoints of the warm start, see `warm_start`.

  Raises:
    Stopped: a signal has stopped the warm start; it is saved.
    CheckpointError: the checkpoint is damaged or was written by another version,
      or it has adapters, and the warm start that is their base is absent.
    ConfigError: the warm start under adapters is another one than before.
  """
  finished_warm_start, unfinished_warm_start = run.shared_warm_start, None
  if saved is not None and run.policy.config.lora is not None:
    finished_warm_start = finished_warm_start or warm_start_of(
      saved, config, warm_starts
    )
  elif (
    saved is None
    and finished_warm_start is None
    and (latest := warm_starts.latest())
  ):
    is_complete = is_warm_start_finished(latest, config)
    finished_warm_start, unfinished_warm_start = (
      (latest, None) if is_complete else (None, latest)
    )

  def base_params() -> PyTree:
    return initial_base_params(
      config, run.policy, run.mesh, run.init_key, finished_warm_start
    )

  if saved is not None:
    position, state, rollout = _restore(saved, run)
    if run.policy.config.lora is not None:
      frozen = state.frozen | {'base': base_params()}
      state = dataclasses.replace(state, frozen=frozen)
    progress.note(
      f'resuming at iteration {position.iteration}, update {position.update}'
    )
    return position, state, rollout
  if finished_warm_start is None and config.warm_start.steps:
    params = warm_start(
      run.policy.base,
      base_params,
      run.task,
      run.warm_start_tx,
      config,
      run.mesh,
      writer,
      progress,
      warn,
      warm_starts,
      unfinished_warm_start,
      stop,
      metadata,
    )
  else:
    params = base_params()
    if finished_warm_start is not None:
      progress.note('the warm start is finished')
  params = add_adapter_params(
    config, run.policy, run.mesh, run.init_key, params
  )
  return RunPosition(), run.programs.init_state(params), None


def _restore(
  saved: Checkpoint, run: Components
) -> tuple[RunPosition, TrainState, RolloutBatch | None]:
  """Restores what `save_run` wrote, and the collector's position.

  The state lacks the frozen base of adapters, which checkpoints do not store.
  """
  metadata = saved.metadata
  if 'position' not in metadata:
    raise _version_error(saved)
  fields = metadata['position']
  if fields.keys() != {field.name for field in dataclasses.fields(RunPosition)}:
    raise _version_error(saved)
  health = UpdateHealth(**fields['health'])
  position = RunPosition(**fields | {'health': health})
  like: dict[str, Any] = {
    'state': without_frozen_base(run.programs.abstract_state())
  }
  if position.update > 0:
    like['rollout'] = run.collector.padding_batch().arrays()
  sampled = metadata.get('sampled', ())
  if 'ahead' in sampled:
    like['ahead'] = run.collector.zero_rollouts()
  if 'carried' in sampled:
    like['carried'] = run.collector.padding_groups()
  arrays = saved.restore(like)
  if position.prompts is not None:
    run.collector.restore(
      position.prompts,
      *(_to_host(arrays.get(name)) for name in ('ahead', 'carried')),
    )
  rollout = None
  if position.update > 0:
    rollout = RolloutBatch(
      **_to_host(arrays['rollout']),
      metrics=metadata['rollout_metrics'],
      update_metrics=metadata.get('update_metrics', ()),
    )
  return position, arrays['state'], rollout


def _to_host(tree: PyTree) -> PyTree:
  """Converts device arrays to numpy arrays."""
  return jax.tree.map(np.asarray, jax.device_get(tree))


def _version_error(saved: Checkpoint) -> CheckpointError:
  return CheckpointError(
    f'the checkpoint {saved.path} was written by another version of covrl'
  )
