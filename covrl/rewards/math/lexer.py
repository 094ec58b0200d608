# SPDX-License-Identifier: Apache-2.0
"""Tokenizer of normalized answers: words, numbers, commands and signs."""

from __future__ import annotations

import re
from typing import NamedTuple

from covrl.rewards.math import vocabulary
from covrl.rewards.math.ast import ParseError
from covrl.rewards.math.units import BARE

MAX_TOKENS = 2000


class Token(NamedTuple):
  """A token of an answer.

  Attributes:
    kind: 'number', 'mixed', 'letter', 'text', 'command', 'joint' (a separator of
      lists) or 'sign'.
    text: the text; a repeating decimal as `0.1(6)`.
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


def tokenize(cleaned: str, *, merge: bool) -> list[Token]:
  r"""Splits a normalized answer into tokens.

  >>> [token.text for token in tokenize(r'2\pi r, 1,000', merge=True)]
  ['2', '\\pi', 'r', ',', '1000']

  Args:
    cleaned: an answer from `normalize_tex`.
    merge: whether `1,000` is one number instead of a list of two.

  Raises:
    ParseError: if a character is unknown, or there are too many tokens.
  """
  text = _REPEATING.sub(r'\1(\2\3)', cleaned)
  text = _ELLIPSIS.sub(r'\1(\2)', text)
  if merge:
    text = _merged(text)
  text = _SPACED.sub(lambda match: match.group().replace(' ', ''), text)
  found: list[Token] = []
  position = 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if not match:
      raise ParseError(f'unknown character {text[position]!r}')
    if match.lastgroup:
      found += _tokens(match.lastgroup, match.group(match.lastgroup), match)
    position = match.end()
    if len(found) > MAX_TOKENS:
      raise ParseError('too long')
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
  """Splits a run of letters: a function, a word, or single letters."""
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
  """Removes the commas of numbers such as 1,000.

  Inside brackets a comma separates elements, unless other commas of the same
  brackets are followed by a space and this one is not.
  """
  owners: list[int] = [0] * (len(text) + 1)
  loose: set[int] = {0}
  stack, count, position = [0], 0, 0
  for match in _BRACKETS.finditer(text):
    owners[position : match.start()] = [stack[-1]] * (match.start() - position)
    position = match.start()
    sign = match.group()
    if sign in ('(', '[', '\\{'):
      count += 1
      stack.append(count)
    elif sign == ',':
      if text[match.end() : match.end() + 1] == ' ':
        loose.add(stack[-1])
    elif len(stack) > 1:
      stack.pop()
  owners[position:] = [stack[-1]] * (len(owners) - position)
  return _THOUSANDS.sub(
    lambda match: (
      match.group().replace(',', '')
      if owners[match.start()] in loose
      else match.group()
    ),
    text,
  )
