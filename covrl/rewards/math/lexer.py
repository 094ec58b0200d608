# SPDX-License-Identifier: Apache-2.0
"""A clean answer's words, numbers and signs, from left to right."""

from __future__ import annotations

import re
from typing import NamedTuple

from covrl.rewards.math import vocabulary
from covrl.rewards.math.ast import Unreadable
from covrl.rewards.math.units import BARE

MAX_TOKENS = 2000


class Token(NamedTuple):
  """A word of an answer.

  Attributes:
    kind: 'number', 'mixed', 'letter', 'text', 'command', 'joint' or 'sign'.
    text: as it is written; a repeating decimal as `0.1(6)`.
  """

  kind: str
  text: str


END = Token('end', '')

_REPEATING = re.compile(
  r'(\d*\.\d*)(?:\\overline|\\dot)\s*(?:\{\s*(\d+)\s*\}|(\d))'
)
_ELLIPSIS = re.compile(r'(?<!\d)(\d{0,9}\.\d{0,9}?)(\d{1,9}?)\2{2,}\s*\\ldots')
_THOUSANDS = re.compile(r'(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)')
_SPACED = re.compile(r'(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])')
_BRACKETS = re.compile(r'\\[{}]|[()\[\],]')
_JOINED = re.compile(r'(sin|cos|tan|cot|ln|log|exp)([a-z])')
_TOKEN = re.compile(
  r"""
    (?P<mixed> \d+\ +\d+\ ?/\ ?\d+ (?![\d.]) )
  | (?P<number> \d*\.\d*\(\d+\)
              | (?:\d+\.?\d*|\.\d+) (?: [eE][-+]?\d{1,3}(?![\d.]) )? )
  | \\text\s*\{ (?P<text> [^{}]* ) \}
  | \\operatorname\*?\s*\{ (?P<operator> [^{}]* ) \}
  | (?P<command> \\(?: [a-zA-Z]+ | [%$\#{}\\] ) )
  | (?P<word> [^\W\d_]+ )
  | (?P<joint> [,;] )
  | (?P<sign> [-+*/^_(){}\[\]|:=<>!&'] )
  | (?P<money> [€£¥¢] )
  | \s+
  """,
  re.VERBOSE,
)


def split(cleaned: str, *, merge: bool) -> list[Token]:
  r"""The tokens of a clean answer.

  >>> [token.text for token in split(r'2\pi r, 1,000', merge=True)]
  ['2', '\\pi', 'r', ',', '1000']

  Args:
    cleaned: see `cleaning.clean`.
    merge: whether `1,000` is a number, rather than a list of two.

  Raises:
    Unreadable: a sign is unknown, or there are too many.
  """
  text = _REPEATING.sub(r'\1(\2\3)', cleaned)
  text = _ELLIPSIS.sub(r'\1(\2)', text)
  if merge:
    text = _merged(text)
  text = _SPACED.sub(lambda match: match.group().replace(' ', ''), text)
  found: list[Token] = []
  place = 0
  while place < len(text):
    match = _TOKEN.match(text, place)
    if not match:
      raise Unreadable(f'{text[place]!r} is not known')
    if match.lastgroup:
      found += _tokens(match.lastgroup, match.group(match.lastgroup), match)
    place = match.end()
    if len(found) > MAX_TOKENS:
      raise Unreadable('too long')
  return found


def _tokens(group: str, text: str, match: re.Match[str]) -> list[Token]:
  match group:
    case 'text':
      text = ' '.join(text.split())
      return _joint(text) or ([Token('text', text)] if text else [])
    case 'operator':
      if text.strip() in vocabulary.NAMES:
        return [Token('command', vocabulary.NAMES[text.strip()])]
      return [Token('text', text.strip())]
    case 'money':
      return [Token('text', text)]
    case 'word':
      beside = match.string[max(match.start() - 1, 0) : match.start()]
      return _word(text, beside.isdigit())
    case 'command' if text in ('\\{', '\\}', '\\\\'):
      return [Token('sign', text)]
  return [Token(group, text)]


def _word(text: str, beside_digit: bool) -> list[Token]:
  """A run of letters: a function, a word, or a product of single ones."""
  if text in vocabulary.NAMES:
    return [Token('command', vocabulary.NAMES[text])]
  if joint := len(text) > 1 and _joint(text):
    return joint
  if joined := _JOINED.fullmatch(text):
    name, letter = joined.groups()
    return [Token('command', f'\\{name}'), Token('letter', letter)]
  if text in BARE or text.removesuffix('s') in BARE or not text.isascii():
    return [Token('text', text)]
  is_word = (
    len(text) > 3
    or text.lower() in vocabulary.SHORT_WORDS
    or (len(text) == 3 and text.istitle())
  )
  if is_word and not beside_digit:
    return [Token('text', text)]
  return [Token('letter', letter) for letter in text]


def _joint(text: str) -> list[Token]:
  if text.lower() == 'to':
    return [Token('sign', ':')]
  joint = vocabulary.JOINTS.get(text.lower())
  return [Token('joint', joint)] if joint else []


def _merged(text: str) -> str:
  """Takes the commas out of numbers such as 1,000.

  Within brackets a comma parts elements, unless others of the same brackets
  have a space behind them and this one has none.
  """
  owners: list[int] = [0] * (len(text) + 1)
  loose: set[int] = {0}
  stack, count, place = [0], 0, 0
  for match in _BRACKETS.finditer(text):
    owners[place : match.start()] = [stack[-1]] * (match.start() - place)
    place = match.start()
    sign = match.group()
    if sign in ('(', '[', '\\{'):
      count += 1
      stack.append(count)
    elif sign == ',':
      if text[match.end() : match.end() + 1] == ' ':
        loose.add(stack[-1])
    elif len(stack) > 1:
      stack.pop()
  owners[place:] = [stack[-1]] * (len(owners) - place)
  return _THOUSANDS.sub(
    lambda match: (
      match.group().replace(',', '')
      if owners[match.start()] in loose
      else match.group()
    ),
    text,
  )
