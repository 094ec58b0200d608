# SPDX-License-Identifier: Apache-2.0
"""Reference answers as a model would write them.

A reference that still carries the notation of its file is equal to itself, but
to no response. The check before a run therefore grades the answer alone.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_LABEL = re.compile(
  r'(?:.*####|((so|thus|hence|therefore),? )?(the )?(final )?'
  r'(answer|solution|result)\s*(is:?|:|=))\s*',
  re.DOTALL | re.IGNORECASE,
)


def bare_answer(reference: str) -> str:
  r"""The answer in a reference, without the notation of files around it.

  Quoted lists and objects become their items, labels such as `The answer is`
  and `####` are left out, and doubled backslashes become those of TeX.

  >>> bare_answer(r'["-\frac{2}{3}"]'), bare_answer("['1', '2']")
  ('-\\frac{2}{3}', '1, 2')
  >>> bare_answer('The answer is 5.'), bare_answer('7')
  ('5', '7')
  >>> bare_answer(r'\\frac{1}{2}')
  '\\frac{1}{2}'
  """
  text = reference.strip()
  items = _quoted_items(text)
  if items:
    text = ', '.join(items)
  while (label := _LABEL.match(text)) and label.end() < len(text):
    text = text[label.end() :].rstrip('. \n')
  single = re.search(r'(?<!\\)\\(?!\\)', text)
  if single is None and re.search(r'\\\\[a-zA-Z]', text):
    # Each backslash is doubled; a line break of TeX occurs with single ones.
    text = text.replace('\\\\', '\\')
  return text


def _quoted_items(text: str) -> list[str]:
  """Texts of a list, object or text in the notation of JSON or Python."""
  if text[:1] not in ('[', '{', '(', '"', "'"):
    return []
  # TeX has single backslashes, which both notations would interpret.
  doubled = text.replace('\\', '\\\\')
  for parse, quoted in (
    (json.loads, doubled),
    (ast.literal_eval, doubled),
    (json.loads, text),
  ):
    try:
      items = list(_texts(parse(quoted)))
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
      continue
    # Without quotes it is an interval, a point or a set.
    return items if '"' in text or "'" in text else []
  return []


def _texts(value: Any) -> Iterator[str]:
  """Yields the items of nested lists and objects as text."""
  if isinstance(value, Mapping):
    value = list(value.values())
  if isinstance(value, list | tuple | set):
    for item in value:
      yield from _texts(item)
  elif value is not None:
    yield str(value)
