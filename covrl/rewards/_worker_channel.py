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
import time
from multiprocessing.connection import Connection
from typing import Any

# Bytes of a reply; workers cut texts to fewer.
_MAX_REPLY_BYTES = 2**16
# Bytes of the first reply, which lists the files that a worker has loaded.
MAX_FIRST_REPLY_BYTES = 2**22


class ReplyError(Exception):
  """A malformed reply."""


class WorkerChannel:
  """A connection to a worker.

  Args:
    trainer_end: the trainer's socket, which the channel closes.
    send_timeout: seconds after which a worker that does not read is given up.
  """

  def __init__(self, trainer_end: socket.socket, send_timeout: float) -> None:
    seconds = struct.pack('ll', int(send_timeout) + 1, 0)
    trainer_end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
    self._connection = Connection(trainer_end.detach())
    self._received = b''

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
      timeout: seconds until all of it must be there.
      max_size: bytes of a reply, at most.

    Raises:
      TimeoutError: the time is over.
      EOFError: the worker has ended.
      OSError: the connection is broken.
      ReplyError: the reply is not a list in JSON, or too long.
    """
    deadline = time.monotonic() + timeout
    while b'\n' not in self._received:
      if len(self._received) > max_size:
        raise ReplyError
      if not self._connection.poll(max(deadline - time.monotonic(), 0.0)):
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
