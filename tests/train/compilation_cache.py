# SPDX-License-Identifier: Apache-2.0
"""Makes every process of a run write to the compilation cache.

JAX lets only process 0 write, but on CPU other processes cannot read its entries,
so that each test would compile everything again.
"""

from types import SimpleNamespace
from typing import Any

from jax._src import compiler, distributed


class _AsIfFirst:
  """JAX's state of the processes, with this one as process 0."""

  process_id = 0

  def __getattr__(self, name: str) -> Any:
    return getattr(distributed.global_state, name)


def every_process_writes() -> None:
  """Patches JAX's compiler in this process."""
  replacement: Any = SimpleNamespace(global_state=_AsIfFirst())
  compiler.__dict__['distributed'] = replacement
