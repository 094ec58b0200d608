# SPDX-License-Identifier: Apache-2.0
"""`UnreadColumns`, which counts rows whose question a schema reads in part only."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from covrl.data.columns import Row
from covrl.data.counts import NamedCounts
from covrl.data.problems import Problem
from covrl.data.schemas import Schema

QUESTION_PARTS = (
  # Possible answers.
  *('choice', 'choices', 'option', 'options', 'distractor', 'distractors'),
  *('opa', 'opb', 'opc', 'opd', 'ope'),
  # What the question is about.
  *('article', 'background', 'context', 'contexts', 'ctx', 'document'),
  *('documents', 'input', 'paragraph', 'paragraphs', 'passage', 'passages'),
  *('premise', 'story', 'table', 'tables'),
  # The rest of the conversation, and functions that it may call.
  *('history', 'instruction', 'instructions', 'system', 'system_message'),
  *('system_prompt', 'tools', 'functions', 'tool_calls', 'function_call'),
  # The beginning of a program.
  *('entry_point', 'function_signature', 'starter_code'),
  # What is not text.
  *('audio', 'audios', 'diagram', 'diagrams', 'figure', 'figures'),
  *('image', 'images', 'picture', 'pictures', 'video', 'videos'),
)
"""Columns that usually hold a part of the question.

Case does not matter, and a number or a letter to E may follow: `image_1`, `optionA`.
Columns named A to E are possible answers, too.
"""

_PART = re.compile(
  rf'[A-E]|(?i:(?:{"|".join(QUESTION_PARTS)})(?:[ _-]?(?:\d+|[a-e]))?)'
)
# What stands in a text for something else, by the name that a warning has for it.
_PLACEHOLDERS = {
  '<image>': re.compile(r'<image ?\d*>'),
  '<img …>': re.compile(r'<img\s'),
  '![…](…)': re.compile(r'!\[[^\]\n]*\]\(\S'),
  '<video>': re.compile(r'<video ?\d*>'),
  '<audio>': re.compile(r'<audio ?\d*>'),
}
_MAX_NAMED = 8


class UnreadColumns:
  """Counts rows whose question may have a part that a schema does not read.

  Such parts are columns in `QUESTION_PARTS`, fields of messages with these names,
  and images to which the text refers. Columns do not count where they are empty,
  or where the question holds each of their texts, as its possible answers often.

  Args:
    schema: schema of the rows.
  """

  def __init__(self, schema: Schema) -> None:
    self._schema = schema
    self._total = 0
    self._parts = NamedCounts(_MAX_NAMED)

  def add(self, row: Row, problem: Problem) -> None:
    """Counts a row.

    Args:
      row: the row.
      problem: the problem that the schema reads in it.
    """
    self._total += 1
    self._parts.add(row.location, self._unread_parts(row, problem))

  def warnings(self) -> list[str]:
    """A sentence if there are such rows."""
    count = self._parts.number
    if not count:
      return []
    return [
      f'{count:,} of {self._total:,} rows have what usually is a part of the'
      f' question and the schema {self._schema.name} does not read: {self._parts}'
    ]

  def _unread_parts(self, row: Row, problem: Problem) -> Iterator[str]:
    """Names of the parts of a question that its problem lacks."""
    texts = (problem.prompt, *(m['content'] for m in problem.messages))
    question = '\n'.join(texts)
    compact = ' '.join(question.split())
    read = self._schema.columns(row)
    for name, value in row.columns.items():
      if _is_part(name) and name not in read and not _holds(compact, value):
        yield repr(name)
    if problem.messages:
      for message in row.value(read[0]):
        for name, value in message.items():
          if _is_part(name) and not _holds(compact, value):
            yield f'{name!r} of messages'
    for name, pattern in _PLACEHOLDERS.items():
      if pattern.search(question):
        yield f'what is at {name}'


def _is_part(column: str) -> bool:
  """Whether a column usually holds a part of the question.

  >>> [name for name in ('Options', 'image_2', 'A', 'answer', 'a') if _is_part(name)]
  ['Options', 'image_2', 'A']
  """
  return _PART.fullmatch(column) is not None


def _holds(text: str, value: Any) -> bool:
  """Whether a text has all words of a value, or the value has no content.

  Args:
    text: a text with single spaces.
    value: the value of a column.

  >>> _holds('Is it (A) 4 or (B) 15?', {'A': '4', 'B': 15, 'C': None})
  True
  >>> _holds('Is it (A) 4 or (B) 15?', ['4', '5'])
  False
  """
  values = [value]
  while values:
    match values.pop():
      case None | False | '' | b'':
        pass
      case Mapping() as fields:
        values.extend(fields.values())
      case list() | tuple() as items:
        values.extend(items)
      case float(number) if math.isnan(number):
        pass
      case other:
        words = ' '.join(str(other).split())
        if words and not _has_words(text, words):
          return False
  return True


def _has_words(text: str, words: str) -> bool:
  """Whether a text has words in this order, not as a part of longer ones."""
  start = text.find(words)
  while start >= 0:
    end = start + len(words)
    neighbours = text[max(start - 1, 0) : start] + text[end : end + 1]
    if not any(map(str.isalnum, neighbours)):
      return True
    start = text.find(words, start + 1)
  return False
