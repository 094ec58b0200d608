# SPDX-License-Identifier: Apache-2.0
"""Units after a number: units of measure, currencies, and counted things."""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
  """A unit of measure.

  Attributes:
    factor: its value in base units.
    powers: the power of each base unit.
  """

  factor: Fraction
  powers: tuple[tuple[str, int], ...]


# By base unit ('1' for pure numbers): names of each unit, and its value in the base
# unit.
_TABLE: dict[str, dict[str, str]] = {
  'metre': {
    'nm nanometer nanometre': '1/1000000000',
    'μm um micrometer micrometre micron': '1/1000000',
    'mm millimeter millimetre 毫米': '1/1000',
    'cm centimeter centimetre 厘米': '1/100',
    'dm decimeter decimetre 分米': '1/10',
    'm meter metre 米': '1',
    'km kilometer kilometre 千米 公里': '1000',
    'in inch': '127/5000',
    'ft foot feet': '381/1250',
    'yd yard': '1143/1250',
    'mi mile': '201168/125',
  },
  'gram': {
    'mg milligram': '1/1000',
    'g gram 克': '1',
    'kg kilogram 千克 公斤': '1000',
    'oz ounce': '45359237/1600000',
    'lb lbs pound': '45359237/100000',
    'tonne ton 吨': '1000000',
  },
  'second': {
    'ns nanosecond': '1/1000000000',
    'μs microsecond': '1/1000000',
    'ms millisecond': '1/1000',
    's sec second 秒': '1',
    'min minute 分钟': '60',
    'h hr hour 小时': '3600',
    'day 天': '86400',
    'week 星期 周': '604800',
  },
  'month': {'month 个月': '1', 'yr year 年': '12', 'decade': '120', 'century': '1200'},
  'ampere': {'A amp ampere': '1', 'mA milliampere': '1/1000'},
  'mole': {'mol mole': '1'},
  'kelvin': {'K kelvin': '1'},
  'celsius': {'celsius centigrade °C 摄氏度': '1'},
  'fahrenheit': {'fahrenheit °F': '1'},
  'dollar': {r'\$ dollar usd USD buck': '1', 'cent ¢ penny': '1/100'},
  'euro': {'€ euro EUR eur': '1'},
  'sterling': {'£ GBP sterling': '1', 'pence': '1/100'},
  'yen': {'¥ yen JPY 円': '1'},
  'yuan': {'yuan RMB CNY 元': '1'},
  'rupee': {'₹ rupee Rs INR': '1'},
  'radian': {'rad radian': '1'},
  'degree': {
    'degree deg ° 度': '1',
    'arcminute arcmin': '1/60',
    'arcsecond arcsec': '1/3600',
  },
  '1': {
    'unit': '1',
    'percent': '1/100',
    'hundred': '100',
    'thousand': '1000',
    'million': '1000000',
    'billion': '1000000000',
    'trillion': '1000000000000',
    'dozen': '12',
  },
}  # fmt: skip
# Units of derived quantities, as products of the units above.
_DERIVED = {
  'l liter litre 升': 'dm^3',
  'ml milliliter millilitre 毫升': 'cm^3',
  'ha hectare': '10000 m^2',
  'acre': '43560 ft^2',
  'gallon gal': '231 in^3',
  'quart qt': '231/4 in^3',
  'pint': '231/8 in^3',
  'cup': '231/16 in^3',
  'mpg': '1/231 mi in^-3',
  'kWh': '3600000 kg m^2 s^-2',
  'hz hertz': 's^-1',
  'N newton': 'kg m s^-2',
  'J joule': 'kg m^2 s^-2',
  'W watt': 'kg m^2 s^-3',
  'Pa pascal': 'kg m^-1 s^-2',
  'coulomb': 'A s',
  'V volt': 'kg m^2 s^-3 A^-1',
  'ohm Ω': 'kg m^2 s^-3 A^-2',
  'mph': 'mi h^-1',
  'kph kmh': 'km h^-1',
}
# Prefixes of derived units.
_PREFIXES = {'k': 1000, 'M': 10**6, 'G': 10**9, 'm': Fraction(1, 1000)}
_PREFIXED_UNITS = ('Hz', 'N', 'J', 'W', 'Pa', 'V', 'ohm', 'Ω')
_IRREGULAR_SPELLINGS = {
  **{'inches': 'inch', 'people': 'person', 'children': 'child'},
  **{'men': 'man', 'women': 'woman', 'pennies': 'penny', 'hertz': 'hz'},
  **{'Hz': 'hz', 'L': 'l', 'mL': 'ml', 'centuries': 'century'},
}
# Words that are not units: they change the number, or state something about it.
_NOT_UNITS = frozenset(
  [
    'or',
    'more',
    'less',
    'fewer',
    'than',
    'least',
    'most',
    'not',
    'plus',
    'minus',
    'times',
    'factorial',
    'mod',
    'modulo',
    'remainder',
    'greater',
    'larger',
    'smaller',
    'above',
    'below',
    'between',
    'except',
    'without',
    'wrong',
    'incorrect',
    'if',
    'unless',
    'otherwise',
    'squared',
    'cubed',
    'half',
    'halves',
    'quarter',
    'quarters',
    'third',
    'thirds',
    'to',
    'power',
    'root',
  ]
)
_TEMPERATURE = re.compile(
  r'(?:degrees?|deg|°|\^?\\circ)\s*(celsius|centigrade|fahrenheit|[CFK]\b)',
  re.I,
)
# `ms` in `ms^-1`, which is read as `m s^-1`.
_PER_SECOND = re.compile(r'\bms(?=\^?-)')
_WORD = re.compile(r'°[CF]|\\\$|[^\W\d_]+|[€£¥¢₹°]|[-+]?\d+|[/^*·]')
_POWERS = {'square': 2, 'squared': 2, 'sq': 2, 'cubic': 3, 'cubed': 3, 'cu': 3}
_PER = ('/', 'per', 'a', 'an', 'each', 'every')
_IGNORED = ('^', '*', '·', 'of', 'the', 'in')
_TEMPERATURES = ('kelvin', 'celsius', 'fahrenheit')
_TEMPERATURE_ABBREVIATIONS = {'c': '°C', 'f': '°F', 'k': 'K'}


