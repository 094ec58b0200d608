# SPDX-License-Identifier: Apache-2.0
"""Errors that are reported in one sentence: invalid input and failed writes.

With `COVRL_TRACEBACK` set in the environment, all errors keep their traceback.
"""

from __future__ import annotations

import os
import pathlib
import sys
import traceback

from covrl.exit_codes import Exit

_PACKAGE = pathlib.Path(__file__).parents[1]


def is_refusal(error: BaseException) -> bool:
  """Returns whether covrl itself raised `error` because of invalid input.

  The errors of other libraries and of recipes are not refusals.
  """
  if os.environ.get('COVRL_TRACEBACK'):
    return False
  if not isinstance(error, ValueError | RuntimeError | FileNotFoundError):
    return False
  frames = traceback.extract_tb(error.__traceback__)
  return bool(frames) and _PACKAGE in pathlib.Path(frames[-1].filename).parents


def report_error(error: BaseException) -> Exit | None:
  """Prints an error that has a sentence on standard error.

  Returns:
    The exit status; `None` for an unexpected error, which is not printed.
  """
  from covrl import storage

  unwritten = storage.first_storage_error(error)
  if unwritten is not None and not os.environ.get('COVRL_TRACEBACK'):
    print(f'covrl: {unwritten}', file=sys.stderr)
    return Exit.STORAGE
  if is_refusal(error):
    print(f'covrl: {error}', file=sys.stderr)
    return getattr(error, 'exit_status', Exit.REFUSED)
  return None
