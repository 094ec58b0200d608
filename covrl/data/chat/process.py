# SPDX-License-Identifier: Apache-2.0
"""A process that renders chat templates, with limits on time and memory.

Templates come with models of any origin, and limits inside an interpreter cannot
stop every expression. One process renders all templates. It ends when its
standard input is closed, so it does not survive this process.
"""

from __future__ import annotations

import atexit
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import Any

MAX_SECONDS = 2
"""CPU time of rendering one conversation."""

MAX_CHARACTERS = 4_000_000
"""Length of a formatted conversation."""

MAX_MEMORY = 512 * 1024**2
"""Address space of the process, in bytes."""

# Signals that no template causes: the system's when memory runs out, a user's.
_SENT_FROM_OUTSIDE = (
  signal.SIGKILL,
  signal.SIGTERM,
  signal.SIGINT,
  signal.SIGHUP,
)

_PROGRAM = pathlib.Path(__file__).with_name('program.py')


class ProcessEndedError(ValueError):
  """The template ended the process that rendered it."""


class RenderingProcess:
  """Renders templates in a process that is started when it is needed.

  It may be called from several threads, one of which waits for another.
  """

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._process: subprocess.Popen[bytes] | None = None
    self._owner_pid = 0
    atexit.register(self.close)

  def render(self, request: Mapping[str, Any]) -> dict[str, str]:
    """Returns the reply to a request, see `covrl.data.chat.program`.

    Args:
      request: JSON values; the limits are added to them.

    Raises:
      ProcessEndedError: rendering takes too much time or memory, or the process
        was killed twice.
      TypeError: the request is not JSON.
    """
    limits = {'characters': MAX_CHARACTERS, 'seconds': MAX_SECONDS}
    line = json.dumps({**request, **limits}).encode() + b'\n'
    with self._lock:
      reply = self._reply(line)
      if isinstance(reply, int) and -reply in _SENT_FROM_OUTSIDE:
        reply = self._reply(line)
      if isinstance(reply, int):
        raise ProcessEndedError(_reason(reply))
      return json.loads(reply)

  def close(self) -> None:
    """Ends the process."""
    if self._process is not None and self._owner_pid == os.getpid():
      _end(self._process)
    self._process = None

  def _reply(self, line: bytes) -> bytes | int:
    """Returns the reply to a line, or the exit status of the process that ended."""
    process = self._running_process()
    try:
      reply = _exchange(process, line)
    except BaseException:
      # An interrupted exchange leaves a reply that the next one would read.
      self._process = None
      process.kill()
      _end(process)
      raise
    if reply.endswith(b'\n'):
      return reply
    self._process = None
    return _end(process)

  def _running_process(self) -> subprocess.Popen[bytes]:
    """Returns the rendering process; starts one, also after a fork."""
    if self._process is None or self._owner_pid != os.getpid():
      self._process = subprocess.Popen(
        [sys.executable, '-P', str(_PROGRAM), str(MAX_MEMORY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        # Ctrl-C in a terminal then interrupts this process only.
        process_group=0,
      )
      self._owner_pid = os.getpid()
    return self._process


def _exchange(process: subprocess.Popen[bytes], line: bytes) -> bytes:
  """The reply to a request; incomplete if the process ends."""
  assert process.stdin is not None
  assert process.stdout is not None
  try:
    process.stdin.write(line)
    process.stdin.flush()
  except BrokenPipeError:
    return b''
  return process.stdout.readline()


def _end(process: subprocess.Popen[bytes]) -> int:
  """Closes the pipes of a process, and returns its exit status."""
  for stream in (process.stdin, process.stdout):
    try:
      if stream is not None:
        stream.close()
    except BrokenPipeError:
      pass
  return process.wait()


def _reason(status: int) -> str:
  """The cause of an exit status, for the error message."""
  if status == -signal.SIGXCPU:
    return f'more than {MAX_SECONDS} s of computing'
  if -status in _SENT_FROM_OUTSIDE:
    return (
      'the end of the process that renders it, which something else ended twice'
      f' ({signal.Signals(-status).name}); the memory of the machine may be full'
    )
  if status < 0:
    return (
      f'more than {MAX_MEMORY >> 20} MiB or too deep a nesting'
      f' ({signal.Signals(-status).name})'
    )
  return f'the end of the process that renders it, with exit status {status}'
