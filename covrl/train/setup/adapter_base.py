# SPDX-License-Identifier: Apache-2.0
"""The base of a run's adapters on the disk.

Checkpoints of adapters do not have it, so that they cannot be used without it.
"""

from __future__ import annotations

from collections.abc import Callable

from covrl.config import Config
from covrl.parallel import agreement
from covrl.run.checkpoint import Checkpoint, CheckpointStore
from covrl.run.checkpoint_files import has_all_files
from covrl.train.setup.build import Components
from covrl.train.setup.inputs import (
  pretrained_fingerprint,
  warm_start_fingerprint,
)
from covrl.types import TrainState


class AdapterBase:
  """The files of the base of a run's adapters, which other programs may remove.

  Args:
    run: the objects of the run.
    config: the run's configuration.
    warm_starts: the store of the run's warm start, which is finished.
    warn: receives a sentence about files that were removed or changed.
  """

  def __init__(
    self,
    run: Components,
    config: Config,
    warm_starts: CheckpointStore,
    warn: Callable[[str], object],
  ) -> None:
    self._policy, self._config = run.policy, config
    self._warm_starts, self._warn = warm_starts, warn
    self._own: Checkpoint | None = None
    self._shared: Checkpoint | None = None
    self._pretrained: dict[str, str] = {}
    self._is_lost, self._checks = False, 0
    if run.policy.config.lora is None:
      return
    if run.shared_warm_start is not None:
      self._shared = run.shared_warm_start
    elif config.warm_start.steps:
      self._own = warm_starts.latest()
    else:
      self._pretrained = pretrained_fingerprint(config)

  def fingerprint(self) -> dict[str, str]:
    """Returns the fingerprint of the run's own warm start by its name, if it has one."""
    if self._shared is not None:
      return {}
    return warm_start_fingerprint(self._config, self._policy, self._warm_starts)

  def keep(self, state: TrainState) -> dict[str, str]:
    """Writes the run's own warm start again if files of it were removed or cut.

    If the base is that of another run or a pretrained model, a warning is given.

    Args:
      state: the training state, which has the base.

    Returns:
      The fingerprint of the warm start by its name if it was written again.

    Raises:
      StorageError: it cannot be written.
    """
    if self._own is not None:
      own, name = self._own, f'{self._own.path}/{self._checks}/whole'
      self._checks += 1
      # Process 0 decides, since all processes write together.
      if agreement.value_of_first(name, _is_intact(own)):
        return {}
      self._warm_starts.save(own.position, state.frozen['base'], own.metadata)
      self._own = self._warm_starts.latest()
      self._warn(
        f'{own.path} was removed or changed while the run used it; it is written'
        ' again'
      )
      return self.fingerprint()
    if not self._is_lost and (place := self._lost()):
      self._is_lost = True
      self._warn(
        f'{place}, the base of the adapters, was removed or changed while the run'
        ' used it: the run can be opened and resumed with the former base only'
      )
    return {}

  def _lost(self) -> str:
    """Returns the path of a base that is not the run's own and has changed, if any."""
    if self._shared is not None and not _is_intact(self._shared):
      return str(self._shared.path)
    if self._pretrained and not self._has_pretrained():
      return self._config.pretrained
    return ''

  def _has_pretrained(self) -> bool:
    try:
      return pretrained_fingerprint(self._config) == self._pretrained
    except (OSError, ValueError):
      return False


def _is_intact(saved: Checkpoint) -> bool:
  return has_all_files(saved.path, saved.files)
