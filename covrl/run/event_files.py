# SPDX-License-Identifier: Apache-2.0
"""TensorBoard's event files of scalars, one directory per phase of a run.

Each start of a run opens a file of its own. Its first event makes TensorBoard
drop later steps of earlier files, which were written after the checkpoint
that is resumed.

tensorboardX provides the format. Its own writers are not used: they write in a
thread, where a full disk is a traceback and then a deadlock.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.storage.log_files import AppendFile

# Bytes before and after the content of a record: its length and checksum, and
# the content's checksum.
_HEADER, _FOOTER = 12, 4

# Beginning of a file's name, and the time stamp after it.
_PREFIX = 'events.out.tfevents.'
_STAMP = re.compile(rf'{re.escape(_PREFIX)}([0-9]+)\.')


class EventFiles:
  """Writes the scalars of metric lines, by phase: each counts its own steps.

  In a bucket the files are uploaded at every `flush`.

  Args:
    directory: directory of all phases.
    last_steps: last step of each phase at the checkpoint that is resumed.
    saved: states of the intact files, which `check_event_files` returns.
    warn: receives a sentence for each file that another program has changed or
      removed during the run.
  """

  def __init__(
    self,
    directory: epath.Path,
    last_steps: Mapping[str, int],
    saved: Mapping[str, str] | None = None,
    warn: Callable[[str], object] = lambda text: None,
  ) -> None:
    self._directory, self._warn = directory, warn
    # Events are appended to local files, because a bucket cannot append.
    self._local_directory = (
      storage.temporary_directory()
      if storage.is_bucket(directory)
      else pathlib.Path(directory)
    )
    self._last_steps = last_steps
    self._files: dict[str, AppendFile] = {}
    # Name, size and digest of this process's files; the states of all others.
    self._written: dict[str, _WrittenFile] = {}
    self._other_states = dict(saved or {})

  def write(self, step: int, phase: str, line: Mapping[str, Any]) -> None:
    """Writes the numbers of a metric line."""
    if phase not in self._files:
      self._files[phase] = self._open(phase)
    self._require_intact(phase)
    scalars = {k: v for k, v in line.items() if isinstance(v, float)}
    values = [
      {'tag': re.sub(r'[^-/\w.]', '_', name), 'simple_value': value}
      for name, value in scalars.items()
    ]
    self._append(phase, step=step, summary={'value': values})

  def states(self) -> dict[str, str]:
    """Returns `'SIZE:SHA-256'` of every file, by its path below the directory.

    `check_event_files` compares them when a run is resumed.
    """
    states: dict[str, str] = {}
    for phase in storage.entries(self._directory):
      for file in storage.entries(phase):
        if not file.name.startswith(_PREFIX):
          continue  # A copy of a damaged file.
        name = f'{phase.name}/{file.name}'
        written = self._written.get(phase.name)
        if written is not None and written.name == file.name:
          states[name] = written.state
          continue
        # Files of earlier processes no longer change.
        if name not in self._other_states:
          self._other_states[name] = _state(file.read_bytes())
        states[name] = self._other_states[name]
    for name in sorted(self._other_states.keys() - states.keys()):
      del self._other_states[name]
      self._warn(f'{self._directory / name} was removed; its events are lost')
    return states

  def flush(self) -> None:
    """Uploads the files, if they belong in a bucket."""
    if storage.is_bucket(self._directory):
      storage.upload(self._local_directory, self._directory)

  def sync(self) -> None:
    """Forces all events to the disk, so that a power cut loses none."""
    for phase in self._files:
      self._require_intact(phase)
      self._files[phase].sync()
    self.flush()

  def close(self) -> None:
    """Closes all files."""
    for file in self._files.values():
      file.close()
    self.flush()

  def _require_intact(self, phase: str) -> None:
    """Writes a file again that another program has removed, replaced or changed."""
    file, written = self._files[phase], self._written[phase]
    if file.is_intact():
      return
    content = file.read()
    file.close()
    path = self._local_directory / phase / written.name
    text = f'{path} was moved, replaced or changed by another program'
    if _state(content) != written.state:
      content = content[: _valid_size(content)]
      text += f'; {len(content):,} bytes of its events are left'
    storage.write_atomically(epath.Path(path), content)
    self._files[phase] = AppendFile(path)
    self._written[phase] = _WrittenFile(written.name)
    self._written[phase].add(content)
    self._warn(text)

  def _open(self, phase: str) -> AppendFile:
    """Begins a file; purges events that are later than the checkpoint."""
    names = [file.name for file in (self._directory / phase).glob('*')]
    num_earlier = len(names)
    # TensorBoard reads files in the order of their names; the clock may go back.
    stamps = [int(m[1]) for m in map(_STAMP.match, names) if m]
    stamp = max(
      [int(time.time()), *(earlier_stamp + 1 for earlier_stamp in stamps)]
    )
    name = f'{_PREFIX}{stamp:010d}.{socket.gethostname()}.{num_earlier}'
    self._files[phase] = AppendFile(self._local_directory / phase / name)
    self._written[phase] = _WrittenFile(name)
    self._append(phase, file_version='brain.Event:2')
    if num_earlier:
      first = self._last_steps.get(phase, -1) + 1
      # Status 1 is START.
      self._append(phase, step=first, session_log={'status': 1})
    return self._files[phase]

  def _append(self, phase: str, **fields: Any) -> None:
    from tensorboardX.proto import event_pb2

    # Generated at import, unknown to type checkers.
    event = vars(event_pb2)['Event'](wall_time=time.time(), **fields)
    record = _record(event.SerializeToString())
    self._files[phase].append(record)
    self._written[phase].add(record)


class _WrittenFile:
  """Name, size and digest of a file that this process writes."""

  def __init__(self, name: str) -> None:
    self.name = name
    self._size = 0
    self._digest = hashlib.sha256()

  @property
  def state(self) -> str:
    """`'SIZE:SHA-256'` of the content written so far."""
    return f'{self._size}:{self._digest.hexdigest()}'

  def add(self, content: bytes) -> None:
    """Adds appended content to size and digest."""
    self._size += len(content)
    self._digest.update(content)


def check_event_files(
  directory: epath.Path,
  states: Mapping[str, str],
  warn: Callable[[str], object],
) -> dict[str, str]:
  """Sets aside event files that differ from those at the checkpoint.

  They are shorter, have a damaged record, or begin with other events. A record that
  is damaged after the saved ones is left as it is: TensorBoard ignores it.

  Args:
    directory: directory of all phases.
    states: see `EventFiles.states`.
    warn: receives a sentence for each damaged file.

  Returns:
    The states of the files that do not differ.
  """
  intact: dict[str, str] = {}
  for name, state in states.items():
    size = int(state.partition(':')[0])
    file = directory / name
    content = storage.read_bytes(file) if storage.is_regular_file(file) else b''
    valid_size = _valid_size(content)
    if valid_size >= size:
      if _state(content[:size]) == state:
        intact[name] = state
        continue
      valid_size = 0
      text = f'{file} has other events than those that were saved'
    else:
      text = f'{file} has {valid_size:,} of the {size:,} bytes of events that were saved'
    if content:
      # TensorBoard reads every file with "tfevents" in its name.
      copy = file.with_name(file.name.replace('tfevents', 'damaged'))
      copy = storage.numbered_sibling(copy, 'copy')
      storage.write_atomically(copy, content)
      storage.write_atomically(file, content[:valid_size])
      text += f'; the file is kept as {copy.name}'
    warn(text)
  return intact


def _state(content: bytes) -> str:
  """Returns the size and the digest of events."""
  return f'{len(content)}:{hashlib.sha256(content).hexdigest()}'


def _record(content: bytes) -> bytes:
  """Returns an event as TensorBoard stores it."""
  length = len(content).to_bytes(8, 'little')
  return length + _checksum(length) + content + _checksum(content)


def _valid_size(content: bytes) -> int:
  """Returns the number of bytes before the first damaged record."""
  begin = 0
  while begin + _HEADER <= len(content):
    length = content[begin : begin + 8]
    end = begin + _HEADER + int.from_bytes(length, 'little')
    if (
      content[begin + 8 : begin + _HEADER] != _checksum(length)
      or end + _FOOTER > len(content)
      or content[end : end + _FOOTER]
      != _checksum(content[begin + _HEADER : end])
    ):
      break
    begin = end + _FOOTER
  return begin


def _checksum(content: bytes) -> bytes:
  from tensorboardX.record_writer import masked_crc32c

  return masked_crc32c(content).to_bytes(4, 'little')
