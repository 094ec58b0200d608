# SPDX-License-Identifier: Apache-2.0
"""Errors of invalid input, which are reported in one sentence.

With `COVRL_TRACEBACK` set in the environment, all errors keep their traceback.
"""

from __future__ import annotations

import os
import pathlib
import sys
import traceback

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


def print_refusal(error: BaseException) -> None:
  """Prints an error of invalid input as one sentence on standard error."""
  print(f'covrl: {error}', file=sys.stderr)
