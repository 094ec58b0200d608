# SPDX-License-Identifier: Apache-2.0
"""A run is begun, watched and ended, whatever happens to it."""

from __future__ import annotations

import dataclasses

import jax
from etils import epath

from covrl.config import Recipe
from covrl.parallel import distributed
from covrl.run import maintenance
from covrl.run.checkpoint import CheckpointStore
from covrl.run.consistency import check_agreement
from covrl.run.directory import RunDirectory
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.profiler import Profiler
from covrl.run.progress import Progress
from covrl.run.watchdog import Watchdog
from covrl.train.loop import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
  """How a run is watched; nothing of it changes what is computed.

  Attributes:
    stall_after: seconds without any progress after which the run ends; 0 never.
    profile_steps: `FIRST:LAST`, updates that are traced; empty for none.
  """

  stall_after: float = 3600.0
  profile_steps: str = ''


def train(recipe: Recipe, workdir: str, watch: Watch | None = None) -> None:
  """Runs a recipe in a directory, from its latest checkpoint if it has one.

  Args:
    recipe: a config file with overrides applied.
    workdir: the run's directory; made if absent, resumed if it is this
      recipe's, refused if it is another's.
    watch: how it is watched.

  Raises:
    ConfigError: if the directory is not this recipe's to use, or the run's
      processes differ.
    CheckpointError: if its checkpoint is damaged or of another program.
    Stopped: if the run was told to stop; it has saved itself.
  """
  watch = watch or Watch()
  check_agreement(recipe, workdir)
  first = distributed.is_first()
  directory = RunDirectory(workdir, writes=first)
  stop, watchdog = StopSignal(), Watchdog(watch.stall_after)
  with (
    watchdog,
    stop.listening(),
    maintenance.watched(stop.ask),
    distributed.polled(stop.poll, moved=watchdog.beat),
    directory.locked(),
    Progress(enabled=first, moved=watchdog.beat) as progress,
  ):
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
    profiler = Profiler(watch.profile_steps, _trace_directory(directory))
    run = Run(recipe, directory, store, progress, saved, stop, profiler)
    try:
      run.train()
    except Stopped:
      saved_as = 'saved' if run.saved_position >= 0 else 'before its first save'
      progress.note(f'told to stop: the run is {saved_as}; start it again')
      raise
    finally:
      run.close()
      run.report()
    progress.note(f'finished; see {directory.path / "report.html"}')


def _trace_directory(directory: RunDirectory) -> epath.Path:
  """Where this process's traces go: machines may have the same name."""
  if distributed.count() == 1:
    return directory.path / 'profile'
  return directory.path / 'profile' / f'process_{jax.process_index()}'
