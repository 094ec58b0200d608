# SPDX-License-Identifier: Apache-2.0
"""Tokenizer of normalized answers: words, numbers, commands and signs.

`tokenize` makes the tokens, a `TokenStream` reads them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from covrl.rewards.math import vocabulary
from covrl.rewards.math.ast import ParseError
from covrl.rewards.math.units import BARE_UNITS, is_known

MAX_TOKENS = 2000  # of an answer


class Token(NamedTuple):
  """A token of an answer.

  Attributes:
    kind: 'number', 'mixed', 'clock', 'letter', 'text', 'command',
      'separator' (of lists) or 'sign'.
    text: the text; a repeating decimal as `0.1(6)`.
  """

  kind: str
  text: str


END = Token('end', '')

# Repeating digits of a decimal, marked by a line or by dots above them.
_REPEATING = re.compile(
  r'(\d*\.\d*)\{?\s*(?:\\overline|\\bar|\\dot|\\widehat|\\overparen)\s*'
  r'(?:\{\s*(\d+)\s*\}|(\d))'
  r'(?:(\d*)\\dot\s*(?:\{\s*(\d)\s*\}|(\d)))?\}?'
)
_REPEATING_ELLIPSIS = re.compile(
  r'(?<!\d)(\d{0,9}\.\d{0,9}?)(?:(\d)\2{2,}|(\d{2,9}?)\3+)\s*\\ldots'
)
_THOUSANDS = re.compile(r'(?<![\d.,])\d{1,3}(?:,\d{3})+(?!,?\d)')
_SPACED_THOUSANDS = re.compile(r'(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])')
_BRACKETS = re.compile(r'\\[{}]|[()\[\],]')
# A number between two units, as in `hour and 30 minutes`.
_BETWEEN_UNITS = re.compile(r'(\D+?),? (?:(and) )?(\d+(?:\.\d+)?) ?(\D+)')
_FUNCTION_AND_LETTER = re.compile(r'(sin|cos|tan|cot|ln|log|exp)([a-z])')
_TOKEN = re.compile(
  r"""
    (?P<clock> (?<![\d.:])(?<!:\ ) (?:[01]?\d|2[0-4])(?:\ ?:\ ?[0-5]\d){1,2}
      (?!\ *(?:[\d.:^!/*+(-]|\\(?!text)|[a-zA-Z](?![a-zA-Z]))) )
  | (?P<mixed> \d+\ +\d+\ ?/\ ?\d+ (?![\d.]) )
  | (?P<number> \d*\.\d*\(\d+\)
              | (?:\d+\.?\d*|\.\d+) (?: [eE][-+]?\d{1,3}(?![\d.]) )? )
  | \\text\s*\{ (?P<text> [^{}]* ) \}
  | \\operatorname\*?\s*\{ (?P<operator> [^{}]* ) \}
  | (?P<command> \\(?: [a-zA-Z]+ | [%$\#{}\\] ) )
  | (?P<word> [^\W\d_]+ )
  | (?P<separator> [,;] )
  | (?P<sign> [-+*/^_(){}\[\]|:=<>!&'] )
  | (?P<money> [€£¥¢₹] )
  | \s+
  """,
  re.VERBOSE,
)


class TokenStream:
  """Tokens that are read one after the other.

  Raises:
    ParseError: from `expect…` and `argument_text`, if other tokens follow.
  """

  def __init__(self, tokens: list[Token]) -> None:
    self._tokens = tokens
    self._position = 0

  def peek(self, ahead: int = 0) -> Token:
    """Returns a token without consuming it; `END` after the last."""
    index = self._position + ahead
    return self._tokens[index] if index < len(self._tokens) else END

  def next(self) -> Token:
    """Consumes and returns the next token."""
    token = self.peek()
    self._position += 1
    return token

  def accept(self, *texts: str) -> str:
    """Consumes the next token if it is one of `texts`; else returns ``''``."""
    token = self.peek()
    if token.kind != 'text' and token.text in texts:
      self._position += 1
      return token.text
    return ''

  def expect(self, *texts: str) -> str:
    """Consumes the next token, which must be one of `texts`."""
    accepted = self.accept(*texts)
    if not accepted:
      raise ParseError(
        f'the next token must be one of {texts}, got {self.peek().text!r}'
      )
    return accepted

  def expect_end(self) -> None:
    """Checks that all tokens are consumed."""
    if self.peek() is not END:
      raise ParseError(f'the answer must end here, got {self.peek().text!r}')

  def argument_text(self) -> str:
    """Returns the argument of a command as text."""
    if not self.accept('{'):
      return self.next().text
    depth, texts = 1, list[str]()
    while depth:
      token = self.next()
      if token is END:
        raise ParseError('a brace is not closed')
      depth += {'{': 1, '}': -1}.get(token.text, 0)
      texts.append(token.text)
    return ''.join(texts[:-1])


def tokenize(normalized: str, *, merge_thousands: bool) -> list[Token]:
  r"""Splits a normalized answer into tokens.

  >>> [token.text for token in tokenize(r'2\pi r, 1,000', merge_thousands=True)]
  ['2', '\\pi', 'r', ',', '1000']

  Args:
    normalized: an answer from `normalize_tex`.
    merge_thousands: whether `1,000` is one number instead of a list of two.

  Raises:
    ParseError: if a character is unknown, or there are too many tokens.
  """
  text = _REPEATING.sub(r'\1(\2\3\4\5\6)', normalized)
  text = _REPEATING_ELLIPSIS.sub(r'\1(\2\3)', text)
  if merge_thousands:
    text = _merge_thousands(text)
  text = _SPACED_THOUSANDS.sub(
    lambda match: match.group().replace(' ', ''), text
  )
  tokens: list[Token] = []
  position = 0
  while position < len(text):
    match = _TOKEN.match(text, position)
    if not match:
      raise ParseError(f'unknown character {text[position]!r}')
    if match.lastgroup:
      tokens += _make_tokens(
        match.lastgroup, match.group(match.lastgroup), match
      )
    position = match.end()
    if len(tokens) > MAX_TOKENS:
      raise ParseError('too long')
  return tokens


def _make_tokens(group: str, text: str, match: re.Match[str]) -> list[Token]:
  """Returns the tokens of one match of `_TOKEN`, by its group."""
  match group:
    case 'text':
      return _text_tokens(' '.join(text.split()))
    case 'operator':
      name = text.strip()
      if command := vocabulary.ALIASES.get(
        name, vocabulary.COMMAND_WORDS.get(name)
      ):
        return [Token('command', command)]
      return [Token('text', name)]
    case 'money':
      return [Token('text', text)]
    case 'word':
      before = match.string[: match.start()][-2:].rstrip(' ')[-1:]
      adjacent = match.string[max(match.start() - 1, 0) : match.start()]
      if text == 'min' and before.isdigit():
        return [Token('text', text)]
      return _word_tokens(text, adjacent.isdigit())
    case 'command' if text in ('\\{', '\\}', '\\\\'):
      return [Token('sign', text)]
    case 'command':
      return [Token('command', vocabulary.ALIASES.get(text[1:], text))]
  return [Token(group, text)]


def _text_tokens(text: str) -> list[Token]:
  """Splits a text at words that separate, and at numbers between units."""
  if not text:
    return []
  if text in vocabulary.TEXT_FUNCTIONS:
    return [Token('command', vocabulary.TEXT_FUNCTIONS[text])]
  if separator := _separator_tokens(text):
    return separator
  if text[-1] in ',;':
    return [*_text_tokens(text[:-1].rstrip()), Token('separator', ',')]
  first, _, rest = text.partition(' ')
  if rest and (separator := _separator_tokens(first)):
    return separator + _text_tokens(rest)
  before, _, last = text.rpartition(' ')
  if before and last != 'if' and (separator := _separator_tokens(last)):
    return _text_tokens(before) + separator
  if (between := _BETWEEN_UNITS.fullmatch(text)) and is_known(between[1]):
    before, conjunction, digits, rest = between.groups()
    separator = _separator_tokens(conjunction or '')
    number = [Token('number', digits)]
    return [Token('text', before), *separator, *number, *_text_tokens(rest)]
  return [Token('text', text)]


def _word_tokens(text: str, follows_digit: bool) -> list[Token]:
  """Splits a run of letters: a function, a word, or single letters."""
  if text in vocabulary.COMMAND_WORDS:
    return [Token('command', vocabulary.COMMAND_WORDS[text])]
  if separator := len(text) > 1 and _separator_tokens(text):
    return separator
  if joined := _FUNCTION_AND_LETTER.fullmatch(text):
    name, letter = joined.groups()
    return [Token('command', f'\\{name}'), Token('letter', letter)]
  if (
    text in BARE_UNITS
    or text.removesuffix('s') in BARE_UNITS
    or not text.isascii()
  ):
    return [Token('text', text)]
  is_word = (
    len(text) > 3
    or text.lower() in vocabulary.SHORT_WORDS
    or (len(text) == 3 and text.istitle())
  )
  if is_word and not follows_digit:
    return [Token('text', text)]
  return [Token('letter', letter) for letter in text]


def _separator_tokens(text: str) -> list[Token]:
  """Returns the separator that a word stands for, if any."""
  if text.lower() == 'to':
    return [Token('sign', ':')]
  separator = vocabulary.SEPARATORS.get(text.lower())
  return [Token('separator', separator)] if separator else []


def _merge_thousands(text: str) -> str:
  """Removes the commas of numbers such as 1,000.

  Inside brackets a comma separates elements, unless other commas of the same
  brackets are followed by a space and this one is not.
  """
  # Number of the innermost bracket around each character; 0 is outside.
  bracket_of: list[int] = [0] * (len(text) + 1)
  spaced_brackets: set[int] = {0}
  stack, count, position = [0], 0, 0
  for match in _BRACKETS.finditer(text):
    bracket_of[position : match.start()] = [stack[-1]] * (
      match.start() - position
    )
    position = match.start()
    sign = match.group()
    if sign in ('(', '[', '\\{'):
      count += 1
      stack.append(count)
    elif sign == ',':
      if text[match.end() : match.end() + 1] == ' ':
        spaced_brackets.add(stack[-1])
    elif len(stack) > 1:
      stack.pop()
  bracket_of[position:] = [stack[-1]] * (len(bracket_of) - position)
  return _THOUSANDS.sub(
    lambda match: (
      match.group().replace(',', '')
      if bracket_of[match.start()] in spaced_brackets
      else match.group()
    ),
    text,
  )
