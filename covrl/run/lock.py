# SPDX-License-Identifier: Apache-2.0
"""One run at a time in a directory.

On a disk the system locks a file for as long as a process lives. A bucket has
no locks: there the process that is in it says so in an object, again and again.
Who finds such an object watches whether it changes; one that does not was left
by a process that is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from etils import epath

from covrl import storage
from covrl.config import ConfigError
from covrl.exit_codes import Exit

NAME = '.lock'

# Seconds between two signs of life, and without any until someone is gone.
_BEAT = 20.0
_PATIENCE = 90.0


def held(directory: epath.Path) -> contextlib.AbstractContextManager[None]:
  """Keeps other processes out of a directory; it is made if absent.

  Raises:
    ConfigError: another one is in it.
  """
  if storage.is_bucket(directory):
    return _leased(directory / NAME)
  directory.mkdir(parents=True, exist_ok=True)
  return _flocked(directory / NAME)


@contextlib.contextmanager
def _flocked(file: epath.Path) -> Iterator[None]:
  with file.open('w') as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise _in_use(file) from None
    yield


@contextlib.contextmanager
def _leased(file: epath.Path) -> Iterator[None]:
  own = f'{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}'
  _take(file, own)
  over = threading.Event()
  thread = threading.Thread(
    target=_renew, args=(file, own, over), name='lease', daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    over.set()
    thread.join(_PATIENCE)
    if _owner(file) == own:
      file.unlink(missing_ok=True)


def _take(file: epath.Path, own: str) -> None:
  """Waits until nobody is there."""
  seen: str | None = None
  since = time.monotonic()
  while not storage.write_new(file, _sign(own, 0)):
    with contextlib.suppress(FileNotFoundError):
      sign = file.read_text()
      if seen is not None and sign != seen:
        raise _in_use(file)
      seen = sign
      if time.monotonic() - since > _PATIENCE:
        file.unlink(missing_ok=True)
        continue
    time.sleep(_BEAT / 4)


def _renew(file: epath.Path, own: str, over: threading.Event) -> None:
  """Gives signs of life; ends the process where it has been taken for gone."""
  number = 0
  while not over.wait(_BEAT):
    number += 1
    # A store that does not answer is asked again the next time.
    with contextlib.suppress(Exception):
      if _owner(file) == own:
        file.write_text(_sign(own, number))
        continue
      if over.is_set():
        return
      print(
        f'covrl: another run has taken {file.parent}, for this one gave no sign'
        f' of life for {_PATIENCE:g} s',
        file=sys.stderr,
        flush=True,
      )
      os._exit(Exit.REFUSED)


def _sign(own: str, number: int) -> str:
  return json.dumps({'process': own, 'beat': number})


def _owner(file: epath.Path) -> str | None:
  """Who is there, if anyone."""
  try:
    content: Any = json.loads(file.read_text())
    return str(content['process'])
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None


def _in_use(file: epath.Path) -> ConfigError:
  return ConfigError(
    f'{file.parent} is in use by another process; use another --workdir'
  )
