# SPDX-License-Identifier: Apache-2.0
"""The files of the base parameters of a run's adapters, and checks that they remain.

The base is a warm start's checkpoint or a pretrained model. Checkpoints of adapters
do not have it, so that they cannot be used without it.
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


class AdapterBaseFiles:
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
    self._own_warm_start: Checkpoint | None = None
    self._shared_warm_start: Checkpoint | None = None
    self._pretrained_fingerprint: dict[str, str] = {}
    self._has_warned, self._num_checks = False, 0
    if run.policy.config.lora is None:
      return
    if run.shared_warm_start is not None:
      self._shared_warm_start = run.shared_warm_start
    elif config.warm_start.steps:
      self._own_warm_start = warm_starts.latest()
    else:
      self._pretrained_fingerprint = pretrained_fingerprint(config)

  def fingerprint(self) -> dict[str, str]:
    """Returns the fingerprint of the run's own warm start by its name, if it has one."""
    if self._shared_warm_start is not None:
      return {}
    return warm_start_fingerprint(self._config, self._policy, self._warm_starts)

  def restore_if_lost(self, state: TrainState) -> dict[str, str]:
    """Writes the run's own warm start again if files of it were removed or cut.

    If the base is that of another run or a pretrained model, a warning is given once.

    Args:
      state: the training state, which has the base.

    Returns:
      The fingerprint of the warm start by its name if it was written again.

    Raises:
      StorageError: it cannot be written.
    """
    if self._own_warm_start is not None:
      saved = self._own_warm_start
      # An identifier of a value of process 0 must not be used twice.
      name = f'{saved.path}/{self._num_checks}/whole'
      self._num_checks += 1
      # Process 0 decides, since all processes write together.
      if agreement.value_of_process_0(name, _is_intact(saved)):
        return {}
      self._warm_starts.save(
        saved.position, state.frozen['base'], saved.metadata
      )
      self._own_warm_start = self._warm_starts.latest()
      self._warn(
        f'{saved.path} was removed or changed while the run used it; it is written'
        ' again'
      )
      return self.fingerprint()
    if not self._has_warned and (path := self._changed_path()):
      self._has_warned = True
      self._warn(
        f'{path}, the base of the adapters, was removed or changed while the run'
        ' used it: the run can be opened and resumed with the former base only'
      )
    return {}

  def _changed_path(self) -> str:
    """Returns the path of a base that is not the run's own and has changed, if any."""
    shared = self._shared_warm_start
    if shared is not None and not _is_intact(shared):
      return str(shared.path)
    if self._pretrained_fingerprint and self._pretrained_has_changed():
      return self._config.pretrained
    return ''

  def _pretrained_has_changed(self) -> bool:
    try:
      fingerprint = pretrained_fingerprint(self._config)
    except (OSError, ValueError):
      return True
    return fingerprint != self._pretrained_fingerprint


def _is_intact(checkpoint: Checkpoint) -> bool:
  return has_all_files(checkpoint.path, checkpoint.files)
