# SPDX-License-Identifier: Apache-2.0
"""Hides tracebacks of errors that Orbax both prints and raises."""

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

  They are logged by its threads for each failed file, by TensorStore for reads and
  writes that end after the event loop was closed, and, if no file descriptor is
  left, for coroutines and event loops that could not start. Some are printed after
  the context; after an error the filters therefore remain.
  """
  if os.environ.get('COVRL_TRACEBACK'):
    yield
    return
  logger, previous_hook = logging.getLogger('absl'), sys.unraisablehook

  def is_not_from_orbax(record: logging.LogRecord) -> bool:
    return f'{os.sep}orbax{os.sep}' not in record.pathname

  def report_unraisable(unraisable: Any) -> None:
    text = str(unraisable.exc_value)
    if text != 'Event loop is closed' and "no attribute '_ssock'" not in text:
      previous_hook(unraisable)

  logger.addFilter(is_not_from_orbax)
  sys.unraisablehook = report_unraisable
  warning_filters = warnings.catch_warnings()
  warning_filters.__enter__()
  warnings.filterwarnings(
    'ignore', "coroutine '.*' was never awaited", RuntimeWarning
  )
  yield
  warning_filters.__exit__(None, None, None)
  sys.unraisablehook = previous_hook
  logger.removeFilter(is_not_from_orbax)
