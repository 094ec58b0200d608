# SPDX-License-Identifier: Apache-2.0
"""Errors that Orbax repeats after a failed save are not reported."""

import asyncio
import errno
import gc
import logging
import os
import socket
import sys
import warnings

import pytest

from covrl.storage.orbax_errors import without_repeated_errors


@pytest.fixture
def reports(monkeypatch):
  """Errors that the interpreter reports without raising them."""
  errors: list[object] = []
  # What earlier tests left may report errors, too.
  gc.collect()
  filters = list(logging.getLogger('absl').filters)
  monkeypatch.setattr(
    sys, 'unraisablehook', lambda raised: errors.append(raised)
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    warnings.simplefilter('error', RuntimeWarning)
    yield errors
  logging.getLogger('absl').filters[:] = filters


def fail_to_make_an_event_loop(monkeypatch):
  """Leaves an event loop and a coroutine unfinished, as without descriptors."""

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
    without_repeated_errors(),
  ):
    fail_to_make_an_event_loop(monkeypatch)
  gc.collect()
  assert reports == []


def test_other_errors_are_reported_and_a_save_that_succeeds_changes_nothing(
  reports,
):
  class Broken:
    def __del__(self):
      raise ValueError

  hook, filters_before = sys.unraisablehook, list(warnings.filters)
  with without_repeated_errors():
    assert sys.unraisablehook is not hook
    Broken()
  gc.collect()
  assert len(reports) == 1
  assert sys.unraisablehook is hook
  assert list(warnings.filters) == filters_before
