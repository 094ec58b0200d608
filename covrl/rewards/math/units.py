# SPDX-License-Identifier: Apache-2.0
"""Units after a number: units of measure and names of counted things."""

from __future__ import annotations

import functools
import re
from fractions import Fraction

Unit = tuple[Fraction, tuple[tuple[str, int], ...]]
"""Factor to base units, and the power of each base unit."""

_TABLE: dict[str, dict[str, str]] = {
  'metre': {
    'mm millimeter millimetre': '1/1000',
    'cm centimeter centimetre': '1/100',
    'dm decimeter decimetre': '1/10',
    'm meter metre': '1',
    'km kilometer kilometre': '1000',
    'in inch': '127/5000',
    'ft foot feet': '381/1250',
    'yd yard': '1143/1250',
    'mi mile': '201168/125',
  },
  'gram': {
    'mg milligram': '1/1000',
    'g gram': '1',
    'kg kilogram': '1000',
    'oz ounce': '45359237/1600000',
    'lb lbs pound': '45359237/100000',
    'tonne ton': '1000000',
  },
  'second': {
    'ms millisecond': '1/1000',
    's sec second': '1',
    'min minute': '60',
    'h hr hour': '3600',
    'day': '86400',
    'week': '604800',
  },
  'litre': {
    'ml mL milliliter millilitre': '1/1000',
    'L l liter litre': '1',
  },
  'dollar': {r'\$ dollar usd USD buck': '1', 'cent ¢': '1/100'},
  'radian': {'rad radian': '1'},
  '1': {'unit': '1', 'percent': '1/100'},
}
_UNITS = {
  name: (Fraction(factor), base)
  for base, rows in _TABLE.items()
  for names, factor in rows.items()
  for name in names.split()
}
_IRREGULAR = {'inches': 'inch', 'people': 'person', 'children': 'child'}
_WORD = re.compile(r'\\\$|[^\W\d_]+|[€£¥¢]|[-+]?\d+|[/^*·]')
_POWERS = {'square': 2, 'squared': 2, 'sq': 2, 'cubic': 3, 'cubed': 3, 'cu': 3}

# Units recognised without \text, instead of as a product of letters.
BARE_UNITS = frozenset(
  name
  for name in _UNITS
  if len(name) > 1 and name.isalpha() and name not in ('in', 'ms')
) | {'mph', 'mol', 'Hz', 'inches'}


@functools.lru_cache(maxsize=1024)
def unit(text: str) -> Unit | None:
  """Returns the unit that words name; an unknown word is a base unit.

  >>> unit('square centimeters') == unit('cm^2')
  True
  >>> unit('apples')
  (Fraction(1, 1), (('apple', 1),))

  Args:
    text: words, powers, slashes and `per`, without TeX.

  Returns:
    The unit; `None` if the text is too long for one.
  """
  text = text.replace('mph', 'mi/h').replace('{', '').replace('}', '')
  tokens = _WORD.findall(text)
  if len(tokens) > 8 or sum(token.isalpha() for token in tokens) > 4:
    return None
  factor, powers = Fraction(1), dict[str, int]()
  sign, leading_power, last_word = 1, 1, ''
  for index, token in enumerate(tokens):
    if token in ('/', 'per', 'a', 'an') and index:
      sign = -1
    elif token in ('^', '*', '·', 'of', 'the'):
      continue
    elif token.lower() in _POWERS and token.lower() not in ('squared', 'cubed'):
      leading_power = _POWERS[token.lower()]
    elif token in ('squared', 'cubed') or token.lstrip('-+').isdigit():
      power = _POWERS.get(token) or int(token)
      if not last_word or abs(power) > 9:
        return None
      value, base = _base(last_word)
      factor *= value ** (sign * (power - 1))
      powers[base] += sign * (power - 1)
    else:
      value, base = _base(token)
      factor *= value ** (sign * leading_power)
      powers[base] = powers.get(base, 0) + sign * leading_power
      last_word, leading_power = token, 1
  kept = ((base, n) for base, n in powers.items() if n and base != '1')
  return factor, tuple(sorted(kept))


def _base(word: str) -> tuple[Fraction, str]:
  """Returns the factor and base unit of a word, singular or plural."""
  for name in (word, word.lower()):
    singular = _IRREGULAR.get(name, name)
    for form in (singular, singular.removesuffix('s')):
      if form in _UNITS:
        return _UNITS[form]
  word = _IRREGULAR.get(word.lower(), word.lower())
  return Fraction(1), word.removesuffix('s') or word
