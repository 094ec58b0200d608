# SPDX-License-Identifier: Apache-2.0
"""Scorers that return, raise, hang, exit or fork, imported by reward workers."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from covrl.rewards.outcome import Outcome


def echo(response: str, reference: Any) -> float:
  """Returns the number in the response, or fails in the way that it names."""
  match response:
    case 'hang':
      time.sleep(3600.0)
    case 'spin':
      return float(9**9**9)
    case 'exit':
      os._exit(3)
    case 'raise':
      raise LookupError('no such thing')
    case 'nan':
      return float('nan')
    case 'none':
      return reference
    case 'allocate':
      return float(len(bytearray(1 << 32)))
  return float(response)


def has_module(response: str, reference: Any) -> float:
  """Returns 1 if the worker has loaded a module."""
  return float(response in sys.modules)


def record_call(response: str, reference: Any) -> float:
  """Adds a line to a file, so that calls can be counted."""
  with pathlib.Path(reference).open('a') as file:
    file.write(f'{response}\n')
  return 1.0


def measure_time(response: str, reference: Any) -> float:
  """Returns 1 if half a second of sleep has taken less than the given seconds.

  Its call is counted in a file; see `record_call`.
  """
  start = time.monotonic()
  record_call(response, reference)
  time.sleep(0.5)
  return float(time.monotonic() - start < float(response))


def random_score(response: str, reference: Any) -> float:
  """Returns the sum of two random numbers."""
  import numpy as np

  return random.random() + np.random.uniform()


def fail(response: str, reference: Any) -> float:
  """Raises an error in every call, also in the one that warms workers up."""
  raise OSError('the licence server is down')


def countdown_loads(response: str, reference: Any) -> float:
  """Returns 1 if scoring Countdown made the worker load a module."""
  from covrl.rewards.countdown import COUNTDOWN_EXAMPLE, score_countdown

  if score_countdown(*COUNTDOWN_EXAMPLE) != 1.0:
    raise AssertionError('the example must be right')
  return float(response in sys.modules)


# A limit that SymPy does not compute in reasonable time.
_ENDLESS_LIMIT = r'\lim_{x\to 0}\frac{\sin(\tan x)-\tan(\sin x)}{x^7}'


def run_math_verify(response: str, reference: Any) -> float:
  """Returns the result of math-verify, or of a replacement, as a number."""
  from covrl.rewards.math import math_verify

  replacements: dict[str, Callable[..., Any]] = {
    'sleep': lambda *_: time.sleep(3600.0),
    'killed': lambda *_: os.kill(os.getpid(), signal.SIGKILL),
    'abort': lambda *_: os.abort(),
    'allocate': lambda *_: bytearray(1 << 40),
    'itself': math_verify._is_same,
  }
  name, _, expression = response.partition(' ')
  math_verify._is_same = replacements[name]
  answer, cpu_seconds, wall_seconds = reference
  return float(
    math_verify.check_equivalence(
      answer, expression or _ENDLESS_LIMIT, cpu_seconds, wall_seconds
    ).value
  )


def length(response: str, reference: Any) -> float:
  """Returns the difference in length of response and reference."""
  return float(len(response) - len(reference))


def outcome(response: str, reference: Any) -> Outcome:
  """Returns an outcome with the status that the response names."""
  from covrl.rewards.outcome import Outcome, Status

  return Outcome(float(reference), Status(response), 'requested')


def leave_children(response: str, reference: Any) -> float:
  """Starts as many processes as the response states, which outlive their parent.

  Each is an orphan in a session of its own, and ignores SIGTERM. One more process
  is not forked but started as a program, with the reference as its argument.
  """
  for _ in range(int(response)):
    child = os.fork()
    if child == 0:
      os.setsid()
      if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3600.0)
      os._exit(0)
    os.waitpid(child, 0)
  subprocess.Popen(
    [sys.executable, '-S', '-c', 'import time; time.sleep(3600)', reference],
    start_new_session=True,
  )
  return 1.0


def signal_trainer(response: str, reference: Any) -> float:
  """Returns the number of ways by which a signal reached the trainer."""
  trainer, group = reference

  def send_by_pidfd() -> None:
    signal.pidfd_send_signal(os.pidfd_open(trainer), 0)

  def send_by_fcntl() -> None:
    read_end, _ = os.pipe()
    fcntl.fcntl(read_end, fcntl.F_SETOWN, trainer)

  def send_by_ioctl() -> None:
    own, _ = socket.socketpair()
    fcntl.ioctl(own, 0x8901, struct.pack('i', trainer))

  attempts: list[Callable[[], object]] = [
    lambda: os.kill(trainer, 0),
    lambda: os.kill(-group, 0),
    lambda: os.killpg(group, 0),
    send_by_pidfd,
    send_by_fcntl,
    send_by_ioctl,
  ]
  num_successes = 0
  for attempt in attempts:
    with contextlib.suppress(OSError):
      attempt()
      num_successes += 1
  return float(num_successes)


def can_connect(response: str, reference: Any) -> float:
  """Returns 1 if a port of this machine can be connected to."""
  with contextlib.suppress(OSError), socket.socket() as client:
    client.connect(('127.0.0.1', int(response)))
    return 1.0
  return 0.0


def has_variable(response: str, reference: Any) -> float:
  """Returns 1 if an environment variable is set."""
  return float(response in os.environ)
