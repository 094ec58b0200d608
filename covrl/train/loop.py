# SPDX-License-Identifier: Apache-2.0
"""The training loop."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import jax
from etils import epath

from covrl import storage
from covrl.config import ConfigError, Recipe, flatten, recorded_reads
from covrl.config.generators import seed_generators
from covrl.parallel import distributed
from covrl.run import maintenance
from covrl.run.checkpoint import CheckpointStore
from covrl.run.consistency import check_processes, check_versions
from covrl.run.directory import RECIPE, RunDirectory
from covrl.run.metrics_writer import MetricsWriter, check_wandb
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.profiler import Profiler
from covrl.run.progress import WARNING, Progress
from covrl.run.set_up_warnings import SetUpWarnings
from covrl.run.shared_workdir import check_shared
from covrl.run.watchdog import Watchdog
from covrl.storage import StorageError
from covrl.storage.append_log import describe_log_damage
from covrl.train import stages
from covrl.train.health import divergence_noted
from covrl.train.rollout_batch import RolloutBatch
from covrl.train.setup.adapter_base_files import AdapterBaseFiles
from covrl.train.setup.build import build
from covrl.train.setup.code import check_code
from covrl.train.setup.function_fingerprints import check_functions
from covrl.train.setup.inputs import (
  check_inputs,
  check_recipe,
  input_fingerprints,
)
from covrl.train.setup.resume import (
  describe_end,
  extension_warning,
  is_finished,
  save_run,
  saved_metrics,
  schedule_warning,
  start_or_resume,
)
from covrl.train.sft import warm_start_store
from covrl.train.warnings.settings import unused_override_warnings
from covrl.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
  """Options that do not change the numbers of a run.

  Attributes:
    stall_after: seconds without progress after which the run exits; 0 for
      never.
    profile_steps: `FIRST:LAST`, the updates to trace; empty for none.
    exits_after_run: whether the process exits after the run; a run that a signal
      has stopped then ignores further signals.
    resume: behaviour if the newest checkpoint is damaged: 'fallback' resumes
      from the newest undamaged one, 'strict' raises an error.
  """

  stall_after: float = 3600.0
  profile_steps: str = ''
  exits_after_run: bool = False
  resume: Literal['fallback', 'strict'] = 'fallback'

  def __post_init__(self) -> None:
    # Timers take no more than some centuries.
    if not 0 <= self.stall_after <= 1e9:
      raise ValueError(
        'stall_after must be a number of seconds up to 1e9, 0 for never, got '
        f'{self.stall_after:g}'
      )


def train(
  recipe: Recipe,
  workdir: str,
  options: TrainOptions | None = None,
  write_report: Callable[[epath.Path], object] | None = None,
) -> None:
  """Runs a recipe in a directory, from its latest checkpoint if it has one.

  Args:
    recipe: the recipe, with overrides applied.
    workdir: the run directory; created if absent, resumed if it holds a run of
      this recipe, refused if it holds anything else.
    options: watchdog and profiler.
    write_report: called with the run directory after every evaluation and at
      the end of the run, also after an error; by process 0 only.

  Raises:
    ConfigError: the recipe is invalid, the directory holds something else, or
      the processes of the run differ.
    CheckpointError: no checkpoint is whole, the newest one is damaged and
      `options.resume` is strict, or it was written by another version.
    StorageError: something could not be written.
    DivergedError: parameters are not finite, or too many updates in a row were
      skipped because they would not be.
    Stopped: a signal has stopped the run; it is saved.
  """
  config, options = recipe.config, options or TrainOptions()
  check_processes(recipe, workdir)
  # Functions of a recipe may change the working directory.
  workdir = str(storage.absolute(storage.as_path(workdir)))
  directory = RunDirectory(workdir, writes=distributed.is_first())
  store = CheckpointStore(
    directory.checkpoints, config.checkpoint.keep, directory.check_files
  )
  stop, watchdog = StopSignal(), Watchdog(options.stall_after)
  with (
    watchdog,
    stop.handle_signals(exits_after_run=options.exits_after_run),
    maintenance.watch_events(stop.request),
    distributed.polling(stop.poll, on_progress=watchdog.beat),
    directory.locked(),
    Progress(enabled=directory.writes, on_progress=watchdog.beat) as progress,
    _note_if_stopped(progress, directory, store),
    contextlib.ExitStack() as on_exit,
  ):
    check_shared(directory.path)
    # Build. Nothing is written before all objects are built and checked.
    directory.check(recipe)

    set_up_warnings = SetUpWarnings(progress, directory)
    warn = set_up_warnings.warn
    is_strict = options.resume == 'strict'
    saved = store.newest_undamaged(strict=is_strict, warn=warn)
    if saved is None:
      directory.refuse_restart()
    iterations = config.train.iterations
    if saved is not None and is_finished(saved, config):
      check_recipe(saved, recipe.identity)
      # With the number of iterations that the run has finished.
      directory.write_recipe(recipe, warn)
      directory.check_records(saved.metadata, warn)
      log_position = saved.metadata['metrics']['log']
      if directory.writes and (
        damage := describe_log_damage(directory.metrics, log_position)
      ):
        warn(f'{directory.metrics} {damage}')
      # The run may have ended before its last report was written.
      if write_report is not None and directory.writes:
        write_report(directory.path)
      progress.note(f'{workdir} {describe_end(saved, config)}')
      return
    check_wandb(config.logging)
    profiler = Profiler(options.profile_steps, _trace_directory(directory))
    progress.stage('setting up')
    config_before = flatten(config)
    seed_generators(config.seed)
    with recorded_reads(config) as fields_read:
      run = build(recipe, saved, set_up_warnings.note)
    _refuse_changes(config_before, flatten(config))
    for text in unused_override_warnings(
      recipe, fields_read, run.task, run.policy.config
    ):
      set_up_warnings.note(f'{WARNING}{text}')
    for resource in (run.collector, run.scoring, profiler):
      on_exit.callback(resource.close)
    stop.poll()
    warm_starts = warm_start_store(directory)
    resumed_from = saved or warm_starts.newest_undamaged(
      strict=is_strict, warn=warn
    )
    inputs = input_fingerprints(
      config,
      run.task,
      run.policy,
      run.shared_warm_start,
      run.programs.networks.models,
    )
    inputs[RECIPE] = recipe.identity
    check_inputs(config, inputs, resumed_from, warn)
    check_versions(resumed_from and resumed_from.metadata, warn, config)
    check_code(run.code_fingerprints, resumed_from, warn)
    check_functions(run.function_fingerprints, resumed_from, warn)
    inputs |= {**run.code_fingerprints, **run.function_fingerprints}
    directory.write_recipe(recipe, warn)
    if resumed_from is not None:
      directory.check_records(resumed_from.metadata, warn)
    for warning in (schedule_warning(config), extension_warning(config, saved)):
      if warning:
        warn(warning)
    set_up_warnings.publish()
    if run.task.notes or run.task.description:
      description = {
        'description': run.task.description,
        'notes': list(run.task.notes),
      }
      directory.write_json('task.json', description)
    directory.write_bytes('tokenizer.model', run.task.tokenizer.to_bytes())
    writer = MetricsWriter(
      directory.metrics,
      config.logging,
      name=recipe.name,
      saved=saved_metrics(resumed_from),
      warn=warn,
      enabled=directory.writes,
      before_write=directory.check_lock,
    )

    def report() -> None:
      if write_report is not None and directory.writes:
        directory.check_lock()
        writer.flush()
        write_report(directory.path)

    on_exit.callback(report)
    on_exit.callback(writer.close)
    on_exit.enter_context(divergence_noted(directory.add_notice))

    # Resume or warm start.
    metadata = {'inputs': inputs, **directory.records}
    position, state, rollout = start_or_resume(
      run, config, saved, warm_starts, writer, progress, warn, stop, metadata
    )
    adapter_base_files = AdapterBaseFiles(run, config, warm_starts, warn)
    inputs |= adapter_base_files.fingerprint()

    def publish_updates() -> None:
      updates = config.warm_start.steps + position.updates_made(config)
      stop.set_finished_updates(updates)

    publish_updates()
    stop.poll()

    def save(state: TrainState, rollout: RolloutBatch | None) -> None:
      collector_state = run.collector.state
      position.prompts = collector_state.prompts
      inputs.update(adapter_base_files.restore_if_lost(state))
      save_run(
        store,
        config,
        position,
        state,
        rollout,
        collector_state,
        writer.sync(),
        inputs,
        directory.records,
      )

    # Compile all programs, so that none is compiled later.
    progress.stage('compiling')
    seed_generators(config.seed)
    run.compile(state)
    stop.poll()

    progress.stage('reinforcement learning', iterations)
    collector_state = run.collector.state
    try:
      while True:
        rollout_seconds = 0.0
        if position.update == 0:
          # Save, evaluate, report: a failing evaluation loses no update.
          collector_state = run.collector.state
          is_end = position.iteration >= iterations
          is_evaluation_due = is_end or stages.is_due(
            position.iteration, config.evaluate.every
          )
          needs_evaluation = (
            is_evaluation_due and position.evaluated != position.iteration
          )
          if (
            is_end
            or stages.is_due(position.iteration, config.checkpoint.every)
            or (needs_evaluation and position.iteration > 0)
          ):
            save(state, None)
          if needs_evaluation:
            stages.evaluate(
              run, position, state, directory, writer, progress, warn
            )
            position.evaluated = position.iteration
            if store.position == position.updates_made(config):
              save(state, None)
          if is_end:
            directory.check_records(directory.records, warn)
            break
          if is_evaluation_due:
            report()

          # Roll out.
          started = time.monotonic()
          state = stages.update_reference(run, config, position, state)
          profiler.before_step(position.updates_made(config))
          rollout = run.collector.collect(position.iteration, state)
          rollout_seconds = time.monotonic() - started

        # Update.
        assert rollout is not None
        stop.begin_update()
        if position.update == 0:
          started = time.monotonic()
          state, rollout = run.programs.assign_credit(state, rollout)
          stages.log_samples(run, config, position, state, rollout, directory)
          rollout_seconds += time.monotonic() - started
        profiler.before_step(position.updates_made(config))
        state, metrics = stages.update(run, config, position, state, rollout)
        metrics['seconds'] += rollout_seconds
        position.update += 1
        if math.isfinite(metrics['entropy']):
          position.last_entropy = metrics['entropy']
        publish_updates()
        profiler.after_step(position.updates_made(config) - 1)
        writer.write(
          step=int(state.step),
          iteration=position.iteration,
          phase='train',
          **metrics,
        )
        position.health.count(
          metrics,
          f'update {position.update} of iteration {position.iteration}',
          progress.warn,
        )
        metrics |= position.health.displayed_counts()
        progress.update(position.iteration + 1, **metrics)
        position.health.check(
          config.train.max_skipped_updates,
          is_end=position.updates_made(config) >= config.total_updates,
        )
        if position.update == config.updates_per_iteration:
          position.iteration, position.update = position.iteration + 1, 0
          rollout = None
        elif stages.is_due(position.update, config.checkpoint.every_updates):
          save(state, rollout)
    except Stopped:
      if position.update == 0:
        # An abandoned rollout is drawn again.
        rollout, run.collector.state = None, collector_state
      save(state, rollout)
      raise
    if text := profiler.warning():
      progress.warn(text)
    progress.finish(f'finished; see {directory.path}')


@contextlib.contextmanager
def _note_if_stopped(
  progress: Progress, directory: RunDirectory, store: CheckpointStore
) -> Iterator[None]:
  """Notes the end of a run that a signal or a failed write has stopped."""
  try:
    yield
  except StorageError:
    if store.position is not None:
      progress.note(
        f'the checkpoint of update {store.position} is whole; start the run'
        ' again when it can be written'
      )
    raise
  except Stopped as stopped:
    stopped.is_resumable = directory.has_checkpoint()
    progress.note(
      'stopped: the run is saved; start it again'
      if stopped.is_resumable
      else 'stopped before the first checkpoint: nothing is saved'
    )
    raise


def _refuse_changes(
  before: Mapping[str, object], after: Mapping[str, object]
) -> None:
  """Refuses functions of a recipe that change the configuration.

  Such a run could not be resumed: its directory was checked before the change, and
  objects built until then have the values from before.
  """
  for name, value in before.items():
    if repr(after[name]) != repr(value):
      raise ConfigError(
        'functions of a recipe must not change the configuration, got'
        f' {name} = {after[name]!r}, which was {value!r}'
      )


def _trace_directory(directory: RunDirectory) -> epath.Path:
  """Returns this process's trace directory.

  The profiler names its files by host, and hosts may have the same name.
  """
  if distributed.process_count() == 1:
    return directory.path / 'profile'
  return directory.path / 'profile' / f'process_{jax.process_index()}'
