# SPDX-License-Identifier: Apache-2.0
"""Scorers with all kinds of behaviour, imported by workers."""

from __future__ import annotations

import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from covrl.rewards.outcome import Outcome


def echo(response: str, reference: Any) -> float:
  """Behaves as the response states."""
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


def mark(response: str, reference: Any) -> float:
  """Adds a line to a file, so that calls can be counted."""
  with pathlib.Path(reference).open('a') as file:
    file.write(f'{response}\n')
  return 1.0


def refuse(response: str, reference: Any) -> float:
  """Never works, not even to warm up."""
  raise OSError('the licence server is down')


def countdown_loads(response: str, reference: Any) -> float:
  """Returns 1 if scoring Countdown made the worker load a module."""
  from covrl.rewards.countdown import COUNTDOWN_EXAMPLE, score_countdown

  if score_countdown(*COUNTDOWN_EXAMPLE) != 1.0:
    raise AssertionError('the example must be right')
  return float(response in sys.modules)


_FOREVER = r'\lim_{x\to 0}\frac{\sin(\tan x)-\tan(\sin x)}{x^7}'


def ask_math_verify(response: str, reference: Any) -> float:
  """Returns the result of math-verify, or of a replacement, as a number."""
  from covrl.rewards.math import math_verify

  players: dict[str, Callable[..., Any]] = {
    'sleep': lambda *_: time.sleep(3600.0),
    'abort': lambda *_: os.abort(),
    'allocate': lambda *_: bytearray(1 << 40),
    'itself': math_verify._is_same,
  }
  player, _, question = response.partition(' ')
  math_verify._is_same = players[player]
  wanted, seconds, patience = reference
  asked = question or _FOREVER
  return float(
    math_verify.check_equivalence(wanted, asked, seconds, patience).value
  )


def length(response: str, reference: Any) -> float:
  """Returns the difference in length of response and reference."""
  return float(len(response) - len(reference))


def outcome(response: str, reference: Any) -> Outcome:
  """Returns an outcome with the status that the response names."""
  from covrl.rewards.outcome import Outcome, Status

  return Outcome(float(reference), Status(response), 'as asked')
