# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin: CPU time of every test, its child processes included.

  python -m pytest -n 2 --dist loadfile -p cpu_time --cpu-time=cpu_time.json

The summary gives core minutes per test directory; the file gives seconds per
test. Time spent on collection and on importing is not included.
"""

from __future__ import annotations

import collections
import json
import os
import pathlib
from collections.abc import Generator

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption('--cpu-time', help='file for CPU seconds per test, as JSON')


def pytest_configure(config: pytest.Config) -> None:
  if file := config.getoption('--cpu-time'):
    recorder = _CpuTime(pathlib.Path(str(file)))
    config.pluginmanager.register(recorder, 'cpu_time_recorder')


def _cpu_seconds() -> float:
  """User and system time of this process and its finished children."""
  times = os.times()
  return times.user + times.system + times.children_user + times.children_system


class _CpuTime:
  """Measures every phase of every test and sums the phases by test."""

  def __init__(self, file: pathlib.Path) -> None:
    self._file = file
    self._last = _cpu_seconds()
    self._seconds: dict[str, float] = collections.defaultdict(float)

  @pytest.hookimpl(wrapper=True)
  def pytest_runtest_makereport(
    self, item: pytest.Item
  ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    now = _cpu_seconds()
    report.user_properties.append((f'cpu_{report.when}', now - self._last))
    self._last = now
    return report

  def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
    for name, seconds in report.user_properties:
      if name == f'cpu_{report.when}':
        self._seconds[report.nodeid] += float(str(seconds))

  def pytest_terminal_summary(
    self, terminalreporter: pytest.TerminalReporter
  ) -> None:
    by_package: dict[str, float] = collections.defaultdict(float)
    for name, seconds in self._seconds.items():
      parts = pathlib.PurePath(name.split('::')[0].split('@')[0]).parts
      by_package['/'.join(parts[:2])] += seconds
    for package, seconds in sorted(by_package.items()):
      terminalreporter.write_line(f'{package:32} {seconds / 60:6.2f}')
    total = sum(by_package.values())
    terminalreporter.write_line(f'core minutes in all: {total / 60:.1f}')
    self._file.write_text(json.dumps(self._seconds, indent=1))
