# SPDX-License-Identifier: Apache-2.0
"""Main script of a reward pool's worker process; never imported.

It receives the import path and the function to call, reports that it is ready and
which files it has loaded, and scores one (number, response, reference) after the
other until its connection is closed. Replies are lines of JSON: `[number, status,
score, detail]`.
"""

from __future__ import annotations

import contextlib
import importlib.abc
import importlib.util
import json
import numbers
import os
import pathlib
import pickle
import random
import signal
import sys
import sysconfig
import types
import zlib
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

# Characters of a text in a reply, at most.
_MAX_CHARACTERS = 2_000
# Values of `covrl.rewards.Status`, whose module is not imported here.
_STATUSES = (
  *('scored', 'wrong', 'unparsable', 'timeout', 'crash', 'invalid'),
  'infrastructure',
)


def main() -> None:
  """Serves the connection whose file descriptor is the only argument."""
  # Signals to the process group are handled by the trainer, which kills workers.
  signal.signal(signal.SIGTERM, lambda *_: None)
  connection = Connection(int(sys.argv[1]))
  # The connection ends when the pool is closed or dies.
  with contextlib.suppress(EOFError, OSError):
    _serve(connection)


def _serve(connection: Connection) -> None:
  """Receives the settings, then scores responses until the connection closes."""
  settings: dict[str, Any] = connection.recv()
  try:
    score_fn = _prepare(settings)
  except BaseException as error:
    _send(connection, False, _describe_error(error), {})
    return
  _send(connection, True, '', _checksum_loaded_files())
  while True:
    request, response, reference = connection.recv()
    # The pool kills a worker that hangs. If the pool is gone, the alarm signal kills
    # the worker, even inside a C function.
    signal.setitimer(signal.ITIMER_REAL, 2 * settings['timeout'] + 1)
    status, score, detail = _score(score_fn, response, reference)
    signal.setitimer(signal.ITIMER_REAL, 0)
    _send(connection, request, status, score, _shorten(detail))


class _ModuleFinder:
  """Finder of the modules beside a recipe, by the texts that the run keeps.

  Args:
    modules: file and text by the name of a module.
  """

  def __init__(self, modules: dict[str, tuple[str, str]]) -> None:
    self._modules = modules

  def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
    """Returns the description of a module; `None` for others."""
    del path, target
    if name not in self._modules:
      return None
    return importlib.util.spec_from_file_location(
      name, self._modules[name][0], loader=_TextLoader(*self._modules[name])
    )


class _TextLoader(importlib.abc.Loader):
  """Loader of a module from its text."""

  def __init__(self, file: str, text: str) -> None:
    self._file, self._text = file, text

  def exec_module(self, module: types.ModuleType) -> None:
    """Executes the text."""
    exec(compile(self._text, self._file, 'exec'), vars(module))


def _send(connection: Connection, *fields: object) -> None:
  """Writes fields as one line of JSON."""
  data = json.dumps(fields).encode() + b'\n'
  while data:
    data = data[os.write(connection.fileno(), data) :]


def _prepare(settings: dict[str, Any]) -> Callable[[str, Any], Any]:
  """Loads the score function, calls it on the example, and limits memory."""
  sys.path[:] = settings['path']
  sys.meta_path.insert(0, _ModuleFinder(settings['modules']))
  score_fn = pickle.loads(settings['score_fn'])
  if isinstance(score_fn, str):
    score_fn = _import_function(score_fn)
  if settings['example'] is not None:
    score_fn(*settings['example'])
  _limit_memory(settings['memory_limit'])
  return score_fn


def _checksum_loaded_files() -> dict[str, int]:
  """Returns the checksums of loaded Python files outside the standard library."""
  standard_library = sysconfig.get_path('stdlib')
  checksums: dict[str, int] = {}
  for module in list(sys.modules.values()):
    name = getattr(module, '__file__', None)
    if not isinstance(name, str) or not name.endswith('.py'):
      continue
    if not name.startswith(standard_library) or 'site-packages' in name:
      with contextlib.suppress(OSError):
        checksums[name] = zlib.crc32(pathlib.Path(name).read_bytes())
  return checksums


def _import_function(full_name: str) -> Callable[[str, Any], Any]:
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
  _seed(response, reference)
  try:
    score: Any = score_fn(response, reference)
  except BaseException as error:
    return 'crash', float('nan'), _describe_error(error)
  # Recognised by its class name, since its module may not be loaded here.
  if type(score).__name__ == 'Outcome':
    return _outcome_fields(score)
  number = _number(score)
  if number is not None and abs(number) < float('inf'):
    return 'scored', number, ''
  return 'invalid', float('nan'), f'the scorer returned {_to_text(score)}'


def _seed(response: str, reference: Any) -> None:
  """Seeds the global random number generators from the response and its reference.

  The generator of numpy is seeded if numpy has been imported.
  A function that draws then gives a response the same score in any worker, in any
  order, and in a resumed run.
  """
  seed = zlib.crc32(repr((response, reference)).encode(errors='replace'))
  random.seed(seed)
  numpy: Any = sys.modules.get('numpy')
  if numpy is not None:
    numpy.random.seed(seed)


def _outcome_fields(outcome: Any) -> tuple[str, float, str]:
  """Returns the fields of an outcome; `invalid` where they cannot be used."""
  status = getattr(getattr(outcome, 'status', None), 'value', None)
  value = getattr(outcome, 'score', None)
  score = _number(value)
  if not isinstance(status, str) or status not in _STATUSES:
    problem = f'status {_to_text(status)}'
  elif score is None:
    problem = f'score {_to_text(value)}'
  else:
    detail = getattr(outcome, 'detail', '')
    return (
      status,
      score,
      detail if isinstance(detail, str) else _to_text(detail),
    )
  reason = f'the scorer returned an Outcome with {problem}'
  return 'invalid', float('nan'), reason


def _number(value: Any) -> float | None:
  """Returns the value of a number or a scalar of an array library, else `None`."""
  try:
    if not isinstance(value, numbers.Real):
      # Booleans of numpy, and arrays of one element.
      value = value.item()
    return float(value) if isinstance(value, numbers.Real) else None
  except Exception:
    return None


def _describe_error(error: BaseException) -> str:
  """Returns the type and the text of an error, which may have none."""
  with contextlib.suppress(Exception):
    return _shorten(f'{type(error).__name__}: {error}')
  return type(error).__name__


def _to_text(value: object) -> str:
  """Returns an object as text, or its type if it has none."""
  with contextlib.suppress(Exception):
    return _shorten(repr(value))
  return f'an object of {type(value).__name__}'


def _shorten(text: str) -> str:
  """Shortens a text to the longest that a reply may have."""
  if len(text) <= _MAX_CHARACTERS:
    return text
  return f'{text[:_MAX_CHARACTERS]} … ({len(text):,} characters)'


def _limit_memory(limit: int) -> None:
  """Limits further allocations to `limit` bytes (on Linux)."""
  if sys.platform == 'linux':
    resource = importlib.import_module('resource')
    pages = int(
      pathlib.Path('/proc/self/statm').read_text(encoding='utf-8').split()[0]
    )
    max_bytes = pages * resource.getpagesize() + limit
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))


if __name__ == '__main__':
  main()
