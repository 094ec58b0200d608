# SPDX-License-Identifier: Apache-2.0
"""Extraction of the answer from a response, with one rule per prompt format.

Every rule reads the end of a response in linear time, for any text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

# Characters at the end of a response that are searched.
MAX_LENGTH = 200_000

# Characters that Unicode displays as nothing (Default_Ignorable_Code_Point): soft
# hyphens, zero-width spaces and joiners, marks of direction, variation selectors,
# byte order marks and tags; not the invisible operators U+2062 to U+2064.
_INVISIBLE = re.compile(
  '[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f'
  '\u202a-\u202e\u2060\u2061\u2065-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0'
  '\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a'
  '\U000e0000-\U000e0fff]'
)

# Tokens relevant to matching braces: boxes, escaped characters, and braces.
_BRACES = re.compile(
  r'\\(?:boxed|framebox|fbox)(?![a-zA-Z])\s*(?:\[[^\[\]{}]*\]\s*)*(?P<brace>\{)?'
  r'|\\.|[{}]',
  re.DOTALL,
)
# Content of a box without braces.
_UNBRACED_CONTENT = re.compile(
  r'[-+]?\s*(?:\\\$)?(?:[\d.,/]*\d\\?%?|\([^()\n]*\)|[a-zA-Z]+'
  r'|\\\{[^{}\n]*\\\}|\\left[^\n]{0,200}?\\right\s*\\?.'
  r'|\\(?P<command>[a-zA-Z]+))'
)
_COMMANDS_OF_TWO_ARGUMENTS = {
  'frac',
  'dfrac',
  'tfrac',
  'cfrac',
  'binom',
  'dbinom',
  'tbinom',
}
# Argument of a command without braces, and the optional argument of a root.
_UNBRACED_ARGUMENT = re.compile(r'\s*(?:\\[a-zA-Z]+|[a-zA-Z0-9])')
_OPTIONAL_ARGUMENT = re.compile(r'\[[^\[\]{}]*\]')
_AFTER_HASHES = re.compile(
  r'(?i)####[*_\s]*(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?\s*[:：]?[*_\s]*)?'
  r'([^\n]*)'
)
# A minus sign counts where no operand is before it: neither a number nor a name nor a
# closing bracket.
_PLAIN_NUMBER = re.compile(
  r'(?:(?<![^\W_])(?<![)\]}%!°−-])[-−])?\d+(?:[.,]\d+)*'
)
_AFTER_ANSWER = re.compile(r'(?i)answer[*_ \t]*[:：][*_}\s]*([^\n]*)')
# An answer that begins on a line and ends on another one.
_ENVIRONMENT = r'\{(?:equation|align|gather|multline|displaymath|math)\*?\}'
_DELIMITERS = tuple(
  (re.compile(start), re.compile(end))
  for start, end in (
    (r'\\\[', r'\\\]'),
    (r'\\\(', r'\\\)'),
    (r'\$\$', r'\$\$'),
    (r'\$', r'\$'),
    (rf'\\begin\s*{_ENVIRONMENT}', rf'\\end\s*{_ENVIRONMENT}'),
    (r'```\w*', r'```'),
  )
)


def last_box(text: str) -> str | None:
  r"""Returns the content of the last balanced `\boxed{…}` or `\fbox{…}`.

  A box within a box is part of the outer one. A box without braces, `\boxed 5` or
  `\boxed\frac12`, counts, too.

  >>> last_box(r'so \boxed{6}, no, \boxed{\frac{7}{2}}, I mean \boxed{8')
  '\\frac{7}{2}'
  """
  # Start and end of the content; `None` as end for content without braces.
  span: tuple[int, int | None] | None = None
  # Open braces, with the start of the content for those of a box.
  open_braces: list[int | None] = []
  for match in _BRACES.finditer(text):
    token = match.group()
    if token == '}':
      start = open_braces.pop() if open_braces else None
      # Closed last, so it follows or encloses all boxes before it.
      if start is not None:
        span = start, match.start()
    elif token == '{' or match.group('brace'):
      open_braces.append(None if token == '{' else match.end())
    elif len(token) > 2 and _UNBRACED_CONTENT.match(text, match.end()):
      span = match.end(), None
  if span is None:
    return None
  start, end = span
  return text[start : _unbraced_end(text, start) if end is None else end]


def _unbraced_end(text: str, start: int) -> int:
  """Returns the end of the content of a box without braces."""
  match = _UNBRACED_CONTENT.match(text, start)
  if match is None:
    return start
  end, command = match.end(), match.group('command')
  if command is None:
    return end
  if command == 'sqrt' and (optional := _OPTIONAL_ARGUMENT.match(text, end)):
    end = optional.end()
  for index in range(2 if command in _COMMANDS_OF_TWO_ARGUMENTS else 1):
    if text[end : end + 1] == '{':
      end = _group_end(text, end)
    elif command == 'sqrt' or command in _COMMANDS_OF_TWO_ARGUMENTS:
      argument = _UNBRACED_ARGUMENT.match(text, end)
      end = argument.end() if argument else end
    elif not index:
      break
  return end


def _group_end(text: str, start: int) -> int:
  """Returns the end of a group in braces; `start` if it is not closed."""
  depth = 0
  for match in _BRACES.finditer(text, start):
    if match.group() == '}':
      depth -= 1
    elif match.group() == '{' or match.group('brace'):
      depth += 1
    if not depth:
      return match.end()
  return start


def after_hashes(text: str) -> str | None:
  """Returns the text after the last `####`, as in GSM8K's solutions.

  >>> after_hashes('3 + 4 = 7\\n#### 7')
  '7'
  """
  return _after_last(_AFTER_HASHES, text)


def after_answer(text: str) -> str | None:
  """Returns the text after the last `Answer:`, as DAPO's prompts request.

  An answer on its own display line ends where the display ends.

  >>> after_answer('Therefore\\n**Answer:** $34$')
  '$34$'
  >>> after_answer('Answer:\\n$$\\n34\\n$$')
  '34'
  """
  return _after_last(_AFTER_ANSWER, text)


def last_number(text: str) -> str | None:
  """Returns the last number of a text, even if other text follows it.

  Numbers are integers and decimals; of a fraction or a range it is the last
  part. A minus directly before a number is its sign, except after another number,
  a letter or a closing bracket.

  >>> last_number('37 + 49 = 86, 86 - 90 = -4.'), last_number('none')
  ('-4', None)
  >>> last_number(r'\\boxed{-4}'), last_number('**-4**'), last_number('9-4')
  ('-4', '-4', '4')
  """
  last = None
  for match in _PLAIN_NUMBER.finditer(text):
    last = match
  return last and last.group()


RULES: Mapping[str, Callable[[str], str | None]] = {
  'boxed': last_box,
  'gsm8k': after_hashes,
  'dapo': after_answer,
  'number': last_number,
}
"""Extraction rules by name."""


def extract(response: str, rule: str = 'boxed') -> str | None:
  """Extracts the answer of a response.

  Args:
    response: any text.
    rule: extraction rule, one of `RULES`.

  Returns:
    The answer as written, without characters that are displayed as nothing;
    `None` if the response has no answer.

  Raises:
    TypeError: if the response is not a text.
    ValueError: if the rule is unknown.
  """
  if not isinstance(response, str):
    raise TypeError(f'a response must be a text, got {type(response).__name__}')
  if rule not in RULES:
    raise ValueError(
      f'the rule of an answer must be one of {", ".join(RULES)}, got {rule!r}'
    )
  answer = RULES[rule](_remove_invisible(response[-MAX_LENGTH:]))
  return answer.strip() or None if answer else None


def reference_answer(reference: str | int | float) -> str:
  r"""Returns the answer of a reference: all of it, or the part that it marks.

  >>> reference_answer(r'Adding up, \boxed{7}.'), reference_answer(7)
  ('7', '7')

  Args:
    reference: an answer, or a solution with a box or `####`.

  Raises:
    ValueError: if it is empty, or neither text nor a finite number.
  """
  text = _remove_invisible(str(reference))
  marked_answer = last_box(text) or after_hashes(text)
  answer = (text if marked_answer is None else marked_answer).strip()
  is_number = isinstance(reference, int | float) and math.isfinite(reference)
  is_number = is_number and not isinstance(reference, bool)
  if not answer or not (isinstance(reference, str) or is_number):
    raise ValueError(
      f'a reference answer must be a text or a finite number, got {reference!r}'
    )
  return answer


def _remove_invisible(text: str) -> str:
  """Removes characters that are displayed as nothing."""
  return text if text.isascii() else _INVISIBLE.sub('', text)


def _after_last(marker: re.Pattern[str], text: str) -> str | None:
  """Returns the answer after the last marker: a box, a display, or a line."""
  last = None
  for match in marker.finditer(text):
    last = match
  if last is None:
    return None
  start, line = last.start(1), last.group(1)
  for opening, closing in _DELIMITERS:
    begin = opening.match(text, start)
    if begin is None:
      continue
    end = closing.search(text, begin.end())
    if end is None:
      line = text[begin.end() :].strip().partition('\n')[0]
    elif end.start() > last.end(1):
      line = text[begin.end() : end.start()].strip()
    break
  box = last_box(line)
  return line if box is None else box
