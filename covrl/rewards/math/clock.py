# SPDX-License-Identifier: Apache-2.0
"""Times of day: 3:00, 7:30 p.m., 19:30:00, noon."""

from __future__ import annotations

import re

from covrl.rewards.math import ast
from covrl.rewards.math.ast import Node

# Half of the day ('am' or 'pm') by the words after a time; empty for words that do
# not determine it. Below, the same for times that have a name.
_HALF_OF_DAY = {
  **dict.fromkeys(('am', 'in the morning', 'at night', 'midnight'), 'am'),
  **dict.fromkeys(('pm', 'in the afternoon', 'in the evening', 'noon'), 'pm'),
  **dict.fromkeys(('oclock', 'o clock', 'hours', 'hrs'), ''),
}
_NAMED_TIMES = {'noon': 'pm', 'midday': 'pm', 'midnight': 'am'}


def time_of_day(text: str) -> Node:
  """Returns a time of day, which may be a ratio if no number begins with 0.

  >>> time_of_day('7:05').value
  (7, 5, 0, '')

  Args:
    text: hours, minutes, and seconds if any, with colons.
  """
  terms = [term.strip() for term in text.split(':')]
  numbers = tuple(map(int, terms))
  hour, minute, second = (*numbers, 0)[:3]
  is_ratio = not any(term.startswith('0') for term in terms)
  parts = tuple(map(ast.number, numbers)) if is_ratio else ()
  return Node('clock', parts, (hour, minute, second, ''))


def named_time(text: str) -> Node | None:
  """Returns the time of `noon` or `midnight`."""
  half = _NAMED_TIMES.get(_plain_words(text))
  return (half and Node('clock', (), (12, 0, 0, half))) or None


def with_am_pm(time: Node, text: str) -> Node | None:
  """Returns a time or hour with `a.m.` or `p.m.`; `None` for other words."""
  half = _HALF_OF_DAY.get(_plain_words(text))
  if half is None or (
    time.kind == 'number' and _plain_words(text) in ('hours', 'hrs')
  ):
    return None
  if time.kind == 'clock' and not time.value[3]:
    return Node('clock', (), (*time.value[:3], half))
  if time.kind == 'number' and time.value in range(1, 13):
    return Node('clock', (), (int(time.value), 0, 0, half))
  return None


def same_time(left: Node, right: Node) -> bool:
  """Returns whether two times are equal; `a.m.` or `p.m.` may be omitted."""
  if left.value[1:3] != right.value[1:3]:
    return False
  (hour, *_, half), (other_hour, *_, other_half) = left.value, right.value
  if not half and not other_half:
    return hour % 24 == other_hour % 24
  if half and other_half:
    return _hour_of_24(hour, half) == _hour_of_24(other_hour, other_half)
  if not half:
    hour, other_hour, half = other_hour, hour, other_half
  return _hour_of_24(hour, half) == other_hour % 24 or (
    hour == other_hour <= 12
  )


def is_full_hour(time: Node, hour: Node) -> bool:
  """Returns whether a number gives the hour of a full hour: 5 for 5 p.m."""
  return (
    time.kind == 'clock'
    and hour.kind == 'number'
    and time.value[:3] == (hour.value, 0, 0)
    and bool(time.value[3])
  )


def _hour_of_24(hour: int, half: str) -> int:
  """Returns the hour in 24 hours; hours after noon stay as they are."""
  return hour if hour > 12 else hour % 12 + (12 if half == 'pm' else 0)


def _plain_words(text: str) -> str:
  """Returns words in lower case without punctuation: `pm` for `P. M.`."""
  text = re.sub(r"[.'’,]", '', text.lower())
  return re.sub(r'^([ap]) m$', r'\1m', ' '.join(text.split()))
