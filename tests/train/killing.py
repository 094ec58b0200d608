# SPDX-License-Identifier: Apache-2.0
"""Kills the process between the updates of a critic or reward model and the policy."""

import os
import signal
from typing import Any
from unittest import mock

from covrl.train.compiled import CompiledPrograms

# The step at which the process is killed; recipes of tests read it.
KILL_AT = 'TOY_KILL_AT'


def kill_before_policy_update_if_requested() -> None:
  """Makes the process kill itself at step `KILL_AT` of the environment, if set.

  The network beside the policy is updated then, and the policy is not.
  """
  if KILL_AT not in os.environ:
    return
  step, update = int(os.environ[KILL_AT]), CompiledPrograms._update_policy

  def kill(self: Any, state: Any, *args: Any) -> Any:
    if int(state.step) == step:
      os.kill(os.getpid(), signal.SIGKILL)
    return update(self, state, *args)

  mock.patch.object(CompiledPrograms, '_update_policy', kill).start()
