# SPDX-License-Identifier: Apache-2.0
"""A scorer with invalid results, errors and side effects, imported by workers."""

from __future__ import annotations

import json
import os
import pickle
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

# A text larger than the buffer of a pipe.
MEGABYTES = 'x' * 2**22


class Outcome:
  """A class with the fields of `covrl.rewards.Outcome` that is not that class."""

  def __init__(self, score: Any, status: Any, detail: Any) -> None:
    self.score, self.status, self.detail = score, status, detail


class Status:
  """A class with the field of `covrl.rewards.Status` that is not that class."""

  def __init__(self, value: Any) -> None:
    self.value = value


class NoText:
  """An object whose `repr` raises."""

  def __repr__(self) -> str:
    raise LookupError('no text')


class UnprintableError(Exception):
  """An error whose `str` raises."""

  def __str__(self) -> str:
    raise LookupError('no text')


class Unpickled:
  """An object that creates a file when it is unpickled."""

  def __init__(self, path: str) -> None:
    self.path = path

  def __reduce__(self) -> Any:
    return open, (self.path, 'w')


def raise_(error: BaseException) -> Any:
  """Raises an error."""
  raise error


def sockets() -> list[int]:
  """Returns the connections of this process: its channel to the trainer."""
  return [
    int(name) for name in os.listdir('/proc/self/fd') if _is_socket(int(name))
  ]


def _is_socket(descriptor: int) -> bool:
  try:
    return stat.S_ISSOCK(os.fstat(descriptor).st_mode)
  except OSError:
    return False


def write_to_trainer(data: bytes) -> float:
  """Writes bytes to the trainer, as a faulty library might."""
  for descriptor in sockets():
    os.write(descriptor, data)
  return 1.0


def framed(content: object) -> bytes:
  """Returns an object as a message of `multiprocessing.connection`."""
  data = pickle.dumps(content)
  return len(data).to_bytes(4, 'big') + data


def fork(response: str) -> float:
  """Forks, so that two processes return a score."""
  del response
  os.fork()
  return 1.0


def close_all() -> float:
  """Closes all descriptors."""
  os.closerange(3, 64)
  return 1.0


def print_much() -> float:
  """Writes megabytes to standard output and error."""
  for descriptor in (1, 2):
    os.write(descriptor, MEGABYTES.encode())
  print(MEGABYTES)
  return 1.0


def stop_later() -> float:
  """Stops this process (SIGSTOP) soon after it has returned its score."""
  code = 'import os, sys, time; time.sleep(0.3); os.kill(int(sys.argv[1]), 19)'
  subprocess.Popen([sys.executable, '-S', '-c', code, str(os.getpid())])
  return 1.0


def score(response: str, reference: Any) -> Any:
  """Does what the response names; any other response is the score, in JSON."""
  results: dict[str, Callable[[], Any]] = {
    'float32': lambda: np.float32(0.5),
    'int64': lambda: np.int64(2),
    'bool_': lambda: np.bool_(True),
    'array': lambda: np.asarray(0.25),
    'arrays': lambda: np.asarray([0.25, 0.5]),
    'text': lambda: '1.0',
    'list': lambda: [1.0],
    'generator': lambda: (x for x in (1.0,)),
    'dict': lambda: dict.fromkeys(range(300_000), 0),
    'huge': lambda: 10**400,
    'complex': lambda: 1j,
    'no text': NoText,
    'unprintable': lambda: raise_(UnprintableError()),
    'surrogate': lambda: raise_(ValueError('\ud800')),
    'long': lambda: raise_(ValueError(MEGABYTES)),
    'exit': lambda: raise_(SystemExit(3)),
    'status': lambda: Outcome(1.0, Status('fine'), ''),
    'no status': lambda: Outcome(1.0, None, ''),
    'score': lambda: Outcome('one', Status('scored'), ''),
    'nothing': lambda: Outcome(None, Status('scored'), ''),
    'detail': lambda: Outcome(1.0, Status('scored'), {'a': 1}),
    'long detail': lambda: Outcome(1.0, Status('scored'), MEGABYTES),
    'code': lambda: Outcome(1.0, Status('scored'), Unpickled(reference)),
    'half': lambda: write_to_trainer(b'\0\0\0\x64{"a'),
    'noise': lambda: write_to_trainer(b'\xff' * 100),
    'forged': lambda: write_to_trainer(framed(('scored', 5.0, ''))),
    'forged line': lambda: write_to_trainer(b'["scored", 5.0, ""]\n'),
    'forged code': lambda: write_to_trainer(framed(Unpickled(reference))),
    'deep': lambda: write_to_trainer(b'[' * 20_000 + b'\n'),
    'much': lambda: write_to_trainer(b'1' * 2**17),
    'fork': lambda: fork(response),
    'close': close_all,
    'print': print_much,
    'stop later': stop_later,
    'shutdown': lambda: [
      socket.socket(fileno=os.dup(s)).shutdown(socket.SHUT_RDWR)
      for s in sockets()
    ],
  }
  if response in results:
    return results[response]()
  return float(json.loads(response))
