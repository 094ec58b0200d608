# SPDX-License-Identifier: Apache-2.0
"""Comparison of printed output and returned values with the expected ones.

The judge compares bytes or values decoded from JSON; no object of the program
takes part. Printed output is compared as judges of programming contests do: word
by word, numbers by their values, without regard to blanks.
"""

from __future__ import annotations

import decimal
import json
import math
import re
from typing import Any

TOLERANCE = 1e-6
"""Relative tolerance for floats; for printed ones also absolute."""

_ABSOLUTE_TOLERANCE = 1e-9  # absolute tolerance of results
_WORD = re.compile(rb'[^\s,:;()\[\]{}]+|[,:;()\[\]{}]')
_DECIMAL = re.compile(rb'[+-]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][+-]?\d+)?')
_INTEGER = re.compile(rb'[+-]?\d+')
_MAX_NUMBER_CHARACTERS = 400  # characters of a printed number
_LARGEST_EXACT_INTEGER = (
  1 << 53
)  # integers up to it are floats without rounding
_MAX_INTEGER_DIGITS = 4000  # digits
_MAX_SHOWN_CHARACTERS = 60  # characters of an output that a sentence repeats
_MISSING = object()


def output_difference(
  printed: bytes, expected: bytes, tolerance: float | None = None
) -> str | None:
  """Describes the first difference of printed output; `None` if it matches.

  Words (brackets and commas apart) have to be the same in the same order. A
  number with a decimal point matches a number of the same value; see
  `same_value` for tolerances. Integers match as they are written, unless a
  tolerance is given.

  >>> output_difference(b'1  2.0\\n3', b'1 2\\n3\\n')
  >>> output_difference(b'0.3333333333', b'0.333333')
  >>> output_difference(b'0 1 3', b'0 1 2')
  "word 3 of 3: '2' was expected, got '3'"

  Args:
    printed: output of the program.
    expected: the expected output.
    tolerance: absolute or relative difference that numbers may have; `None` for
      1e-6, and none for integers.
  """
  if printed.split() == expected.split():
    return None
  words, expected_words = _words(printed), _words(expected)
  for word_number, (word, expected_word) in enumerate(
    zip(words, expected_words, strict=False), start=1
  ):
    if word != expected_word and not _same_number(
      word, expected_word, tolerance
    ):
      prefix = f'word {word_number} of {len(expected_words)}: '
      if len(words) == len(expected_words) == 1:
        prefix = ''
      shown_expected, shown_word = _shown_pair(expected_word, word)
      return f"{prefix}'{shown_expected}' was expected, got '{shown_word}'"
  if len(words) == len(expected_words):
    return None
  if not words:
    return f"'{_shown_start(expected_words[0])}' was expected, got no output"
  if len(words) < len(expected_words):
    return (
      f"word {len(words) + 1} of {len(expected_words)}: '{_shown_start(expected_words[len(words)])}'"
      ' was expected, got the end of the output'
    )
  return (
    f'the end of the output was expected after {len(expected_words)} words, got'
    f" '{_shown_start(words[len(expected_words)])}'"
  )


def same_value(
  value: Any, expected: Any, tolerance: float | None = None
) -> bool:
  """Returns whether a returned value matches the expected one (both JSON).

  Numbers match if their values do, as in Python: 2.0 is 2, and True is 1. Floats
  may differ by the tolerance; NaN matches NaN.

  >>> same_value([1, 2.0000000001], [1, 2.0])
  True
  >>> [same_value(value, 1) for value in (1, True, 1.0, '1', None)]
  [True, True, True, False, False]

  Args:
    value: the returned value.
    expected: the expected value.
    tolerance: absolute or relative difference that numbers may have; `None` for
      a relative 1e-6 (or an absolute 1e-9) of an expected float, and of an
      integer the rounding of a returned float.
  """
  return value_difference(value, expected, tolerance) is None


