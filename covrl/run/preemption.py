# SPDX-License-Identifier: Apache-2.0
"""Stops a run on a signal: all processes after the same update, and soon.

A process that receives SIGTERM, SIGINT or a maintenance notice publishes how
many updates it has begun; every other process then publishes its own number.
All of them stop after the largest number, because an update needs all
processes. Rollouts and evaluations change no state, so they are abandoned.
Only the start of an update waits for the other processes' numbers.

`jax.experimental.multihost_utils.reached_preemption_sync_point` is not used: it
stops between updates only, whereas a rollout may take minutes; it reacts to
SIGTERM alone; and it needs several processes.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds between two reads of the other processes' numbers.
_INTERVAL = 0.5
_PREFIX = 'covrl/stop/'


class Stopped(Exception):
  """Raised at a point where the run can stop, after a request to stop."""


class StopSignal:
  """Collects requests to stop and raises `Stopped` where all processes can.

  Args:
    patience: seconds to wait for the other processes' numbers, at most.
    clock: returns seconds; replaced in tests.
  """

  def __init__(
    self,
    *,
    patience: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._requested = threading.Event()
    self._patience = patience
    self._clock = clock
    self._last_read = -_INTERVAL
    self._published = False
    self._updating = False
    self._updates = 0
    self._stop_after: int | None = None

  @contextlib.contextmanager
  def handle_signals(self) -> Iterator[None]:
    """Turns SIGTERM and SIGINT into requests to stop, within the context.

    After a request both signals are ignored, so that a repeated signal does not
    interrupt the final save.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = {
      number: signal.signal(number, lambda *_: self.request())
      for number in SIGNALS
    }
    try:
      yield
    finally:
      stopping = self._requested.is_set()
      for number, handler in before.items():
        signal.signal(number, signal.SIG_IGN if stopping else handler)

  def request(self) -> None:
    """Requests that the run stops; may be called from any thread."""
    self._requested.set()

  def finished_updates(self, count: int) -> None:
    """Records the number of finished updates; no update is in progress."""
    self._updates, self._updating = count, False

  def poll(self) -> None:
    """Raises `Stopped` if the run stops here; called during waits.

    Raises:
      Stopped: all processes stop after the updates made so far.
    """
    self._exchange(self._clock())
    reached = self._stop_after is not None and self._stop_after <= self._updates
    if reached and not self._updating:
      raise Stopped

  def begin_update(self) -> None:
    """Starts an update, or raises `Stopped`.

    Raises:
      Stopped: all processes stop before this update.
      RuntimeError: the other processes did not publish their numbers in time.
    """
    began = self._clock()
    self._exchange(began, immediately=True)
    while self._published and self._stop_after is None:
      time.sleep(_INTERVAL / 10)
      now = self._clock()
      if now - began > self._patience:
        raise RuntimeError(
          'all processes must answer a request to stop, some did not within '
          f'{self._patience:g} s'
        )
      self._exchange(now)
    self.poll()
    self._updates, self._updating = self._updates + 1, True

  def _exchange(self, now: float, *, immediately: bool = False) -> None:
    """Publishes this process's number on a request; reads the others'."""
    if self._stop_after is not None:
      return
    if jax.process_count() == 1:
      if self._requested.is_set():
        self._stop_after = self._updates
      return
    if now - self._last_read < _INTERVAL and not immediately:
      return
    self._last_read = now
    client = _distributed_client()
    published = client.key_value_dir_get(_PREFIX)
    if not self._published and (published or self._requested.is_set()):
      own = f'{_PREFIX}{jax.process_index()}'
      client.key_value_set(own, str(self._updates))
      self._published = True
      published = client.key_value_dir_get(_PREFIX)
    if len(published) == jax.process_count():
      self._stop_after = max(int(updates) for _, updates in published)


def _distributed_client() -> Any:
  """Returns the key-value client of JAX's coordination service."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()
