# SPDX-License-Identifier: Apache-2.0
"""The trainer's end of the connection to a reward worker.

Messages to the worker are pickled. Replies are read as lines of JSON of limited
length, with a deadline, and never unpickled: a scorer that writes to the connection
itself executes nothing in the trainer and does not block it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from multiprocessing.connection import Connection
from typing import Any

from covrl.parallel.running_time import RunningTime

# Bytes of a reply; workers cut texts to fewer.
_MAX_REPLY_BYTES = 2**16
# Seconds between two looks for a reply, so that a stop of this process is noticed.
# Twice as long a pause counts as one, which compilation causes rarely.
_POLL_SECONDS = 1.0
# Bytes of the first reply, which lists the files that a worker has loaded.
MAX_FIRST_REPLY_BYTES = 2**22


class ReplyError(Exception):
  """A malformed reply."""


class WorkerChannel:
  """A connection to a worker.

  Args:
    trainer_end: the trainer's socket, which the channel closes.
    send_timeout: seconds after which a worker that does not read is given up.

  Attributes:
    was_stopped: whether this process was stopped during the latest wait for a
      reply, and the worker perhaps with it.
  """

  def __init__(self, trainer_end: socket.socket, send_timeout: float) -> None:
    seconds = struct.pack('ll', int(send_timeout) + 1, 0)
    trainer_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    self._connection = Connection(trainer_end.detach())
    self._received = b''
    self.was_stopped = False

  def send(self, message: object) -> None:
    """Sends an object.

    Raises:
      OSError: the worker has ended or does not read.
    """
    self._connection.send(message)

  def receive(
    self, timeout: float, max_size: int = _MAX_REPLY_BYTES
  ) -> list[Any]:
    """Waits for a reply.

    Args:
      timeout: seconds until all of it must be there; those for which this process
        was stopped do not count.
      max_size: bytes of a reply, at most.

    Raises:
      TimeoutError: the time is over.
      EOFError: the worker has ended.
      OSError: the connection is broken.
      ReplyError: the reply is not a list in JSON, or too long.
    """
    self.was_stopped = False
    waited = RunningTime(_POLL_SECONDS)
    while b'\n' not in self._received:
      if len(self._received) > max_size:
        raise ReplyError
      seconds_left = max(timeout - waited.read(), 0.0)
      is_readable = self._connection.poll(min(seconds_left, _POLL_SECONDS))
      waited.read()
      self.was_stopped = waited.was_stopped
      if not is_readable:
        if seconds_left:
          continue
        raise TimeoutError
      chunk = os.read(self._connection.fileno(), _MAX_REPLY_BYTES)
      if not chunk:
        raise EOFError
      self._received += chunk
    line, _, self._received = self._received.partition(b'\n')
    try:
      reply = json.loads(line)
    except (ValueError, RecursionError):
      raise ReplyError from None
    if not isinstance(reply, list):
      raise ReplyError
    return reply

  def close(self) -> None:
    """Closes the connection."""
    self._connection.close()
