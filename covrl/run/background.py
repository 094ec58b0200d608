# SPDX-License-Identifier: Apache-2.0
"""Calls at intervals while a run's main thread is busy."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeated_in_thread(
  function: Callable[[], bool], *, interval: float, name: str
) -> Iterator[None]:
  """Calls a function in a daemon thread, until it returns true or the context ends.

  Args:
    function: the function, which must not raise.
    interval: seconds before each call.
    name: name of the thread.
  """
  ended = threading.Event()

  def repeat() -> None:
    while not ended.wait(interval):
      if function():
        return

  threading.Thread(target=repeat, name=name, daemon=True).start()
  try:
    yield
  finally:
    ended.set()
