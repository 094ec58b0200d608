# SPDX-License-Identifier: Apache-2.0
"""A run, from a config file to its report, readable from top to bottom."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax
from jax.sharding import Mesh

from covrl import sharding
from covrl.config import ConfigError, Recipe
from covrl.data import StreamState
from covrl.models import Policy
from covrl.report import write_report
from covrl.rewards import Scoring
from covrl.rollout import SamplingEngine
from covrl.train import advice
from covrl.train.beginning import base_params, first_params, policy_of
from covrl.train.checkpoint import Checkpoint, CheckpointStore, as_host
from covrl.train.checks import check_references
from covrl.train.collector import Collector
from covrl.train.evaluate import Evaluator
from covrl.train.iteration import (
  EVALUATE_STREAM,
  INIT_STREAM,
  ROLLOUT_STREAM,
  TRAIN_STREAM,
  Iteration,
)
from covrl.train.layout import check_mesh, rollout_mesh
from covrl.train.programs import Algorithm, Programs, without_base
from covrl.train.progress import Progress
from covrl.train.run_directory import RunDirectory
from covrl.train.samples import kept_samples
from covrl.train.task import Task
from covrl.train.warm_start import lender, warm_start
from covrl.train.writer import MetricsWriter
from covrl.types import TrainState


def train(recipe: Recipe, workdir: str) -> None:
  """Runs a recipe in a directory, from its latest checkpoint if it has one.

  Args:
    recipe: a config file with overrides applied.
    workdir: the run's directory; made if absent, resumed if it is this
      recipe's, refused if it is another's.

  Raises:
    ConfigError: if the directory is not this recipe's to use.
    CheckpointError: if its checkpoint is damaged or of another program.
  """
  directory = RunDirectory(pathlib.Path(workdir))
  with directory.locked(), Progress() as progress:
    directory.check(recipe)
    store = CheckpointStore(
      directory.checkpoints, recipe.config.checkpoint.keep
    )
    saved = store.latest()
    iterations = recipe.config.train.iterations
    if saved is not None and saved.notes['iteration'] >= iterations:
      progress.note(
        f'{workdir} is finished: {saved.notes["iteration"]} of {iterations} '
        'iterations; raise train.iterations to go on'
      )
      return
    run = _Run(recipe, directory, store, progress, saved)
    try:
      run.train()
    finally:
      run.close()
      write_report(directory.path)
    progress.note(f'finished; see {directory.path / "report.html"}')


@dataclasses.dataclass
class _Place:
  """Where a run stands: all that a checkpoint must say beside the arrays."""

  iteration: int = 0
  update: int = 0
  evaluated: int = -1
  entropy: float | None = None
  draws: StreamState | None = None


class _Run:
  """The objects of a run, and its stages."""

  def __init__(
    self,
    recipe: Recipe,
    directory: RunDirectory,
    store: CheckpointStore,
    progress: Progress,
    saved: Checkpoint | None,
  ) -> None:
    config, module = recipe.config, recipe.module
    self.config = config
    self.directory = directory
    self.store = store
    self.progress = progress
    self.saved = saved
    progress.note('setting up')
    self.mesh: Mesh = sharding.make_mesh(
      dataclasses.asdict(config.mesh), jax.devices()
    )
    self.task: Task = module.make_task(config)
    for note in self.task.notes:
      progress.note(note)
    if len(self.task.train) == 0:
      raise ConfigError(
        'training needs problems, the task has none; data.train names the'
        ' files of a task of text'
      )
    self.policy: Policy = policy_of(recipe, self.task)
    check_mesh(config, self.policy.config, self.mesh)
    self.warm_start_tx = module.make_warm_start_tx(config)
    algorithm = Algorithm(
      loss=module.make_loss(config),
      token_tx=module.make_token_tx(config),
      tx=module.make_tx(config),
      advantages=module.make_advantages(config),
    )
    self.programs = Programs(self.policy, algorithm, config, self.mesh)
    # A run that has a checkpoint needs no warm start, its own or another's,
    # unless that is what its adapters stand beside.
    needless = saved is not None and self.policy.config.lora is None
    self.lent = None if needless else lender(config, self.task)
    for warning in advice.warnings(config, algorithm):
      progress.note(f'warning: {warning}')
    self.engine = SamplingEngine(
      self.policy,
      rollout_mesh(self.mesh, config.rollout.tensor),
      end_ids=self.task.tokenizer.end_ids,
      pad_id=self.task.tokenizer.pad_id,
      max_response_length=config.rollout.max_response_length,
    )
    root = jax.random.key(config.seed)
    self.keys = {
      stream: jax.random.fold_in(root, stream)
      for stream in (ROLLOUT_STREAM, TRAIN_STREAM, EVALUATE_STREAM, INIT_STREAM)
    }
    self.scoring = Scoring(
      self.task.rewards,
      sources=self.task.sources,
      workers=config.rewards.workers,
      timeout=config.rewards.timeout,
    )
    for note in check_references(
      self.task, self.scoring, programs=config.data.checked_programs
    ):
      progress.note(f'warning: {note}')
    self.collector = Collector(
      self.task,
      self.engine,
      self.scoring,
      self.programs,
      config,
      self.keys[ROLLOUT_STREAM],
    )
    self.programs.check(self.collector.blank().batch)
    self.collector.check()
    suites = self.task.evaluation(config.evaluate)
    self.evaluator = (
      None
      if not suites
      else Evaluator(
        self.engine,
        self.scoring,
        self.task.tokenizer,
        suites,
        max_prompt_length=config.rollout.max_prompt_length,
        prompts_at_once=config.rollout.prompts_per_iteration,
        group_size=config.rollout.responses_per_prompt,
        key=self.keys[EVALUATE_STREAM],
        reader=self.task.reader,
      )
    )
    # Whatever is wrong is known by now: another attempt may use the directory.
    directory.claim(recipe)
    if self.task.notes:
      directory.write('task.json', {'notes': list(self.task.notes)})
    self.warm_starts = CheckpointStore(directory.path / 'warm_start', keep=1)
    begun = saved or self.warm_starts.latest()
    self.writer = MetricsWriter(
      directory.metrics,
      config.logging,
      name=recipe.name,
      keep=begun.notes['metrics_size'] if begun else 0,
    )
    (directory.path / 'tokenizer.model').write_bytes(
      self.task.tokenizer.to_bytes()
    )

  def train(self) -> None:
    """Warm start, then iterations of rollout and updates."""
    place, state, unfinished = self._begin()
    self._compile(state)
    iterations = self.config.train.iterations
    self.progress.stage('reinforcement learning', iterations)
    while place.iteration < iterations:
      if place.update == 0:
        self._between_iterations(place, state)
      state = self._with_reference(place, state)
      started = time.monotonic()
      iteration = unfinished or self._rollout(place, state)
      unfinished = None
      state = self._updates(place, state, iteration, started)
      place.iteration, place.update = place.iteration + 1, 0
    self._between_iterations(place, state)

  def close(self) -> None:
    """Stops worker processes and threads; flushes files."""
    self.scoring.close()
    self.collector.close()
    self.writer.close()

  def _begin(self) -> tuple[_Place, TrainState, Iteration | None]:
    """A warm-started policy, or what the checkpoint holds."""
    if self.saved is None:
      params = first_params(
        self.config,
        self.policy,
        self.mesh,
        self.keys[INIT_STREAM],
        self._warm_start(),
      )
      return _Place(), self.programs.init_state(params), None
    notes = self.saved.notes
    place = _Place(**notes['place'])
    if place.draws is not None:
      self.collector.place = place.draws
    like: dict[str, Any] = {
      'state': without_base(self.programs.abstract_state())
    }
    if place.update > 0:
      like['iteration'] = self.collector.blank().arrays()
    arrays = self.saved.restore(like)
    state = arrays['state']
    if self.policy.config.lora is not None:
      frozen = state.frozen | {'base': self._base()}
      state = dataclasses.replace(state, frozen=frozen)
    self.progress.note(
      f'resuming at iteration {place.iteration}, update {place.update}'
    )
    if place.update == 0:
      return place, state, None
    pending = as_host(arrays['iteration'])
    iteration = Iteration(**pending, metrics=notes['rollout_metrics'])
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

  def _between_iterations(self, place: _Place, state: TrainState) -> None:
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
      write_report(self.directory.path)

  def _evaluate(self, place: _Place, state: TrainState) -> None:
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

  def _with_reference(self, place: _Place, state: TrainState) -> TrainState:
    """The state, its reference policy replaced where it is time to."""
    every = self.config.train.reset_reference_every
    begins = place.update == 0 and place.iteration > 0
    if not (every and begins and place.iteration % every == 0):
      return state
    return self.programs.reset_reference(state)

  def _rollout(self, place: _Place, state: TrainState) -> Iteration:
    """An iteration's training data, some of it kept for the report."""
    iteration = self.collector.collect(place.iteration, state)
    if place.iteration % self.config.logging.samples_every == 0:
      self._keep_samples(place, state, iteration)
    return iteration

  def _updates(
    self,
    place: _Place,
    state: TrainState,
    iteration: Iteration,
    started: float,
  ) -> TrainState:
    """The optimiser updates of an iteration."""
    config = self.config
    while place.update < config.updates_per_iteration:
      rows = iteration.rows(place.update, config.train.sequences_per_update)
      measured = self._is_measured(place)
      before = self.programs.copy(state.trainable) if measured else None
      began = time.monotonic()
      state, readings = self.programs.update(
        state, rows, place.update == 0, self.keys[TRAIN_STREAM]
      )
      values = {k: float(v) for k, v in jax.device_get(readings).items()}
      now = time.monotonic()
      if measured:
        change = self.programs.entropy_change(before, state, rows)
        values |= {k: float(v) for k, v in jax.device_get(change).items()}
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

  def _is_measured(self, place: _Place) -> bool:
    """Whether the next update's effect on the entropy is measured."""
    every = self.config.logging.entropy_change_every
    return every > 0 and self._position(place) % every == 0

  def _position(self, place: _Place) -> int:
    """Updates made so far."""
    return place.iteration * self.config.updates_per_iteration + place.update

  def _save(
    self, place: _Place, state: TrainState, iteration: Iteration | None
  ) -> None:
    """Writes a checkpoint of everything."""
    position = self._position(place)
    if self.saved is not None and self.saved.position == position:
      # Replacing what was resumed from would risk the only checkpoint.
      return
    place.draws = self.collector.place
    arrays: dict[str, Any] = {'state': without_base(state)}
    notes = {
      'iteration': place.iteration,
      'place': dataclasses.asdict(place),
      'metrics_size': self.writer.size,
    }
    if iteration is not None:
      arrays['iteration'] = iteration.arrays()
      notes['rollout_metrics'] = iteration.metrics
    self.store.save(position, arrays, notes)

  def _keep_samples(
    self, place: _Place, state: TrainState, iteration: Iteration
  ) -> None:
    rows = iteration.rows(0, self.config.train.sequences_per_update)
    selection, covariance = jax.device_get(
      self.programs.select(state, rows, self.keys[TRAIN_STREAM])
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
