# SPDX-License-Identifier: Apache-2.0
"""Main script of a reward pool's worker process; never imported.

It receives the import path and the function to call, reports when it is ready, and
scores one (response, reference) after the other until its connection is closed.
"""

from __future__ import annotations

import contextlib
import importlib
import numbers
import pathlib
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
  """Serves the connection whose file descriptor is the only argument."""
  # Signals to the process group are handled by the trainer, which kills workers.
  signal.signal(signal.SIGTERM, lambda *_: None)
  connection = Connection(int(sys.argv[1]))
  # The connection ends when the pool is closed or dies.
  with contextlib.suppress(EOFError, OSError):
    _serve(connection)


def _serve(connection: Connection) -> None:
  settings: dict[str, Any] = connection.recv()
  try:
    score_fn = _prepare(settings)
  except BaseException as error:
    connection.send((False, f'{type(error).__name__}: {error}'))
    return
  connection.send((True, ''))
  while True:
    response, reference = connection.recv()
    # The pool kills a worker that hangs; if the pool is gone, the alarm does, even
    # inside a C function.
    signal.setitimer(signal.ITIMER_REAL, 2 * settings['timeout'] + 1)
    reply = _score(score_fn, response, reference)
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.send(reply)


def _prepare(settings: dict[str, Any]) -> Callable[[str, Any], Any]:
  sys.path[:] = settings['path']
  score_fn = pickle.loads(settings['score_fn'])
  if isinstance(score_fn, str):
    score_fn = _imported(score_fn)
  if settings['example'] is not None:
    score_fn(*settings['example'])
  _limit_memory(settings['memory_limit'])
  return score_fn


def _imported(full_name: str) -> Callable[[str, Any], Any]:
  """Imports a function by its name, `module:function`."""
  module, _, name = full_name.partition(':')
  try:
    return getattr(importlib.import_module(module), name)
  except Exception as error:
    raise ImportError(
      f'{full_name!r} cannot be imported ({type(error).__name__}: {error}); write'
      ' module:function for a function (response, reference) -> number of an'
      ' installed module or of a file beside the recipe'
    ) from error


def _score(
  score_fn: Callable[[str, Any], Any], response: str, reference: Any
) -> tuple[str, float, str]:
  """Returns status, score, and a reason if the score is missing."""
  try:
    score: Any = score_fn(response, reference)
    # Recognised by its class name, since its module may not be loaded here.
    if type(score).__name__ == 'Outcome':
      return score.status.value, float(score.score), score.detail
  except BaseException as error:
    return 'crash', float('nan'), f'{type(error).__name__}: {error}'
  if isinstance(score, numbers.Real):
    value = float(score)
    if abs(value) < float('inf'):
      return 'scored', value, ''
  return 'invalid', float('nan'), f'the scorer returned {score!r}'


def _limit_memory(limit: int) -> None:
  """Limits further allocations to `limit` bytes (on Linux)."""
  if sys.platform == 'linux':
    resource = importlib.import_module('resource')
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    most = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == '__main__':
  main()
