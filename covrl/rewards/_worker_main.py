# SPDX-License-Identifier: Apache-2.0
"""What a worker process of the reward pool runs: a script, never imported.

It knows nothing of covrl: it receives where to import from and what to call,
says when it is ready, and then answers one (response, reference) after the
other until its connection is closed. `covrl` itself is stood in for by an empty
package with the same path, so that a scorer in one of its rooms is importable
while the numerics (JAX, two seconds and a device) are not loaded.
"""

from __future__ import annotations

import contextlib
import importlib
import numbers
import pathlib
import pickle
import signal
import sys
import types
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


def main() -> None:
  """Serves the connection whose file descriptor is the only argument."""
  # A signal to all processes of a run is for the run to answer; the pool kills.
  signal.signal(signal.SIGTERM, lambda *_: None)
  connection = Connection(int(sys.argv[1]))
  # The pool closes the connection, or dies, when nothing more is wanted.
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
    # The pool kills a worker that hangs; should the pool be gone by then, the
    # alarm does, even from within a C function.
    signal.setitimer(signal.ITIMER_REAL, 2 * settings['timeout'] + 1)
    reply = _score(score_fn, response, reference)
    signal.setitimer(signal.ITIMER_REAL, 0)
    connection.send(reply)


def _prepare(settings: dict[str, Any]) -> Callable[[str, Any], Any]:
  sys.path[:] = settings['path']
  package = types.ModuleType('covrl')
  package.__path__ = [settings['package_path']]
  sys.modules['covrl'] = package
  score_fn = pickle.loads(settings['score_fn'])
  if isinstance(score_fn, str):
    module, _, name = score_fn.partition(':')
    score_fn = getattr(importlib.import_module(module), name)
  if settings['example'] is not None:
    score_fn(*settings['example'])
  _limit_memory(settings['memory_limit'])
  return score_fn


def _score(
  score_fn: Callable[[str, Any], Any], response: str, reference: Any
) -> tuple[str, float, str]:
  """Status, score and, where there is no score, why."""
  try:
    score: Any = score_fn(response, reference)
  except BaseException as error:
    return 'crash', float('nan'), f'{type(error).__name__}: {error}'
  # An outcome is known by its name: its module may not be loaded here.
  if type(score).__name__ == 'Outcome':
    return score.status.value, float(score.score), score.detail
  if isinstance(score, numbers.Real):
    value = float(score)
    if abs(value) < float('inf'):
      return 'scored', value, ''
  return 'invalid', float('nan'), f'the scorer returned {score!r}'


def _limit_memory(limit: int) -> None:
  """Lets the process allocate `limit` more bytes; on Linux alone."""
  if sys.platform == 'linux':
    resource = importlib.import_module('resource')
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
    most = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


if __name__ == '__main__':
  main()