def value_difference(
  value: Any, expected: Any, tolerance: float | None = None, location: str = ''
) -> str | None:
  """Describes the first difference of a value; `None` if it matches.

  >>> value_difference({'a': [1, 2]}, {'a': [1, 3]})
  "at ['a'][1]: 3 was expected, got 2"

  Args:
    value: the returned value.
    expected: the expected value.
    tolerance: see `same_value`.
    location: index of the value in the whole result.
  """
  if isinstance(expected, int | float) and isinstance(value, int | float):
    if _same_real(value, expected, tolerance):
      return None
  elif isinstance(expected, list) and isinstance(value, list):
    for index, (item, expected_item) in enumerate(
      zip(value, expected, strict=False)
    ):
      difference = value_difference(
        item, expected_item, tolerance, f'{location}[{index}]'
      )
      if difference is not None:
        return difference
    if len(value) == len(expected):
      return None
    location = f'{location} (length {len(value)} instead of {len(expected)})'
  elif isinstance(expected, dict) and isinstance(value, dict):
    for key, expected_item in expected.items():
      item = value.get(key, _MISSING)
      inner_location = f'{location}[{key!r:.{_MAX_SHOWN_CHARACTERS}}]'
      if item is _MISSING:
        return f'at {inner_location}: {expected_item!r:.200} was expected, got no such key'
      difference = value_difference(
        item, expected_item, tolerance, inner_location
      )
      if difference is not None:
        return difference
    if len(value) == len(expected):
      return None
    extra = next(key for key in value if key not in expected)
    location = (
      f'{location} (with the additional key {extra!r:.{_MAX_SHOWN_CHARACTERS}})'
    )
  elif type(value) is type(expected) and value == expected:
    return None
  prefix = f'at {location.strip()}: ' if location else ''
  return f'{prefix}{expected!r:.200} was expected, got {value!r:.200}'


def read_json(text: bytes) -> Any:
  """Decodes a value that came out of a sandbox.

  Raises:
    ValueError: if the text is not JSON, is nested too deeply, or has an integer
      of too many digits.
  """
  try:
    return json.loads(text, parse_int=_parse_integer)
  except RecursionError:
    raise ValueError('it is nested too deeply') from None


def one_line(text: bytes) -> str:
  """Returns the start of untrusted text as one line of ASCII."""
  line = text[:400].decode(errors='replace').strip()
  return ascii(line)[1:-1][:200]


def _words(text: bytes) -> list[bytes]:
  """Splits output into words and brackets, without a byte order mark."""
  return _WORD.findall(text.removeprefix(b'\xef\xbb\xbf'))


def _shown_start(word: bytes) -> str:
  """Returns the start of a word as ASCII."""
  return one_line(word[:_MAX_SHOWN_CHARACTERS])


def _shown_pair(expected: bytes, word: bytes) -> tuple[str, str]:
  """Returns two words, of long ones the part where they begin to differ."""
  common_length = 0
  for a, b in zip(expected, word, strict=False):
    if a != b:
      break
    common_length += 1
  start = (
    max(0, common_length - _MAX_SHOWN_CHARACTERS // 2)
    if common_length >= _MAX_SHOWN_CHARACTERS
    else 0
  )
  dots = '...' if start else ''
  return (
    f'{dots}{_shown_start(expected[start:])}',
    f'{dots}{_shown_start(word[start:])}',
  )


def _same_number(word: bytes, expected: bytes, tolerance: float | None) -> bool:
  """Returns whether both words are numbers of the same value."""
  if (
    len(word) > _MAX_NUMBER_CHARACTERS or len(expected) > _MAX_NUMBER_CHARACTERS
  ):
    return False
  decimal_matches = _DECIMAL.fullmatch(expected), _DECIMAL.fullmatch(word)
  if not all(
    decimal_match or _INTEGER.fullmatch(text)
    for decimal_match, text in zip(
      decimal_matches, (expected, word), strict=True
    )
  ):
    return False
  if tolerance is None and not any(decimal_matches):
    return False
  if decimal_matches[0] or tolerance is not None:
    limit = TOLERANCE if tolerance is None else tolerance
    return _is_close(float(word), float(expected), limit, limit)
  try:
    number, other = decimal.Decimal(word.decode()), int(expected)
    return abs(number - other) <= decimal.Decimal(_ABSOLUTE_TOLERANCE)
  except decimal.DecimalException:
    return False


def _same_real(value: float, expected: float, tolerance: float | None) -> bool:
  """Returns whether two numbers of Python are the same up to a tolerance."""
  if value == expected:
    return True
  if tolerance is not None:
    return _is_close(value, expected, tolerance, tolerance)
  if isinstance(expected, float):
    return _is_close(value, expected, TOLERANCE, _ABSOLUTE_TOLERANCE)
  # Accepts the rounding error of a float, but not the neighbours of a large integer.
  if not isinstance(value, float) or abs(expected) > _LARGEST_EXACT_INTEGER:
    return False
  return _is_close(value, expected, 0.0, _ABSOLUTE_TOLERANCE)


def _is_close(
  value: float, expected: float, relative: float, absolute: float
) -> bool:
  """Returns whether floats are close; NaN is close to NaN only."""
  if math.isnan(expected):
    return math.isnan(value)
  try:
    return math.isclose(value, expected, rel_tol=relative, abs_tol=absolute)
  except OverflowError:
    return False


def _parse_integer(digits: str) -> int:
  """Parses an integer of JSON of bounded length."""
  if len(digits) > _MAX_INTEGER_DIGITS:
    raise ValueError(
      f'an integer must have at most {_MAX_INTEGER_DIGITS} digits, got {len(digits)}'
    )
  return int(digits)
