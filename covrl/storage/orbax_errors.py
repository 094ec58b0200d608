# SPDX-License-Identifier: Apache-2.0
"""Errors of Orbax that it prints and raises, too."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def without_repeated_errors() -> Iterator[None]:
  """Hides the tracebacks that Orbax prints of an error that it also raises.

  Its threads log each failed file, TensorStore reports reads and writes that end
  after the first error has closed their event loop, and without descriptors there are
  coroutines without a loop and loops without a pipe. They may do so after the
  context, which therefore ends only without an error.
  """
  if os.environ.get('COVRL_TRACEBACK'):
    yield
    return
  logger, hook = logging.getLogger('absl'), sys.unraisablehook

  def is_own(record: logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  def report(raised: Any) -> None:
    text = str(raised.exc_value)
    if text != 'Event loop is closed' and "no attribute '_ssock'" not in text:
      hook(raised)

  logger.addFilter(is_own)
  sys.unraisablehook = report
  warning_filters = warnings.catch_warnings()
  warning_filters.__enter__()
  warnings.filterwarnings(
    'ignore', "coroutine '.*' was never awaited", RuntimeWarning
  )
  yield
  warning_filters.__exit__(None, None, None)
  sys.unraisablehook = hook
  logger.removeFilter(is_own)
