# SPDX-License-Identifier: Apache-2.0
"""Reward functions of the toy task; worker processes import this file."""

import time
from typing import Any


def begins_with_largest(response: str, reference: Any) -> float:
  """Returns 1 if the first word is the largest number of the prompt, else 0."""
  return float(response.split()[:1] == [str(max(reference))])


def fails_on_odd_numbers(response: str, reference: Any) -> float:
  """Like `begins_with_largest`, but fails on responses that begin with 1, 3, …"""
  if response[:1].isdigit() and int(response[0]) % 2:
    raise ValueError('odd')
  return begins_with_largest(response, reference)


def share_of_digits(response: str, reference: Any) -> float:
  """Returns the fraction of words that are digits, above 0 without training."""
  del reference
  words = response.split()
  return sum(word.isdigit() for word in words) / max(len(words), 1)


def overflows_float32(response: str, reference: Any) -> float:
  """Returns a number that is finite, but not in float32."""
  return 1e39 * (begins_with_largest(response, reference) - 0.5)


def begins_with_largest_slowly(response: str, reference: Any) -> float:
  """Returns the same as `begins_with_largest`, after 50 ms."""
  time.sleep(0.05)
  return begins_with_largest(response, reference)
