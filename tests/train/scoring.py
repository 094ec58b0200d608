# SPDX-License-Identifier: Apache-2.0
"""Scorers of the toy task; worker processes import this file."""

import time
from typing import Any


def begins_with_largest(response: str, reference: Any) -> float:
  """1 where the first word is the largest number of the prompt."""
  return float(response.split()[:1] == [str(max(reference))])


def never_ends(response: str, reference: Any) -> float:
  """What a broken scorer does."""
  del response, reference
  time.sleep(3600.0)
  return 0.0


def share_of_digits(response: str, reference: Any) -> float:
  """What of the words are digits; even an untrained policy writes some."""
  del reference
  words = response.split()
  return sum(word.isdigit() for word in words) / max(len(words), 1)


def slowly(response: str, reference: Any) -> float:
  """The same, in the time that a signal needs to arrive."""
  time.sleep(0.05)
  return begins_with_largest(response, reference)
