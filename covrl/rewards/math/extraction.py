# SPDX-License-Identifier: Apache-2.0
"""Extraction of the answer from a response, with one rule per prompt format.

Every rule reads the end of a response in linear time, for any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

# Characters at the end of a response that are searched.
MAX_LENGTH = 200_000

# Tokens relevant to matching braces: boxes, escaped characters, and braces.
_BRACES = re.compile(r'\\(?:boxed|fbox)\s*(\{)?|\\.|[{}]', re.DOTALL)
# Content of a box without braces: a number, word or command.
_BARE = re.compile(
  r'[-+]?(?:\\[a-zA-Z]+\s*(?:\{[^{}]*\}|\d)*|[\d.,/]*\d|[a-zA-Z]+)'
)
_FINAL = re.compile(r'####[ \t]*([^\n]*)')
_ANSWER = re.compile(r'(?i)answer[*_ \t]*:[*_\s]*([^\n]*)')


def last_box(text: str) -> str | None:
  r"""Returns the content of the last balanced `\boxed{…}` or `\fbox{…}`.

  A box within a box is part of the outer one. A box without braces, `\boxed 5`,
  counts, too.

  >>> last_box(r'so \boxed{6}, no, \boxed{\frac{7}{2}}, I mean \boxed{8')
  '\\frac{7}{2}'
  """
  found: tuple[int, int] | None = None
  # Open braces, with the start of the content for those of a box.
  opened: list[int | None] = []
  for match in _BRACES.finditer(text):
    token = match.group()
    if token == '}':
      start = opened.pop() if opened else None
      # Closed last, so it follows or encloses all boxes before it.
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
  """Returns the text after the last `####`, as in GSM8K's solutions.

  >>> after_hashes('3 + 4 = 7\\n#### 7')
  '7'
  """
  return _last(_FINAL, text)


def after_answer(text: str) -> str | None:
  """Returns the text after the last `Answer:`, as DAPO's prompts request.

  >>> after_answer('Therefore\\n**Answer:** $34$')
  '$34$'
  """
  return _last(_ANSWER, text)


RULES: Mapping[str, Callable[[str], str | None]] = {
  'boxed': last_box,
  'gsm8k': after_hashes,
  'dapo': after_answer,
}
"""Extraction rules by name."""


def extract(response: str, rule: str = 'boxed') -> str | None:
  """Extracts the answer of a response.

  Args:
    response: any text.
    rule: extraction rule, one of `RULES`.

  Returns:
    The answer as written; `None` if the response has no answer.

  Raises:
    ValueError: if the rule is unknown.
  """
  if rule not in RULES:
    raise ValueError(
      f'The rule of an answer must be one of {", ".join(RULES)}, got {rule!r}.'
    )
  answer = RULES[rule](response[-MAX_LENGTH:])
  return answer.strip() or None if answer else None


def reference_answer(reference: str | int | float) -> str:
  r"""Returns the answer of a reference: all of it, or the part that it marks.

  >>> reference_answer(r'Adding up, \boxed{7}.'), reference_answer(7)
  ('7', '7')

  Args:
    reference: an answer, or a solution with a box or `####`.

  Raises:
    ValueError: if it is empty, or neither text nor number.
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
  """Returns the first group of the last match."""
  found = None
  for match in pattern.finditer(text):
    found = match.group(1)
  return found
