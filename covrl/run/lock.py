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
from typing import Any, NoReturn, Protocol

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


@contextlib.contextmanager
def _lease(file: epath.Path, option: str) -> Iterator[Lock]:
  lease = _Lease(file, option)
  closed = threading.Event()

  def renew_at_intervals() -> None:
    while not closed.wait(_RENEWAL_INTERVAL):
      # A request that fails is repeated at the next renewal.
      with contextlib.suppress(Exception):
        lease.renew()

  thread = threading.Thread(
    target=renew_at_intervals, name='lease', daemon=True
  )
  thread.start()
  try:
    yield lease
  finally:
    closed.set()
    lease.release()
    thread.join(_EXPIRY)


class _Lease:
  """A lease, which ends the process when another run may have had it.

  Args:
    file: the object.
    option: the option that names the directory, for errors.
  """

  def __init__(self, file: epath.Path, option: str) -> None:
    self._file = file
    self._own_id = f'{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}'
    self._mutex = threading.Lock()
    self._renewals, self._is_released = 0, False
    self._renewed_at = _acquire_lease(file, self._own_id, option)

  def check(self) -> None:
    """See `Lock.check`; renews a lease that may have expired meanwhile.

    A process that was suspended goes on at once, and its next renewal is later.

    Raises:
      StorageError: the lease cannot be renewed.
    """
    if self._is_expired():
      with storage.writing(self._file):
        self.renew()

  def renew(self) -> None:
    """Renews the lease; exits if another process has or may have taken it over.

    A lease whose object is missing is acquired again, but not once it may have
    expired: another run may have acquired it, trained and released it. The status
    of the exit is `Exit.REFUSED`: the directory is in use, as it would be for a run
    that is started now, and a restart would change nothing.
    """
    with self._mutex:
      started = _seconds()
      if self._is_released:
        return
      self._renewals += 1
      text = _lease_text(self._own_id, self._renewals)
      owner = _owner(self._file)
      if owner == self._own_id:
        self._file.write_text(text)
      elif owner is None and self._is_expired():
        self._exit('may have used')
      elif not storage.create_object(self._file, text):
        self._exit('has taken')
      self._renewed_at = started

  def release(self) -> None:
    """Removes the object, unless it is another process's."""
    with self._mutex:
      self._is_released = True
      if _owner(self._file) == self._own_id:
        self._file.unlink(missing_ok=True)

  def _is_expired(self) -> bool:
    """Returns whether another process may have taken the lease for a stale one."""
    return _seconds() - self._renewed_at > _EXPIRY

  def _exit(self, deed: str) -> NoReturn:
    try:
      print(
        f'covrl: another run {deed} {self._file.parent}: this one did not renew'
        f' its lease for {_EXPIRY:g} s',
        file=sys.stderr,
        flush=True,
      )
    finally:
      os._exit(Exit.REFUSED)


def _acquire_lease(file: epath.Path, own_id: str, option: str) -> float:
  """Acquires the lease, waiting for a stale one to expire.

  Returns:
    The time of the acquisition, in `_seconds`.

  Raises:
    ConfigError: another process renews it.
  """
  first_text: str | None = None
  first_seen = 0.0
  while True:
    started = _seconds()
    if storage.create_object(file, _lease_text(own_id, 0)):
      return started
    with contextlib.suppress(FileNotFoundError):
      text = file.read_text(encoding='utf-8')
      if first_text is None:
        first_text, first_seen = text, _seconds()
      elif text != first_text:
        raise _in_use_error(file, option)
      # The time before the read, in case the process is suspended after it.
      elif started - first_seen > _EXPIRY:
        file.unlink(missing_ok=True)
        continue
    time.sleep(_RENEWAL_INTERVAL / 4)


def _seconds() -> float:
  """Returns a time that never jumps and counts while the machine is suspended."""
  clock: int = getattr(time, 'CLOCK_BOOTTIME', time.CLOCK_MONOTONIC)
  return time.clock_gettime(clock)


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
