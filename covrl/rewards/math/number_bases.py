# SPDX-License-Identifier: Apache-2.0
r"""Numbers with a base: `1A3_{16}`, `1011_{\text{two}}`, `231 \text{ base } 5`."""

from __future__ import annotations

import re

_BASE_WORDS = {
  **{'two': 2, 'three': 3, 'four': 4, 'five': 5, 'six': 6, 'seven': 7},
  **{'eight': 8, 'nine': 9, 'ten': 10, 'eleven': 11, 'twelve': 12},
  **{'sixteen': 16, 'twenty': 20, 'binary': 2, 'bin': 2, 'octal': 8, 'oct': 8},
  **{'decimal': 10, 'hexadecimal': 16, 'hex': 16, 'dec': 10},
}
_FONT = r'\\(?:text|mathrm|mathtt|mathbf|mathsf|textbf|texttt)\s*'
_BASE_NAME = (
  rf'(?:\d{{1,2}}|{"|".join(sorted(_BASE_WORDS, key=len, reverse=True))})'
)
_BASE_PHRASE = rf'\(?\s*(?:base[\s~-]*)?({_BASE_NAME})\s*\)?'
_SPACE = r'(?:\s|\\[ ,;:!]|~)*'
_DIGITS = rf'((?:[0-9A-F]|[a-f]{{2,}}(?=_(?:16|\{{\s*16))|\\overline\s*\{{[0-9A-F]+\}}|{_FONT}\{{\s*[0-9A-Fa-f]+\s*\}})+)'
_NUMBER = re.compile(
  rf'(?<![\w.,^\\}}])(?:\(\s*{_DIGITS}\s*\)|{_DIGITS})'
  r'(?:'
  rf'\s*_\s*(?:\d(?!\d)|\d\d(?!\d)|{_FONT}\{{\s*{_BASE_PHRASE}\s*\}}'
  rf'|\{{\s*(?:{_BASE_PHRASE}|{_FONT}\{{\s*{_BASE_PHRASE}\s*\}}|{_FONT}\{{\s*base\s*\}}\s*\d+)\s*\}})'
  rf'|{_SPACE}{_FONT}\{{\s*\(?\s*(?:in\s+)?base[\s~-]*{_BASE_NAME}\s*\)?\s*\}}'
  rf'|{_SPACE}\(?\s*{_FONT}\{{\s*(?:in\s+)?base[\s~-]*\}}\s*{_BASE_NAME}\s*\)?'
  rf'|{_SPACE}\(?\s*(?:in\s+)?base[\s~-]*{_BASE_NAME}(?!\w)\s*\)?'
  r')'
)
_MARKUP = re.compile(rf'(?:{_FONT}|\\overline\s*)\{{\s*|\s*\}}')
_HEXADECIMAL = re.compile(r'(?<![\w.])0x([0-9A-Fa-f]+)(?!\w)')
_BASE_NAME_PATTERN = re.compile(_BASE_NAME)


def mark_bases(text: str) -> str:
  r"""Writes numbers with a base by a TeX command that the parser reads.

  >>> mark_bases(r'1011_{\text{two}}')
  '\\based{1011}{2}'
  """
  text = _HEXADECIMAL.sub(r'\\based{\1}{16}', text)
  if '_' not in text and 'base' not in text:
    return text
  return _NUMBER.sub(_mark_base, text)


def _mark_base(match: re.Match[str]) -> str:
  """Returns a number with a base as a TeX command (in base 10, its digits alone).

  Other matches are returned unchanged.
  """
  digits_tex = match.group(1) or match.group(2)
  digits = _MARKUP.sub('', digits_tex)
  names = _BASE_NAME_PATTERN.findall(
    match.group()[match.end(1 if match.group(1) else 2) - match.start() :]
  )
  base = _BASE_WORDS.get(names[-1]) or int(names[-1])
  is_more_than_a_letter = digits_tex.isalnum() is False or len(digits) > 1
  is_number = any(map(str.isdigit, digits)) or (
    is_more_than_a_letter and base > 10
  )
  if not is_number or not 2 <= base <= 36:
    return match.group()
  digits = digits.upper()
  if any(int(digit, 36) >= base for digit in digits):
    return match.group()
  return f' {digits} ' if base == 10 else f'\\based{{{digits}}}{{{base}}}'