def _units() -> dict[str, Unit]:
  """Returns all units by name, from the tables above."""
  units: dict[str, Unit] = {
    name: Unit(Fraction(factor), () if base == '1' else ((base, 1),))
    for base, rows in _TABLE.items()
    for names, factor in rows.items()
    for name in names.split()
  }
  for names, product in _DERIVED.items():
    factor, powers = Fraction(1), dict[str, int]()
    for term in product.split():
      word, _, power = term.partition('^')
      if word[0].isdigit():
        factor *= Fraction(word)
        continue
      _multiply(powers, units[word], int(power or 1))
      factor *= units[word].factor ** int(power or 1)
    for name in names.split():
      units[name] = Unit(factor, _sorted_powers(powers))
  for name in _PREFIXED_UNITS:
    factor, powers = units[_IRREGULAR_SPELLINGS.get(name, name)]
    for prefix, scale in _PREFIXES.items():
      units[prefix + name] = Unit(factor * scale, powers)
  return units


def _multiply(powers: dict[str, int], unit: Unit, power: int) -> None:
  """Multiplies powers of base units by a power of a unit, in place."""
  for base, exponent in unit.powers:
    powers[base] = powers.get(base, 0) + exponent * power


def _sorted_powers(powers: dict[str, int]) -> tuple[tuple[str, int], ...]:
  """Returns non-zero powers of base units, sorted by name."""
  return tuple(sorted((base, n) for base, n in powers.items() if n))


_UNITS = _units()

# Units that are read as products of letters unless they are in \text.
_READ_AS_LETTERS = ('in', 'ha', 'nm', 'um', 'Pa', 'amp', 'deg', 'eur', 'hz')

# Units recognised without \text, instead of as a product of letters.
BARE_UNITS = frozenset(
  name
  for name in _UNITS
  if len(name) > 1
  and name.isalpha()
  and name not in _READ_AS_LETTERS
  and name[1:] not in ('N', 'J', 'W', 'V', 'A', 's', 'Pa', 'Hz')
) | {'Hz', 'kHz', 'MHz', 'inches', 'mL', 'ns', 'kPa'}


