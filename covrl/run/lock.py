# SPDX-License-Identifier: Apache-2.0
"""Exclusive use of a run directory.

On a disk the system locks a file for as long as the process lives. A bucket has
no locks: there the owner renews a lease, an object that it rewrites at
intervals. A lease that does not change for some time has expired.
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

# Seconds between two renewals of a lease, and until one without any expires.
_RENEWAL_INTERVAL = 20.0
_EXPIRY = 90.0


def acquire(directory: epath.Path) -> contextlib.AbstractContextManager[None]:
  """Locks a directory within a context; creates it if absent.

  Raises:
    ConfigError: another process has locked it.
    StorageError: it cannot be written to.
  """
  if storage.is_bucket(directory):
    return _lease(directory / NAME)
  with storage.writing(directory):
    directory.mkdir(parents=True, exist_ok=True)
  return _file_lock(directory / NAME)


@contextlib.contextmanager
def _file_lock(file: epath.Path) -> Iterator[None]:
  with storage.writing(file):
    stream = file.open('w')
  with stream as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      raise _in_use_error(file) from None
    yield


@contextlib.contextmanager
def _lease(file: epath.Path) -> Iterator[None]:
  own_id = f'{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}'
  _acquire_lease(file, own_id)
  closed = threading.Event()
  thread = threading.Thread(
    target=_renew_lease, args=(file, own_id, closed), name='lease', daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    closed.set()
    thread.join(_EXPIRY)
    if _owner(file) == own_id:
      file.unlink(missing_ok=True)


def _acquire_lease(file: epath.Path, own_id: str) -> None:
  """Acquires the lease, waiting for a stale one to expire.

  Raises:
    ConfigError: another process renews it.
  """
  first_text: str | None = None
  began = time.monotonic()
  while not storage.create_object(file, _lease_text(own_id, 0)):
    with contextlib.suppress(FileNotFoundError):
      text = file.read_text()
      if first_text is not None and text != first_text:
        raise _in_use_error(file)
      first_text = text
      if time.monotonic() - began > _EXPIRY:
        file.unlink(missing_ok=True)
        continue
    time.sleep(_RENEWAL_INTERVAL / 4)


def _renew_lease(
  file: epath.Path, own_id: str, closed: threading.Event
) -> None:
  """Renews the lease; exits if another process has taken it over.

  A lease whose object is missing is free, and is acquired again. The status of
  the exit is `Exit.REFUSED`: the directory is in use, as it would be for a run
  that is started now, and a restart would change nothing.
  """
  renewals = 0
  while not closed.wait(_RENEWAL_INTERVAL):
    renewals += 1
    # A request that fails is repeated at the next renewal.
    with contextlib.suppress(Exception):
      if _owner(file) == own_id:
        file.write_text(_lease_text(own_id, renewals))
        continue
      if closed.is_set():
        return
      if storage.create_object(file, _lease_text(own_id, renewals)):
        continue
      print(
        f'covrl: another run has taken {file.parent}: this one did not renew '
        f'its lease for {_EXPIRY:g} s',
        file=sys.stderr,
        flush=True,
      )
      os._exit(Exit.REFUSED)


def _lease_text(own_id: str, renewals: int) -> str:
  return json.dumps({'process': own_id, 'renewals': renewals})


def _owner(file: epath.Path) -> str | None:
  """Returns the id of the lease's owner, `None` without a valid lease."""
  try:
    content: Any = json.loads(file.read_text())
    return str(content['process'])
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None


def _in_use_error(file: epath.Path) -> ConfigError:
  return ConfigError(
    f'{file.parent} is in use by another process; use another --workdir'
  )
