# SPDX-License-Identifier: Apache-2.0
"""Locks for the exclusive use of a run directory.

On a disk the system locks a file for as long as the process lives. A bucket has
no locks: there the owner renews a lease, an object that it rewrites at
intervals. A lease that does not change for some time has expired.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Protocol

from etils import epath

from covrl import storage
from covrl.config import ConfigError
from covrl.exit_codes import Exit

# Name of the locked file, or of the lease, in a run directory.
FILE_NAME = '.lock'

# Seconds between two renewals of a lease.
_RENEWAL_INTERVAL = 20.0
# Seconds without a renewal after which a lease has expired.
_EXPIRY = 90.0


class Lock(Protocol):
  """A lock on a run directory."""

  def check(self) -> None:
    """Checks that the directory is still this process's.

    Raises:
      ConfigError: another process has locked it.
      StorageError: it was moved, removed or replaced.
    """


def acquire(
  directory: epath.Path, *, option: str = '--workdir'
) -> contextlib.AbstractContextManager[Lock]:
  """Locks a directory within a context; creates it if absent.

  Args:
    directory: the directory.
    option: the option that names it, for errors.

  Raises:
    ConfigError: another process has locked it.
    StorageError: it cannot be written to.
  """
  if storage.is_bucket(directory):
    return _lease(directory / FILE_NAME, option)
  with storage.writing(directory):
    storage.make_directories(directory)
  return _file_lock(pathlib.Path(directory), option)


@contextlib.contextmanager
def _file_lock(directory: pathlib.Path, option: str) -> Iterator[Lock]:
  lock = _FileLock(directory, option)
  try:
    yield lock
  finally:
    lock.close()


class _FileLock:
  """A locked file in a local directory."""

  def __init__(self, directory: pathlib.Path, option: str) -> None:
    self._option = option
    self._file = directory / FILE_NAME
    with storage.writing(directory):
      self._directory = os.stat(directory)
    self._stream = self._acquire()

  def check(self) -> None:
    """See `Lock.check`; a file that was removed is created again."""
    directory = self._file.parent
    with storage.writing(directory):
      if not _is_same(directory, self._directory):
        raise storage.StorageError(
          f'{directory} cannot be written: it was {self._change()} while the run'
          ' used it'
        )
      if not _is_same(self._file, os.fstat(self._stream.fileno())):
        stream = self._acquire()
        self._stream.close()
        self._stream = stream

  def close(self) -> None:
    """Unlocks the directory."""
    self._stream.close()

  def _change(self) -> str:
    """Describes the change of the directory, such as `'moved to DIRECTORY'`."""
    with contextlib.suppress(OSError):
      file = os.readlink(f'/proc/self/fd/{self._stream.fileno()}')
      directory = pathlib.Path(file).parent
      if _is_same(directory, self._directory):
        return f'moved to {directory}'
    return 'removed or replaced'

  def _acquire(self) -> io.FileIO:
    while True:
      with storage.writing(self._file):
        # Opening a pipe would wait for its reader.
        if self._file.is_fifo():
          raise ConfigError(f'{self._file} must be a file, got a pipe')
        stream = self._file.open('ab', buffering=0)
        try:
          fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
          stream.close()
          raise _in_use_error(self._file, self._option) from None
        except BaseException:
          stream.close()
          raise
      # The file may have been removed before it was locked.
      if _is_same(self._file, os.fstat(stream.fileno())):
        return stream
      stream.close()


def _is_same(path: pathlib.Path, status: os.stat_result) -> bool:
  """Returns whether a path is that of a file with a given status."""
  try:
    return os.path.samestat(os.stat(path), status)
  except FileNotFoundError:
    return False


class _Lease:
  """A lease; a thread renews it, and ends the process when it is lost."""

  def check(self) -> None:
    """See `Lock.check`."""


@contextlib.contextmanager
def _lease(file: epath.Path, option: str) -> Iterator[Lock]:
  own_id = f'{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}'
  _acquire_lease(file, own_id, option)
  closed = threading.Event()
  thread = threading.Thread(
    target=_renew_lease, args=(file, own_id, closed), name='lease', daemon=True
  )
  thread.start()
  try:
    yield _Lease()
  finally:
    closed.set()
    thread.join(_EXPIRY)
    if _owner(file) == own_id:
      file.unlink(missing_ok=True)


def _acquire_lease(file: epath.Path, own_id: str, option: str) -> None:
  """Acquires the lease, waiting for a stale one to expire.

  Raises:
    ConfigError: another process renews it.
  """
  first_text: str | None = None
  started = time.monotonic()
  while not storage.create_object(file, _lease_text(own_id, 0)):
    with contextlib.suppress(FileNotFoundError):
      text = file.read_text(encoding='utf-8')
      if first_text is not None and text != first_text:
        raise _in_use_error(file, option)
      first_text = text
      if time.monotonic() - started > _EXPIRY:
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
      try:
        print(
          f'covrl: another run has taken {file.parent}: this one did not renew '
          f'its lease for {_EXPIRY:g} s',
          file=sys.stderr,
          flush=True,
        )
      finally:
        os._exit(Exit.REFUSED)


def _lease_text(own_id: str, renewals: int) -> str:
  return json.dumps({'process': own_id, 'renewals': renewals})


def _owner(file: epath.Path) -> str | None:
  """Returns the id of the lease's owner, `None` without a valid lease."""
  try:
    content: Any = json.loads(file.read_text(encoding='utf-8'))
    return str(content['process'])
  except (FileNotFoundError, ValueError, KeyError, TypeError):
    return None


def _in_use_error(file: os.PathLike[str], option: str) -> ConfigError:
  return ConfigError(
    f'{os.path.dirname(file)} is in use by another process; use another {option}'
  )
