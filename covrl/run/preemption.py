# SPDX-License-Identifier: Apache-2.0
"""Stopping when told to: all processes at the same place, and soon.

A process that is told to stop (SIGTERM, or a notice that its machine will be
maintained or preempted) tells the others how many updates it has begun; each of
them answers with its own number. All go on to the largest: what has been begun
somewhere needs everyone. A rollout or an evaluation changes nothing, so it is
given up in the middle. Only the beginning of an update waits for the answers.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Seconds between looks at the others' answers.
_INTERVAL = 0.5
_PREFIX = 'covrl/stop/'


class Stopped(Exception):
  """The run was told to stop, and may do so here."""


class StopSignal:
  """Knows whether to stop, and where.

  Args:
    patience: most seconds for the other processes to answer.
    clock: seconds, for tests.
  """

  def __init__(
    self,
    *,
    patience: float = 600.0,
    clock: Callable[[], float] = time.monotonic,
  ) -> None:
    self._asked = threading.Event()
    self._patience = patience
    self._clock = clock
    self._looked = -_INTERVAL
    self._answered = False
    self._updating = False
    self._position = 0
    self._target: int | None = None

  @contextlib.contextmanager
  def listening(self) -> Iterator[None]:
    """Takes SIGTERM, however often it comes, for the wish to stop.

    A run that was told to stop is not disturbed by another one while it ends.
    """
    if threading.current_thread() is not threading.main_thread():
      yield
      return
    before = signal.signal(signal.SIGTERM, lambda *_: self.ask())
    try:
      yield
    finally:
      after = signal.SIG_IGN if self._asked.is_set() else before
      signal.signal(signal.SIGTERM, after)

  def ask(self) -> None:
    """Asks the run to stop."""
    self._asked.set()

  def at(self, position: int) -> None:
    """Says that so many updates have been made and nothing is under way."""
    self._position, self._updating = position, False

  def poll(self) -> None:
    """To be called while waiting.

    Raises:
      Stopped: all are to stop here.
    """
    self._look(self._clock())
    reached = self._target is not None and self._target <= self._position
    if reached and not self._updating:
      raise Stopped

  def before_update(self) -> None:
    """To be called before an update begins, which only all can finish.

    Raises:
      Stopped: all are to stop here.
      RuntimeError: the others did not answer in time.
    """
    began = self._clock()
    self._look(began, at_once=True)
    while self._answered and self._target is None:
      time.sleep(_INTERVAL / 10)
      now = self._clock()
      if now - began > self._patience:
        raise RuntimeError(
          'all processes must answer when one is told to stop, some did not '
          f'within {self._patience:g} s'
        )
      self._look(now)
    self.poll()
    self._position, self._updating = self._position + 1, True

  def _look(self, now: float, *, at_once: bool = False) -> None:
    """Answers if someone is told to stop; learns where all of them will."""
    if self._target is not None:
      return
    if jax.process_count() == 1:
      if self._asked.is_set():
        self._target = self._position
      return
    if now - self._looked < _INTERVAL and not at_once:
      return
    self._looked = now
    client = _client()
    answers = client.key_value_dir_get(_PREFIX)
    if not self._answered and (answers or self._asked.is_set()):
      own = f'{_PREFIX}{jax.process_index()}'
      client.key_value_set(own, str(self._position))
      self._answered = True
      answers = client.key_value_dir_get(_PREFIX)
    if len(answers) == jax.process_count():
      self._target = max(int(position) for _, position in answers)


def _client() -> Any:
  """What the processes tell one another by, beside their devices."""
  from orbax.checkpoint import multihost

  return multihost.get_jax_distributed_client()
