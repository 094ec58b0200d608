# SPDX-License-Identifier: Apache-2.0
"""Has every process of several keep on disk what it compiled.

JAX lets only the first process write, and on CPU no other process can read what
that one wrote: each test would compile everything again.
"""

from types import SimpleNamespace
from typing import Any

from jax._src import compiler, distributed


class _AsIfFirst:
  """What JAX knows of its processes, but for which one this is."""

  process_id = 0

  def __getattr__(self, name: str) -> Any:
    return getattr(distributed.global_state, name)


def every_process_writes() -> None:
  """From now on."""
  seen: Any = SimpleNamespace(global_state=_AsIfFirst())
  compiler.__dict__['distributed'] = seen
