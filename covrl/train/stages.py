# SPDX-License-Identifier: Apache-2.0
"""Stages of an iteration that the training loop runs one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from covrl.config import Config
from covrl.evaluation.evaluator import EvaluationError
from covrl.parallel import distributed
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.run.progress import Progress
from covrl.train.forward import with_old_stats
from covrl.train.logged_samples import sample_records
from covrl.train.metrics import without_diagnostics
from covrl.train.rollout_batch import RolloutBatch, merge_metrics
from covrl.train.setup.build import Components
from covrl.train.setup.resume import RunPosition
from covrl.types import TrainState


def evaluate(
  run: Components,
  position: RunPosition,
  state: TrainState,
  directory: RunDirectory,
  writer: MetricsWriter,
  progress: Progress,
  warn: Callable[[str], object],
) -> None:
  """Evaluates the policy, if problems are held out; writes and shows the results.

  Warns of unscored responses. If there are too many of them, the evaluation has no
  result, and the run continues.
  """
  if run.evaluator is None:
    return
  description = f'the evaluation before iteration {position.iteration}'
  try:
    evaluation = run.evaluator.evaluate(
      run.programs.params(state), progress.counter('evaluating')
    )
  except EvaluationError as error:
    warn(f'{description} has no result: {error}')
    return
  if evaluation.unscored:
    warn(
      f'{evaluation.unscored} responses of {description} could not be scored and are'
      ' left out'
    )
  if text := evaluation.grade_warning():
    warn(text)
  writer.write(
    step=int(state.step),
    iteration=position.iteration,
    phase='eval',
    **evaluation.summary(),
  )
  directory.write_jsonl(
    f'evaluation/iteration_{position.iteration:06d}.jsonl', evaluation.lines()
  )
  metrics = ', '.join(
    f'{name} {estimate.value:.3f}'
    for name, estimate in evaluation.estimates().items()
    if '/' not in name or name.endswith('/accuracy')
  )
  progress.note(f'iteration {position.iteration}: {metrics}')


def update_reference(
  run: Components, config: Config, position: RunPosition, state: TrainState
) -> TrainState:
  """Replaces the reference policy by the current one at its interval."""
  every = config.train.reset_reference_every
  if position.iteration > 0 and is_due(position.iteration, every):
    return run.programs.reset_reference(state)
  return state


def log_samples(
  run: Components,
  config: Config,
  position: RunPosition,
  state: TrainState,
  rollout: RolloutBatch,
  directory: RunDirectory,
) -> None:
  """Writes some responses of the iteration's first update at intervals."""
  logging, size = config.logging, config.train.sequences_per_update
  if not logging.samples or position.iteration % logging.samples_every:
    return
  rows = rollout.update_rows(0, size)
  if not config.scores_rollouts:
    policy_stats = distributed.run_on_devices(
      run.programs.score, run.programs.params(state), rows
    )
    rows = with_old_stats(rows, policy_stats)
  selection, covariance = distributed.run_on_devices(
    run.programs.explain_selection, state, rows, run.train_key
  )
  records = sample_records(
    rows,
    rollout.rewards[rollout.order[:size]],
    selection.mask,
    covariance,
    run.task.tokenizer,
    count=logging.samples,
  )
  directory.write_json(
    f'rollouts/iteration_{position.iteration:06d}.json',
    {'iteration': position.iteration, 'samples': records},
  )


def update(
  run: Components,
  config: Config,
  position: RunPosition,
  state: TrainState,
  rollout: RolloutBatch,
) -> tuple[TrainState, dict[str, float]]:
  """Makes one update; returns the new state and the update's metrics."""
  rows = rollout.update_rows(position.update, config.train.sequences_per_update)
  measures_change = is_due(
    position.updates_made(config), config.logging.entropy_change_every
  )
  before = run.programs.copy(state.trainable) if measures_change else None
  started = time.monotonic()
  state, device_metrics = run.programs.update(
    state, rows, position.update == 0, run.train_key
  )
  metrics = _to_floats(device_metrics)
  if not is_due(
    position.updates_made(config), config.logging.diagnostics_every
  ):
    metrics = without_diagnostics(metrics)
  seconds = time.monotonic() - started
  if measures_change:
    change = run.programs.entropy_change(before, state, rows)
    metrics |= _to_floats(change)
  if position.last_entropy is not None:
    metrics['entropy_drift'] = metrics['entropy'] - position.last_entropy
  timing = {
    'seconds': seconds,
    'time/update': seconds,
    'tokens_per_second': metrics['tokens'] / seconds,
  }
  return state, merge_metrics(
    metrics, rollout.metrics_of(position.update), timing
  )


def _to_floats(metrics: dict[str, Any]) -> dict[str, float]:
  fetched = distributed.fetch(metrics)
  return {name: float(value) for name, value in fetched.items()}


def is_due(count: int, every: int) -> bool:
  """Returns whether `count` is a multiple of `every`; never for 0."""
  return every > 0 and count % every == 0
