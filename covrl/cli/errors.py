# SPDX-License-Identifier: Apache-2.0
"""Errors that are reported in one sentence: invalid input, failing storage.

With `COVRL_TRACEBACK` set in the environment, all errors keep their traceback.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import sys
import traceback
from collections.abc import Iterator

from covrl.exit_codes import Exit

_PACKAGE = pathlib.Path(__file__).parents[1]


class EarlyExitError(RuntimeError):
  """A recipe or a library has called `sys.exit` with the status of success."""


@contextlib.contextmanager
def refuse_exit() -> Iterator[None]:
  """Context in which an exit with status 0 is an error.

  A command that has not finished must not end as one that has.

  Raises:
    EarlyExitError: the status was 0. Exits with other statuses remain.
  """
  try:
    yield
  except SystemExit as error:
    if error.code:
      raise
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raise EarlyExitError(
      f'recipes must not end the command, got sys.exit({error.code!r}) in'
      f' {frame.filename}, line {frame.lineno}'
    ) from None


def is_refusal(error: BaseException) -> bool:
  """Returns whether covrl itself raised `error` because of invalid input.

  The errors of other libraries and of recipes are not refusals. A `TypeError`
  is one if a statement of covrl raises it.
  """
  if os.environ.get('COVRL_TRACEBACK'):
    return False
  frames = traceback.extract_tb(error.__traceback__)
  if not frames or _PACKAGE not in pathlib.Path(frames[-1].filename).parents:
    return False
  # JAX leaves its own frames out of the tracebacks of failed programs.
  if type(error).__module__.partition('.')[0] in ('jax', 'jaxlib'):
    return False
  if isinstance(error, TypeError):
    return (frames[-1].line or '').startswith('raise')
  return isinstance(error, ValueError | RuntimeError | FileNotFoundError)


def _is_invalid_jax_setting(error: BaseException) -> bool:
  """Returns whether JAX raised `error` because of a variable of the environment."""
  return isinstance(error, ValueError) and any(
    frame.name == '<module>' and frame.filename.endswith('jax/_src/config.py')
    for frame in traceback.extract_tb(error.__traceback__)
  )


def report_error(error: BaseException) -> Exit | None:
  """Prints an expected error as one sentence on standard error.

  Returns:
    The exit status; `None` for an unexpected error, which is not printed.
  """
  from covrl import storage

  write_error = storage.first_storage_error(error)
  if write_error is not None and not os.environ.get('COVRL_TRACEBACK'):
    print(f'covrl: {write_error}', file=sys.stderr)
    return Exit.STORAGE
  read_error = storage.read_failure_message(error)
  if read_error is not None and not os.environ.get('COVRL_TRACEBACK'):
    print(f'covrl: {read_error}', file=sys.stderr)
    return Exit.STORAGE
  if _is_invalid_jax_setting(error):
    print(
      f'covrl: settings of JAX must be valid, got: {error}', file=sys.stderr
    )
    return Exit.REFUSED
  if is_refusal(error):
    print(f'covrl: {error}', file=sys.stderr)
    return getattr(error, 'exit_status', Exit.REFUSED)
  return None
