# SPDX-License-Identifier: Apache-2.0
"""Formats numbers for reports: significant digits, units, true minus signs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from covrl.evaluation.intervals import Estimate

_THIN_SPACE = '\u202f'  # narrow no-break space, between a number and its unit
_MINUS = '\u2212'
_LARGE = 1e12  # from here on numbers are written with a power of ten


def percent(fraction: float, digits: int = 1) -> str:
  """A fraction as percent.

  >>> percent(0.4712) == '47.1\u202f%'
  True
  """
  return f'{fixed(100 * fraction, digits)}{_THIN_SPACE}%'


def fixed(value: float, digits: int) -> str:
  """A number with fixed digits; zero has no minus sign.

  Numbers of more than twelve digits have a power of ten.

  >>> fixed(5123.44, 1), fixed(2.5e15, 1)
  ('5,123.4', '2.5×10¹⁵')
  """
  if abs(value) >= _LARGE:
    return number(value)
  text = f'{value:,.{digits}f}'
  if not any(digit in text for digit in '123456789'):
    text = text.lstrip('-')
  return text.replace('-', _MINUS)


def signed(value: float, digits: int = 1) -> str:
  """A number with fixed digits and an explicit sign.

  >>> signed(2.345), signed(-2.345) == '\u22122.3'
  ('+2.3', True)
  """
  text = fixed(value, digits)
  return text if text.startswith(_MINUS) else f'+{text}'


def number(value: float, digits: int = 3) -> str:
  """A number rounded to significant digits.

  >>> number(0.0123456), number(5123.4), number(3.2e-07) == '3.2×10⁻⁷'
  ('0.0123', '5,123', True)
  """
  if value == 0 or not math.isfinite(value):
    return '0' if value == 0 else str(value)
  exponent = math.floor(math.log10(abs(value)))
  if exponent < -4 or abs(value) >= _LARGE:
    mantissa = f'{value / 10.0**exponent:.{digits - 1}f}'
    mantissa = mantissa.rstrip('0').rstrip('.') if digits > 1 else mantissa
    return f'{mantissa}×{power_of_ten(exponent)}'.replace('-', _MINUS)
  return fixed(value, max(digits - 1 - exponent, 0))


def power_of_ten(exponent: int) -> str:
  """A power of ten with a superscript exponent.

  >>> power_of_ten(-6)
  '10⁻⁶'
  """
  superscripts = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')
  return '10' + str(exponent).translate(superscripts)


def interval_text(
  estimate: Estimate, *, scale: float = 1.0, digits: int = 1
) -> str:
  """The 95 % interval and its kind; without an interval, the kind alone.

  >>> interval_text(Estimate(1.0, 0.5, 1.5, 't over 3 seeds'))
  '95\u202f% interval +0.5 to +1.5, t over 3 seeds'
  """
  if estimate.low is None or estimate.high is None:
    return estimate.kind
  low, high = (
    signed(scale * end, digits) for end in (estimate.low, estimate.high)
  )
  return f'95{_THIN_SPACE}% interval {low} to {high}, {estimate.kind}'


def half_width(estimate: Estimate, *, scale: float, digits: int) -> str:
  """' ± ' and half the width of the interval; empty without an interval."""
  if estimate.high is None:
    return ''
  return f' ± {fixed(scale * (estimate.high - estimate.value), digits)}'


def duration(seconds: float) -> str:
  """A time in hours, minutes or seconds.

  >>> duration(42), duration(192), duration(7380)
  ('42 s', '3 min 12 s', '2 h 3 min')
  """
  if seconds >= _LARGE:
    return f'{number(seconds)} s'
  whole_seconds = round(seconds)
  if whole_seconds < 60:
    return f'{whole_seconds} s'
  if whole_seconds < 3600:
    return f'{whole_seconds // 60} min {whole_seconds % 60} s'
  return f'{whole_seconds // 3600:,} h {whole_seconds % 3600 // 60} min'


def join_words(parts: Sequence[str]) -> str:
  """Joins words with commas and 'and'.

  >>> join_words(['a', 'b', 'c'])
  'a, b and c'
  """
  if len(parts) < 2:
    return ''.join(parts)
  return f'{", ".join(parts[:-1])} and {parts[-1]}'