@functools.lru_cache(maxsize=1024)
def unit(text: str) -> Unit | None:
  """Returns the unit that words name; an unknown word is a base unit.

  >>> unit('square centimeters') == unit('cm^2')
  True
  >>> unit('apples')
  Unit(factor=Fraction(1, 1), powers=(('apple', 1),))

  Args:
    text: words, powers, slashes and `per`, without TeX.

  Returns:
    The unit; `None` if the text is too long for one, or a statement.
  """
  text = _PER_SECOND.sub('m s', _TEMPERATURE.sub(_temperature, text))
  text = text.replace('{', '').replace('}', '')
  tokens = _WORD.findall(text)
  words = [token for token in tokens if token.isalpha()]
  modifiers = (*_POWERS, *_PER, *_IGNORED)
  if (
    len(tokens) > 16 or sum(word.lower() not in modifiers for word in words) > 4
  ):
    return None
  if words and words[0].lower() in ('a', 'an', 'each', 'every'):
    return None
  factor, powers = Fraction(1), dict[str, int]()
  power_sign, leading_power, last_word = 1, 1, ''
  for index, token in enumerate(tokens):
    if token.lower() in _PER and (index or token == '/' or token == 'per'):
      power_sign = -1
    elif token in _IGNORED and (index or token != 'in'):
      continue
    elif token.lower() in _POWERS and token.lower() not in ('squared', 'cubed'):
      leading_power = _POWERS[token.lower()]
    elif token in ('squared', 'cubed') or token.lstrip('-+').isdigit():
      power = _POWERS.get(token) or int(token)
      if not last_word or abs(power) > 9:
        return None
      measure = _unit_of_word(last_word)
      factor *= measure.factor ** (power_sign * (power - 1))
      _multiply(powers, measure, power_sign * (power - 1))
    elif token.lower() in _NOT_UNITS:
      return None
    else:
      measure = _unit_of_word(token)
      factor *= measure.factor ** (power_sign * leading_power)
      _multiply(powers, measure, power_sign * leading_power)
      last_word, leading_power = token, 1
  return Unit(factor, _sorted_powers(powers))


def is_temperature(name: str) -> bool:
  """Returns whether a unit is °C, °F or K."""
  measure = unit(name)
  return measure is not None and any(
    measure.powers == ((base, 1),) for base in _TEMPERATURES
  )


def multiplier(name: str) -> Fraction:
  """Returns the factor of words such as `million` and `percent`."""
  factor = Fraction(1)
  for word in _WORD.findall(name):
    measure = _lookup(word)
    if measure is not None and not measure.powers:
      factor *= measure.factor
  return factor


def bases(name: str) -> set[str]:
  """Returns the base units of a unit."""
  measure = unit(name)
  return set() if measure is None else {base for base, _ in measure.powers}


def is_known(name: str) -> bool:
  """Returns whether all words of a unit are in the table."""
  words = [token for token in _WORD.findall(name) if token.isalpha()]
  return bool(words) and all(
    _lookup(word) is not None or word.lower() in (*_POWERS, *_PER)
    for word in words
  )


def _temperature(match: re.Match[str]) -> str:
  """Returns the name of a temperature scale without its degree sign."""
  name = match.group(1).lower()
  return _TEMPERATURE_ABBREVIATIONS.get(name, name)


def _lookup(word: str) -> Unit | None:
  """Returns the factor and base units of a known word, singular or plural."""
  for name in (word, word.lower()):
    singular = _IRREGULAR_SPELLINGS.get(name, name)
    for form in (singular, singular.removesuffix('s')):
      if form in _UNITS:
        return _UNITS[form]
  return None


def _unit_of_word(word: str) -> Unit:
  """Returns a known unit, or a new base unit of the name."""
  unit = _lookup(word)
  if unit is not None:
    return unit
  word = _IRREGULAR_SPELLINGS.get(word.lower(), word.lower())
  return Unit(Fraction(1), ((word.removesuffix('s') or word, 1),))
