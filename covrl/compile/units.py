# SPDX-License-Identifier: Apache-2.0
"""Formats times and numbers of bytes with units that keep the numbers short."""

from __future__ import annotations

import math

_TIME_UNITS = (
  (1e-6, 'µs'),
  (1e-3, 'ms'),
  (1.0, 's'),
  (60.0, 'min'),
  (3600.0, 'h'),
  (86400.0, 'days'),
)


def time_text(seconds: float) -> str:
  """Formats a time with up to three digits.

  >>> [time_text(s) for s in (4.92e-5, 0.0860, 13, 200, 5400, 400_000)]
  ['49.2 µs', '86 ms', '13 s', '3.33 min', '1.5 h', '4.63 days']
  """
  # The largest unit of which the time has at least one; at least two of days.
  seconds_per_unit, unit = _TIME_UNITS[0]
  for unit_seconds, name in _TIME_UNITS:
    if seconds >= (2 * unit_seconds if name == 'days' else unit_seconds):
      seconds_per_unit, unit = unit_seconds, name
  return f'{_three_digits(seconds / seconds_per_unit)} {unit}'


def bytes_text(size: float) -> str:
  """Formats a number of bytes.

  >>> bytes_text(1536), bytes_text(3 * 2**30)
  ('1.5 KiB', '3.0 GiB')
  """
  units = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
  power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
  return f'{size / 1024**power:.1f} {units[power]}'


def traffic_text(size: float) -> str:
  """Formats memory traffic in powers of 1000, the units of bandwidths.

  >>> traffic_text(57.3e9), traffic_text(3200)
  ('57.3 GB', '3.2 kB')
  """
  units = ('B', 'kB', 'MB', 'GB', 'TB')
  power = min(int(math.log10(max(size, 1)) / 3), len(units) - 1)
  return f'{_three_digits(size / 1000**power)} {units[power]}'


def _three_digits(number: float) -> str:
  """Formats a number with up to three significant digits.

  >>> [_three_digits(n) for n in (1.0, 2.345, 45.67, 4567.8)]
  ['1', '2.35', '45.7', '4,568']
  """
  digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
  text = f'{number:,.{digits}f}'
  return text.rstrip('0').rstrip('.') if digits else text
