# SPDX-License-Identifier: Apache-2.0
"""A run's stages, readable from top to bottom; `covrl.train.start` begins it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import jax

from covrl.config import Recipe
from covrl.parallel import distributed
from covrl.report import write_report
from covrl.run.checkpoint import Checkpoint, CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.profiler import Profiler
from covrl.run.progress import Progress
from covrl.train.init import base_params, first_params
from covrl.train.logged_samples import kept_samples
from covrl.train.resume import Place, restore_place, save_place
from covrl.train.rollout_batch import INIT_STREAM, TRAIN_STREAM, Iteration
from covrl.train.setup import set_up
from covrl.train.warm_start import warm_start
from covrl.types import TrainState


class Run:
  """The objects of a run, and its stages."""

  def __init__(
    self,
    recipe: Recipe,
    directory: RunDirectory,
    store: CheckpointStore,
    progress: Progress,
    saved: Checkpoint | None,
    stop: StopSignal,
    profiler: Profiler,
  ) -> None:
    self.config = recipe.config
    self.directory = directory
    self.store = store
    self.progress = progress
    self.saved = saved
    self.stop = stop
    self.profiler = profiler
    self.saved_position = saved.position if saved else -1
    progress.note('setting up')
    setup = set_up(recipe, saved, progress)
    self.mesh, self.task, self.policy = setup.mesh, setup.task, setup.policy
    self.programs, self.collector = setup.programs, setup.collector
    self.scoring, self.evaluator = setup.scoring, setup.evaluator
    self.keys, self.lent = setup.keys, setup.lent
    self.warm_start_tx = setup.warm_start_tx
    # Whatever is wrong is known by now: another attempt may use the directory.
    directory.claim(recipe)
    if self.task.notes:
      directory.write('task.json', {'notes': list(self.task.notes)})
    self.warm_starts = CheckpointStore(directory.path / 'warm_start', keep=1)
    begun = saved or self.warm_starts.latest()
    self.writer = MetricsWriter(
      directory.metrics,
      recipe.config.logging,
      name=recipe.name,
      keep=begun.notes['metrics_size'] if begun else 0,
      enabled=directory.writes,
    )
    directory.write_bytes('tokenizer.model', self.task.tokenizer.to_bytes())

  def train(self) -> None:
    """Warm start, then iterations of rollout and updates."""
    place, state, unfinished = self._begin()
    self.stop.at(self._position(place))
    self._compile(state)
    iterations = self.config.train.iterations
    self.progress.stage('reinforcement learning', iterations)
    while place.iteration < iterations:
      with self._saved_if_stopped(place, state, unfinished):
        if place.update == 0:
          self._between_iterations(place, state)
        state = self._with_reference(place, state)
        started = time.monotonic()
        self.profiler.before(self._position(place))
        iteration = unfinished or self._rollout(place, state)
        if place.update == 0:
          self.stop.before_update()
      unfinished = None
      state = self._updates(place, state, iteration, started)
      place.iteration, place.update = place.iteration + 1, 0
    with self._saved_if_stopped(place, state, None):
      self._between_iterations(place, state)

  def close(self) -> None:
    """Stops worker processes and threads; flushes files."""
    self.scoring.close()
    self.collector.close()
    self.writer.close()
    self.profiler.close()

  def _begin(self) -> tuple[Place, TrainState, Iteration | None]:
    """A warm-started policy, or what the checkpoint holds."""
    if self.saved is None:
      params = first_params(
        self.config,
        self.policy,
        self.mesh,
        self.keys[INIT_STREAM],
        self._warm_start(),
      )
      return Place(), self.programs.init_state(params), None
    place, state, iteration = restore_place(
      self.saved, self.programs, self.collector
    )
    if self.policy.config.lora is not None:
      frozen = state.frozen | {'base': self._base()}
      state = dataclasses.replace(state, frozen=frozen)
    self.progress.note(
      f'resuming at iteration {place.iteration}, update {place.update}'
    )
    return place, state, iteration

  def _base(self) -> Any:
    """Parameters before the warm start, or after one that was made already."""
    return base_params(
      self.config,
      self.policy,
      self.mesh,
      self.keys[INIT_STREAM],
      self.lent or self.warm_starts.latest(),
    )

  def _warm_start(self) -> Any:
    """Parameters after the warm start, if there is one; no adapters yet."""
    config, params = self.config, self._base()
    if self.lent or self.warm_starts.latest():
      self.progress.note('the warm start is finished')
      return params
    if config.warm_start.steps == 0:
      return params
    params = warm_start(
      self.policy.base,
      params,
      self.task,
      self.warm_start_tx,
      config,
      self.mesh,
      self.writer,
      self.progress,
    )
    notes = {'metrics_size': self.writer.size}
    self.warm_starts.save(config.warm_start.steps, params, notes)
    return params

  def _compile(self, state: TrainState) -> None:
    """Compiles all programs, so that nothing is compiled later."""
    self.progress.note('compiling')
    params = self.programs.params(state)
    if self.evaluator:
      self.evaluator.compile(params)
    self.programs.compile(state, self.collector.blank().batch)
    self.collector.compile(params)
    for stream in self.keys.values():
      jax.random.fold_in(stream, 0)

  def _between_iterations(self, place: Place, state: TrainState) -> None:
    """Evaluates and saves, where it is time to."""
    config = self.config
    last = place.iteration >= config.train.iterations
    due = place.iteration % config.evaluate.every == 0 or last
    if due and place.evaluated != place.iteration:
      self._evaluate(place, state)
      place.evaluated = place.iteration
    if place.iteration % config.checkpoint.every == 0 or last:
      self._save(place, state, None)
    if due:
      self.report()

  def report(self) -> None:
    """Rewrites the run's page."""
    if self.directory.writes:
      self.writer.flush()
      write_report(self.directory.path)

  def _evaluate(self, place: Place, state: TrainState) -> None:
    if not self.evaluator:
      return
    evaluation = self.evaluator.run(self.programs.params(state))
    summary = evaluation.summary()
    self.writer.write(
      step=int(state.step),
      iteration=place.iteration,
      phase='eval',
      **summary,
    )
    self.directory.write_lines(
      f'evaluation/iteration_{place.iteration:06d}.jsonl', evaluation.lines()
    )
    figures = ', '.join(
      f'{name} {estimate.value:.3f}'
      for name, estimate in evaluation.estimates().items()
      if '/' not in name or name.endswith('/accuracy')
    )
    self.progress.note(f'iteration {place.iteration}: {figures}')

  def _with_reference(self, place: Place, state: TrainState) -> TrainState:
    """The state, its reference policy replaced where it is time to."""
    every = self.config.train.reset_reference_every
    begins = place.update == 0 and place.iteration > 0
    if not (every and begins and place.iteration % every == 0):
      return state
    return self.programs.reset_reference(state)

  def _rollout(self, place: Place, state: TrainState) -> Iteration:
    """An iteration's training data, some of it kept for the report."""
    iteration = self.collector.collect(place.iteration, state)
    if place.iteration % self.config.logging.samples_every == 0:
      self._keep_samples(place, state, iteration)
    return iteration

  def _updates(
    self,
    place: Place,
    state: TrainState,
    iteration: Iteration,
    started: float,
  ) -> TrainState:
    """The optimiser updates of an iteration."""
    config = self.config
    while place.update < config.updates_per_iteration:
      if place.update > 0 and not self._may_update(place, state, iteration):
        raise Stopped
      self.profiler.before(self._position(place))
      rows = iteration.rows(place.update, config.train.sequences_per_update)
      measured = self._is_measured(place)
      before = self.programs.copy(state.trainable) if measured else None
      began = time.monotonic()
      state, readings = self.programs.update(
        state, rows, place.update == 0, self.keys[TRAIN_STREAM]
      )
      values = _numbers(readings)
      now = time.monotonic()
      if measured:
        values |= _numbers(self.programs.entropy_change(before, state, rows))
      if place.entropy is not None:
        values['entropy_drift'] = values['entropy'] - place.entropy
      place.entropy = values['entropy']
      seconds = (now - started) if place.update == 0 else now - began
      values |= iteration.metrics
      values |= {
        'seconds': seconds,
        'time/update': now - began,
        'tokens_per_second': values['tokens'] / (now - began),
      }
      place.update += 1
      self.stop.at(self._position(place))
      self.profiler.after(self._position(place) - 1)
      step = int(state.step)
      self.writer.write(
        step=step, iteration=place.iteration, phase='train', **values
      )
      self.progress.update(place.iteration + 1, **values)
      every = config.checkpoint.every_updates
      unfinished = place.update < config.updates_per_iteration
      if every and place.update % every == 0 and unfinished:
        self._save(place, state, iteration)
    return state

  def _is_measured(self, place: Place) -> bool:
    """Whether the next update's effect on the entropy is measured."""
    every = self.config.logging.entropy_change_every
    return every > 0 and self._position(place) % every == 0

  def _position(self, place: Place) -> int:
    """Updates made so far."""
    return place.iteration * self.config.updates_per_iteration + place.update

  @contextlib.contextmanager
  def _saved_if_stopped(
    self, place: Place, state: TrainState, unfinished: Iteration | None
  ) -> Iterator[None]:
    """Saves the run as it came in, where it is told to stop within."""
    draws = self.collector.place
    try:
      yield
    except Stopped:
      # What was drawn for a rollout that is given up is drawn again.
      self.collector.place = draws
      self._save(place, state, unfinished)
      raise

  def _may_update(
    self, place: Place, state: TrainState, iteration: Iteration
  ) -> bool:
    """Whether to go on; if not, the unfinished iteration is saved."""
    try:
      self.stop.before_update()
    except Stopped:
      self._save(place, state, iteration)
      return False
    return True

  def _save(
    self, place: Place, state: TrainState, iteration: Iteration | None
  ) -> None:
    """Writes a checkpoint of everything."""
    position = self._position(place)
    if position == self.saved_position:
      # Replacing what is there would risk the only checkpoint.
      return
    place.draws = self.collector.place
    save_place(self.store, position, place, state, iteration, self.writer.size)
    self.saved_position = position

  def _keep_samples(
    self, place: Place, state: TrainState, iteration: Iteration
  ) -> None:
    rows = iteration.rows(0, self.config.train.sequences_per_update)
    selection, covariance = distributed.run(
      self.programs.select, state, rows, self.keys[TRAIN_STREAM]
    )
    name = f'rollouts/iteration_{place.iteration:06d}.json'
    chosen = iteration.order[: len(rows.tokens)]
    samples = kept_samples(
      rows,
      iteration.rewards[chosen],
      selection.mask,
      covariance,
      self.task.tokenizer,
      count=self.config.logging.samples,
    )
    self.directory.write(
      name, {'iteration': place.iteration, 'samples': samples}
    )


def _numbers(readings: dict[str, Any]) -> dict[str, float]:
  return {k: float(v) for k, v in distributed.fetch(readings).items()}
