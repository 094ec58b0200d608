# SPDX-License-Identifier: Apache-2.0
"""Stops a run on a signal: all processes after the same update, and soon.

A process that receives SIGTERM, SIGINT, SIGHUP (its terminal was closed; ignored
under nohup) or a maintenance event publishes how many updates it has begun;
every other process then publishes its own count. All of them stop after the update
with the largest count, because an update needs all processes. Rollouts and evaluations
change no state, so they are abandoned. Only the start of an update waits for the
other processes' counts. A thread publishes the count of a process whose main thread
is inside of an update, which may wait for a process that has not begun it.

A repeated signal changes nothing, so that it does not interrupt the final save;
the third one within five seconds ends the process at once.

`jax.experimental.multihost_utils.reached_preemption_sync_point` is not used: it
stops between updates only, whereas a rollout may take minutes; it reacts to
SIGTERM alone; and it needs several processes.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import jax

from covrl.exit_codes import Exit
from covrl.run.background import repeated_in_thread

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds between two reads of the other processes' counts of updates.
_INTERVAL = 0.5
_PREFIX = 'covrl/stop/'
# Three signals within so many seconds end the process.
_THIRD_SIGNAL_SECONDS = 5.0
# Seconds within which two signals are the same one: a terminal and the parent
# process may both send it.
_SAME_SIGNAL_SECONDS = 0.2
_ENDED_AT_ONCE = (
  f'covrl: ended at once by a third signal within {_THIRD_SIGNAL_SECONDS:g} s; what was not'
  ' saved before is lost\n'
)
_SHOW_CURSOR = '\x1b[?25h'


class Stopped(Exception):
  """Raised at a point where the run can stop, after a request to stop.

  Attributes:
    number: the signal that requested it; SIGTERM for a maintenance event, or a request of
      another process.
    is_resumable: whether the run has a checkpoint to resume from.
  """

  def __init__(self, number: int = signal.SIGTERM) -> None:
    super().__init__(f'stopped by signal {number}')
    self.number = number
    self.is_resumable = False

  @property
  def exit_status(self) -> Exit:
    """Exit status of the process."""
    if self.is_resumable:
      return Exit.RESTART
    is_interrupt = self.number == signal.SIGINT
    return Exit.INTERRUPTED if is_interrupt else Exit.TERMINATED


class StopSignal:
  """Collects requests to stop and raises `Stopped` where all processes can.

  Args:
    timeout: seconds to wait for the other processes' counts of updates, at most.
    clock: returns seconds; replaced in tests.
  """

  def __init__(
    self,
    *,
    timeout: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._requested = threading.Event()
    # Held to publish the count of updates, and to begin one unless it is published.
    self._lock = threading.RLock()
    self._number = int(signal.SIGTERM)
    self._timeout = timeout
    self._clock = clock
    self._last_read = -_INTERVAL
    self._has_published = False
    self._is_updating = False
    self._updates = 0
    self._stop_after: int | None = None

  @contextlib.contextmanager
  def handle_signals(self, *, exits_after_run: bool = False) -> Iterator[None]:
    """Turns SIGTERM, SIGINT and SIGHUP into requests to stop, within the context.

    SIGHUP remains ignored if it was ignored before, as under nohup. A repeated signal is ignored.
    The third within five seconds ends the process, even while native code runs.

    Args:
      exits_after_run: whether the process ends after the context, and ignores
        repeated signals until then if the run stops.
    """
    if threading.current_thread() is not threading.main_thread():
      with self._answering():
        yield
      return
    with contextlib.ExitStack() as stack:
      reader, writer = os.pipe()
      os.set_blocking(writer, False)
      counter = threading.Thread(
        target=_count_signals, args=(reader,), name='signals', daemon=True
      )
      counter.start()
      stack.callback(counter.join)
      stack.callback(os.close, writer)
      # The C signal handler writes signal numbers to the pipe at once, also while the
      # main thread runs native code.
      previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
      stack.callback(signal.set_wakeup_fd, previous)
      for number in SIGNALS:
        if (
          number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
        ):
          continue
        handler = signal.signal(number, self._receive)
        stack.callback(signal.signal, number, handler)
      try:
        with self._answering():
          yield
      finally:
        if exits_after_run and self._requested.is_set():
          _lasting_handlers.append(stack.pop_all())

  def _answering(self) -> contextlib.AbstractContextManager[None]:
    """Answers requests of other processes within the context."""
    if jax.process_count() == 1:
      return contextlib.nullcontext()

    def answer() -> bool:
      # A later call may succeed; the main thread reports the loss of a process.
      with contextlib.suppress(Exception):
        self._exchange(self._clock(), immediately=True)
      return self._stop_after is not None

    return repeated_in_thread(answer, interval=_INTERVAL, name='stop requests')

  def request(self) -> None:
    """Requests that the run stops; may be called from any thread."""
    self._requested.set()

  def _receive(self, number: int, frame: FrameType | None) -> None:
    """Handles a signal."""
    del frame
    if not self._requested.is_set():
      self._number = number
    self.request()

  def set_finished_updates(self, count: int) -> None:
    """Records the number of finished updates; no update is in progress."""
    self._updates, self._is_updating = count, False

  def poll(self) -> None:
    """Raises `Stopped` if the run stops here; called during waits.

    Raises:
      Stopped: all processes stop after the updates made so far.
    """
    self._exchange(self._clock())
    reached = self._stop_after is not None and self._stop_after <= self._updates
    if reached and not self._is_updating:
      raise Stopped(self._number)

  def begin_update(self) -> None:
    """Starts an update, or raises `Stopped`.

    Raises:
      Stopped: all processes stop before this update.
      RuntimeError: the other processes did not publish their counts in time.
    """
    started = self._clock()
    while not self._has_begun_update():
      time.sleep(_INTERVAL / 10)
      if self._clock() - started > self._timeout:
        raise RuntimeError(
          'all processes must answer a request to stop, got no answer from some'
          f' within {self._timeout:g} s'
        )

  def _has_begun_update(self) -> bool:
    """Starts an update unless the other processes' counts are to be waited for."""
    with self._lock:
      self._exchange(self._clock(), immediately=not self._has_published)
      if self._has_published and self._stop_after is None:
        return False
      if self._stop_after is not None and self._stop_after <= self._updates:
        raise Stopped(self._number)
      self._updates, self._is_updating = self._updates + 1, True
      return True

  def _exchange(self, now: float, *, immediately: bool = False) -> None:
    """Publishes this process's count of updates on a request; reads the others'."""
    with self._lock:
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
      counts = client.key_value_dir_get(_PREFIX)
      if not self._has_published and (counts or self._requested.is_set()):
        key = f'{_PREFIX}{jax.process_index()}'
        client.key_value_set(key, str(self._updates))
        self._has_published = True
        counts = client.key_value_dir_get(_PREFIX)
      if len(counts) == jax.process_count():
        self._stop_after = max(int(updates) for _, updates in counts)


