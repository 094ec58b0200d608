# SPDX-License-Identifier: Apache-2.0
"""Errors of files: a full, read-only or failing disk, a bucket that refuses writes."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import traceback
from collections.abc import Iterator

# Causes that libraries report as text only. Others have texts that occur in errors
# of other kinds, too, such as "invalid argument".
_REPORTED_AS_TEXT = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES),
  *(errno.EPERM, errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENOTDIR),
  *(errno.EEXIST, errno.ELOOP, errno.EISDIR, errno.EBADF, errno.EMFILE),
  *(errno.ENFILE, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOLCK),
  *(errno.ENOTCONN, errno.ENOTSUP, errno.EBUSY, errno.ENXIO, errno.ETIMEDOUT),
  *(errno.EREMOTEIO, errno.ENOMEM, errno.EINTR, errno.ENOTEMPTY, errno.EXDEV),
)
# Causes that are a wrong path and not a failing device.
_WRONG_PATHS = {
  *(errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP),
  *(errno.ENAMETOOLONG, errno.ENXIO),
}
_ERRNO_OF_TEXT = {
  os.strerror(number).lower(): number for number in _REPORTED_AS_TEXT
}
_CAUSE_TEXT = re.compile(
  '|'.join(map(re.escape, _ERRNO_OF_TEXT)), re.IGNORECASE
)
# TensorStore names the number of the system's error.
_ERRNO_IN_TEXT = re.compile(r"os_error_code='([0-9]+)'")
# Its status for files that another program has removed, without such a number.
_NOT_FOUND = 'NOT_FOUND: '
_NO_THREAD = "can't start new thread"
# The client of buckets, which raises errors of its own and of other libraries, and
# the library that runs its requests, which raises those that take too long.
_BUCKET_CLIENT = 'gcsfs'
_BUCKET_PACKAGES = (_BUCKET_CLIENT, 'fsspec')


def _is_new(record: logging.LogRecord) -> bool:
  """Returns whether a record of the client of buckets is not an error it raises.

  It logs the failures of requests, which it raises after its last attempt.
  """
  is_raised = record.funcName == 'retry_request' and record.exc_info
  return not is_raised or bool(os.environ.get('COVRL_TRACEBACK'))


logging.getLogger(_BUCKET_CLIENT).addFilter(_is_new)


class StorageError(OSError):
  """A failed write, described in one sentence: path and cause."""


@contextlib.contextmanager
def writing(path: os.PathLike[str] | str) -> Iterator[None]:
  """Turns errors of writing into `StorageError` within the context.

  On a disk those are the errors of the system: no space left, quota exceeded,
  read-only, not permitted, failing device. In a bucket every error is one,
  because client library, network and store raise errors of many types.

  Args:
    path: file or directory that is written, for the message.

  Raises:
    StorageError: something could not be written.
  """
  try:
    yield
  except StorageError:
    raise
  except Exception as error:
    cause = _cause(error, in_bucket=os.fspath(path).startswith('gs://'))
    # A pipe without a reader is not a failing disk.
    is_pipe = isinstance(error, OSError) and error.errno == errno.EPIPE
    if cause is None or is_pipe:
      raise
    raise StorageError(
      f'{os.fspath(path)} cannot be written: {cause}'
    ) from error


@contextlib.contextmanager
def reading(path: os.PathLike[str] | str) -> Iterator[None]:
  """Names the file in errors of reading within the context.

  The system's errors on an open file have no name, and libraries written in C++
  report them as text. Errors of the client library of buckets, the network and the
  store get the number `EIO`, except for objects that do not exist.

  Args:
    path: file or directory that is read, for the message.

  Raises:
    OSError: the system failed to read; `read_failure_message` describes it.
  """
  in_bucket = os.fspath(path).startswith('gs://')
  try:
    yield
  except Exception as error:
    if in_bucket and _is_error_of_bucket(error):
      raise OSError(errno.EIO, _one_line(error), os.fspath(path)) from error
    if isinstance(error, OSError):
      if error.errno is not None and error.filename is None:
        error.filename = os.fspath(path)
      raise
    number = _system_errno(error)
    if number is None or in_bucket:
      raise
    raise OSError(number, os.strerror(number), os.fspath(path)) from error


def _is_error_of_bucket(error: Exception) -> bool:
  """Returns whether a request to a bucket failed, other than by an absent object.

  The client also writes local files, whose errors have the system's numbers.
  """
  if isinstance(error, FileNotFoundError | FileExistsError):
    return False
  if type(error).__module__ == 'builtins' and (
    getattr(error, 'errno', None)
    or not isinstance(error, OSError | ValueError | RuntimeError)
  ):
    return False
  frames = traceback.walk_tb(error.__traceback__)
  modules = (str(frame.f_globals.get('__name__')) for frame, _ in frames)
  return any(name.partition('.')[0] in _BUCKET_PACKAGES for name in modules)


def _system_errno(error: BaseException | None) -> int | None:
  """Returns the number of a system's error that led to another one, if any."""
  while error is not None:
    number = _error_number(error)
    if number is not None and number not in _WRONG_PATHS:
      return number
    error = _origin(error)
  return None


