# SPDX-License-Identifier: Apache-2.0
"""A failed save is reported in one sentence, whatever its libraries leave behind."""

import asyncio
import errno
import gc
import logging
import os
import socket
import sys
import warnings

import pytest

from covrl.run.checkpoint_files import _without_repeated_errors


@pytest.fixture
def reports(monkeypatch):
  """Errors that the interpreter reports without raising them."""
  errors: list[object] = []
  filters = list(logging.getLogger('absl').filters)
  monkeypatch.setattr(
    sys, 'unraisablehook', lambda raised: errors.append(raised)
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    warnings.simplefilter('error', RuntimeWarning)
    yield errors
  logging.getLogger('absl').filters[:] = filters


def leave_behind(monkeypatch):
  """Begins what asyncio cannot finish without descriptors."""

  async def never():
    raise AssertionError

  def fail(*arguments):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

  coroutine = never()
  monkeypatch.setattr(socket, 'socketpair', fail)
  try:
    asyncio.new_event_loop()
  finally:
    del coroutine


def test_loops_and_coroutines_without_descriptors_are_not_reported(
  monkeypatch, reports
):
  with (
    pytest.raises(OSError, match='Too many open files'),
    _without_repeated_errors(),
  ):
    leave_behind(monkeypatch)
  gc.collect()
  assert reports == []


def test_other_errors_are_reported_and_a_save_that_succeeds_changes_nothing(
  reports,
):
  class Broken:
    def __del__(self):
      raise ValueError

  hook, shown = sys.unraisablehook, list(warnings.filters)
  with _without_repeated_errors():
    assert sys.unraisablehook is not hook
    Broken()
  gc.collect()
  assert len(reports) == 1
  assert sys.unraisablehook is hook
  assert list(warnings.filters) == shown
