# SPDX-License-Identifier: Apache-2.0
"""Where in a response its answer is: one named rule per way of asking for it.

Every rule reads the end of a response in time linear in its length, whatever it
holds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# Answers are at the end: no more than so many characters are read.
MAX_LENGTH = 200_000

# What matters to matching braces: boxes, escaped characters, and braces.
_BRACES = re.compile(r'\\(?:boxed|fbox)\s*(\{)?|\\.|[{}]', re.DOTALL)
# TeX takes one token without braces; people mean a number, word or command.
_BARE = re.compile(
  r'[-+]?(?:\\[a-zA-Z]+\s*(?:\{[^{}]*\}|\d)*|[\d.,/]*\d|[a-zA-Z]+)'
)
_FINAL = re.compile(r'####[ \t]*([^\n]*)')
_ANSWER = re.compile(r'(?i)answer[*_ \t]*:[*_\s]*([^\n]*)')


def last_box(text: str) -> str | None:
  r"""What the last balanced `\boxed{…}` or `\fbox{…}` holds.

  A box within a box is part of the outer one. A box without braces, `\boxed 5`,
  counts, too.

  >>> last_box(r'so \boxed{6}, no, \boxed{\frac{7}{2}}, I mean \boxed{8')
  '\\frac{7}{2}'
  """
  found: tuple[int, int] | None = None
  # Open braces: where the content begins, for those of a box.
  opened: list[int | None] = []
  for match in _BRACES.finditer(text):
    token = match.group()
    if token == '}':
      start = opened.pop() if opened else None
      # Closed later than all before it, so it is behind them or around them.
      if start is not None:
        found = start, match.start()
    elif token == '{' or match.group(1):
      opened.append(None if token == '{' else match.end())
    elif token.startswith(('\\boxed', '\\fbox')):
      bare = _BARE.match(text, match.end())
      if bare:
        found = bare.span()
  return None if found is None else text[slice(*found)]


def after_hashes(text: str) -> str | None:
  """What follows the last `####`, as in GSM8K's solutions.

  >>> after_hashes('3 + 4 = 7\\n#### 7')
  '7'
  """
  return _last(_FINAL, text)


def after_answer(text: str) -> str | None:
  """What follows the last `Answer:`, as DAPO's prompts ask for.

  >>> after_answer('Therefore\\n**Answer:** $34$')
  '$34$'
  """
  return _last(_ANSWER, text)


RULES: Mapping[str, Callable[[str], str | None]] = {
  'boxed': last_box,
  'gsm8k': after_hashes,
  'dapo': after_answer,
}
"""The ways in which a response may state its answer, by name."""


def extract(response: str, rule: str = 'boxed') -> str | None:
  """The answer that a response states.

  Args:
    response: any text.
    rule: one of `RULES`.

  Returns:
    The answer as it is written; `None` where there is none.

  Raises:
    ValueError: there is no such rule.
  """
  if rule not in RULES:
    raise ValueError(
      f'The rule of an answer must be one of {", ".join(RULES)}, got {rule!r}.'
    )
  answer = RULES[rule](response[-MAX_LENGTH:])
  return answer.strip() or None if answer else None


def reference_answer(reference: str | int | float) -> str:
  r"""The answer that a reference states: itself, or what it marks as such.

  >>> reference_answer(r'Adding up, \boxed{7}.'), reference_answer(7)
  ('7', '7')

  Args:
    reference: an answer, or a solution with a box or `####`.

  Raises:
    ValueError: there is none.
  """
  text = str(reference)
  marked = last_box(text) or after_hashes(text)
  answer = (text if marked is None else marked).strip()
  if not answer or not isinstance(reference, str | int | float):
    raise ValueError(
      f'A reference answer must be a text or a number, got {reference!r}.'
    )
  return answer


def _last(pattern: re.Pattern[str], text: str) -> str | None:
  """The first group of the last match."""
  found = None
  for match in pattern.finditer(text):
    found = match.group(1)
  return found
