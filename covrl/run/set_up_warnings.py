# SPDX-License-Identifier: Apache-2.0
"""Warnings of the set-up of a run, of all of its processes."""

from __future__ import annotations

from covrl.parallel import distributed
from covrl.run.directory import RunDirectory
from covrl.run.progress import WARNING, Progress


class SetUpWarnings:
  """Prints warnings, and adds those of all processes to the run's notices.

  Only process 0 prints and writes. Nothing is written before `publish`, since a
  set-up that fails leaves nothing, except by `warn`.

  Args:
    progress: prints notes and warnings.
    directory: the run directory.
  """

  def __init__(self, progress: Progress, directory: RunDirectory) -> None:
    self._progress = progress
    self._directory = directory
    self._texts: list[str] = []

  def note(self, text: str) -> None:
    """Prints a note, which is a warning if it begins with `'warning: '`."""
    self._progress.note(text)
    if text.startswith(WARNING):
      self._texts.append(text.removeprefix(WARNING))

  def warn(self, text: str) -> None:
    """Prints a warning, and adds it to the notices at once."""
    self._progress.warn(text)
    self._texts.append(text)
    self._directory.add_notice(text)

  def publish(self) -> None:
    """Adds all warnings to the notices, and prints those of other processes.

    All processes of a run call this together.
    """
    texts = self._texts
    of_processes = [texts]
    if distributed.process_count() > 1:
      of_processes = distributed.gather_objects(texts)
    for text in of_processes[0]:
      self._directory.add_notice(text)
    processes_by_text: dict[str, list[int]] = {}
    for process, others in enumerate(of_processes):
      for text in dict.fromkeys(others):
        processes_by_text.setdefault(text, []).append(process)
    for text, (first, *others) in processes_by_text.items():
      if first > 0:
        number = f' and {len(others):,} more' if others else ''
        self.warn(f'process {first}{number}: {text}')
    self._texts = []