# Handlers that remain until the process ends.
_lasting_handlers: list[contextlib.ExitStack] = []


def restore_handlers() -> None:
  """Restores the handlers that were in place before `exits_after_run` kept others."""
  while _lasting_handlers:
    _lasting_handlers.pop().close()


def ignore_signals_of_stopped_run() -> None:
  """Ignores signals while the process of a stopped run exits.

  To be called last: before it frees its modules, Python restores the system's
  handlers in place of its own, so that a repeated signal would end the process with
  another status.
  """
  if _lasting_handlers:
    for number in SIGNALS:
      signal.signal(number, signal.SIG_IGN)


def _count_signals(reader: int) -> None:
  """Ends the process at the third signal within `_THIRD_SIGNAL_SECONDS` seconds.

  Args:
    reader: read end of a pipe that gets the number of each signal as a byte;
      closed at the end of the pipe.
  """
  times: collections.deque[float] = collections.deque(maxlen=3)
  while numbers := os.read(reader, 64):
    for number in numbers:
      now = time.monotonic()
      if number not in SIGNALS or (
        times and now - times[-1] < _SAME_SIGNAL_SECONDS
      ):
        continue
      times.append(now)
      if len(times) == times.maxlen and now - times[0] <= _THIRD_SIGNAL_SECONDS:
        _end_at_once(number)
  os.close(reader)


def _end_at_once(number: int) -> None:
  """Ends the process with one line, as the signal itself would."""
  cursor = _SHOW_CURSOR if os.isatty(2) else ''
  with contextlib.suppress(OSError):
    os.write(2, f'{cursor}{_ENDED_AT_ONCE}'.encode())
  os._exit(128 + number)


def _distributed_client() -> Any:
  """Returns the key-value client of JAX's coordination service."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()
