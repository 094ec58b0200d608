# SPDX-License-Identifier: Apache-2.0
"""Metrics of the server, in the text format of Prometheus."""

from __future__ import annotations

import bisect
import collections
import threading
from collections.abc import Iterator

CONTENT_TYPE = 'text/plain; version=0.0.4; charset=utf-8'

# Upper bounds of the histograms' buckets, in seconds.
BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)

# Name, type, description.
_METRICS = (
  ('requests_total', 'counter', 'Answered requests by HTTP status.'),
  ('responses_total', 'counter', 'Ended responses by finish reason.'),
  ('prompt_tokens_total', 'counter', 'Tokens of submitted prompts.'),
  ('generated_tokens_total', 'counter', 'Sampled tokens.'),
  ('segments_total', 'counter', 'Compiled calls, each decoding some tokens.'),
  ('segment_seconds_total', 'counter', 'Time of those calls, in seconds.'),
  ('slots', 'gauge', 'Responses that are decoded together, at most.'),
  ('running', 'gauge', 'Responses in slots.'),
  ('waiting', 'gauge', 'Responses that wait for a slot.'),
)
_HISTOGRAMS = (
  ('first_token_seconds', 'Time from submission to the first token.'),
  ('response_seconds', 'Time from submission to the end of a response.'),
)


class Metrics:
  """Counters, gauges and histograms; thread-safe."""

  def __init__(self) -> None:
    self._lock = threading.Lock()
    self._values: collections.defaultdict[tuple[str, str], float] = (
      collections.defaultdict(float)
    )
    self._buckets = {name: [0] * (len(BUCKETS) + 1) for name, _ in _HISTOGRAMS}
    self._sums = dict.fromkeys(self._buckets, 0.0)

  def add(self, name: str, number: float = 1, label: str = '') -> None:
    """Adds to a counter.

    Args:
      name: name of the counter.
      number: increment.
      label: a label such as `status="200"`, or empty.
    """
    with self._lock:
      self._values[name, label] += number

  def set(self, name: str, number: float) -> None:
    """Sets a gauge."""
    with self._lock:
      self._values[name, ''] = number

  def observe(self, name: str, seconds: float) -> None:
    """Adds an observation to a histogram."""
    with self._lock:
      self._buckets[name][bisect.bisect_left(BUCKETS, seconds)] += 1
      self._sums[name] += seconds

  def get(self, name: str, label: str = '') -> float:
    """Returns the value of a counter or gauge."""
    with self._lock:
      return self._values.get((name, label), 0)

  def render(self) -> str:
    """Returns all metrics as text."""
    with self._lock:
      return '\n'.join(self._lines()) + '\n'

  def _lines(self) -> Iterator[str]:
    """Yields the lines of the text format."""
    for name, kind, text in _METRICS:
      yield f'# HELP covrl_{name} {text}'
      yield f'# TYPE covrl_{name} {kind}'
      values = {
        label: value for (n, label), value in self._values.items() if n == name
      }
      for label, value in sorted((values or {'': 0.0}).items()):
        labels = f'{{{label}}}' if label else ''
        yield f'covrl_{name}{labels} {value:.17g}'
    for name, text in _HISTOGRAMS:
      yield f'# HELP covrl_{name} {text}'
      yield f'# TYPE covrl_{name} histogram'
      total = 0
      for bound, count in zip(
        (*BUCKETS, None), self._buckets[name], strict=True
      ):
        total += count
        le = '+Inf' if bound is None else f'{bound:g}'
        yield f'covrl_{name}_bucket{{le="{le}"}} {total}'
      yield f'covrl_{name}_sum {self._sums[name]:.17g}'
      yield f'covrl_{name}_count {total}'
