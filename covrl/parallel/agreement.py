# SPDX-License-Identifier: Apache-2.0
"""Agreement of all processes of a run, without using devices."""

from __future__ import annotations

from typing import Any

from covrl.parallel import distributed


def value_of_process_0(name: str, value: bool, *, timeout: int = 600) -> bool:
  """Returns the value of process 0 on all processes.

  Devices are not used, since they may be busy.

  Args:
    name: identifier of the value; not to be used twice.
    value: the value of this process.
    timeout: seconds until the other processes raise.
  """
  if distributed.process_count() == 1:
    return value
  from orbax.checkpoint import multihost

  client: Any = multihost.get_jax_distributed_client()
  if distributed.is_first():
    client.key_value_set(name, str(value))
  return client.blocking_key_value_get(name, timeout * 1000) == str(True)


def first_text(text: str | None) -> str | None:
  """Returns the first text that any process has, the same on all processes."""
  if distributed.process_count() == 1:
    return text
  return next(filter(None, distributed.gather_objects(text)), None)


def peers_arrive(name: str, *, timeout: int = 30) -> bool:
  """Waits a limited time for all other processes to call it, too.

  Processes that refuse the same input do so at different times. Without waiting,
  the slower ones would report the loss of the first in place of the reason.

  Args:
    name: identifier of the point; not to be used twice.
    timeout: seconds to wait.

  Returns:
    Whether all processes have called it.
  """
  try:
    distributed.barrier(name, timeout=timeout)
  except Exception:
    # Errors of JAX's barriers have no type of their own.
    return False
  return True
