# SPDX-License-Identifier: Apache-2.0
"""Decisions of process 0 that all processes follow, exchanged without devices."""

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