def _origin(error: BaseException) -> BaseException | None:
  """Returns the error that led to another one, unless that was raised `from None`."""
  context = None if error.__suppress_context__ else error.__context__
  return error.__cause__ or context


def _error_number(error: BaseException) -> int | None:
  """Returns the number of the system's error that an error is or reports, if any."""
  if isinstance(error, OSError) and error.errno is not None:
    return error.errno if error.errno in errno.errorcode else None
  if match := _ERRNO_IN_TEXT.search(str(error)):
    return int(match[1])
  if match := _CAUSE_TEXT.search(str(error)):
    return _ERRNO_OF_TEXT[match[0].lower()]
  return errno.ENOENT if str(error).startswith(_NOT_FOUND) else None


def read_failure_message(error: BaseException) -> str | None:
  """Returns a sentence on a file that the system failed to read, else `None`.

  Examples are a failing device and a missing permission; a missing file is not one.

  >>> read_failure_message(OSError(errno.EIO, 'Input/output error', 'a.json'))
  'a.json cannot be read: input/output error'
  >>> read_failure_message(FileNotFoundError(errno.ENOENT, 'No such file', 'a.json'))
  """
  if isinstance(error, Exception) and _is_error_of_bucket(error):
    return f'a bucket cannot be read: {_one_line(error)}'
  if not isinstance(error, OSError) or error.filename is None:
    return None
  number = _error_number(error)
  if number is None or number in _WRONG_PATHS:
    return None
  file = os.fsdecode(error.filename)
  cause = os.strerror(number)
  if file.startswith('gs://'):
    cause = error.strerror or cause
  return f'{file} cannot be read: {_lower(cause)}'


def first_storage_error(error: BaseException | None) -> StorageError | None:
  """Returns the earliest `StorageError` that led to an error, if any.

  Closing files after a failed write fails again; the first error names the
  cause.
  """
  first = None
  while error is not None:
    if isinstance(error, StorageError):
      first = error
    error = error.__cause__ or error.__context__
  return first


def _cause(error: BaseException | None, *, in_bucket: bool) -> str | None:
  """Returns the reason of a failed write; `None` for other errors."""
  last_error = error
  while error is not None:
    number = _error_number(error)
    if number is not None:
      return _lower(os.strerror(number))
    if _NO_THREAD in str(error):
      return _NO_THREAD
    error = _origin(error)
  if in_bucket and last_error is not None:
    return _one_line(last_error)
  return None


def _one_line(error: BaseException) -> str:
  """Returns the beginning of an error's message, else the name of its type."""
  return ' '.join(str(error).split())[:200] or type(error).__name__


def _lower(text: str) -> str:
  return text[:1].lower() + text[1:]
