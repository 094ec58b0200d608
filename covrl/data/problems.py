# SPDX-License-Identifier: Apache-2.0
"""`Problem`, a prompt with its reference answer, and the sources of them."""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """A prompt and the data needed to score a response to it.

  Attributes:
    prompt: the text to continue.
    reference: the scorer's input, JSON-serialisable: an answer, tests or other
      metadata.
    source: name of the source that the problem is from.
    solution: a response for supervised training, if there is one; a correct one
      unless the task states otherwise.
    messages: the conversation that `prompt` is the last user message of, if
      the source holds conversations.
    kind: selects the scorer, for example `math` or `code`.
    pass_rate: fraction of correct responses in an earlier measurement.
    key: digest of the question, see `question_key`; equal questions have equal
      keys in every file and prompt format. Empty if unknown.
    location: file and row, for messages; empty for generated problems.
    column: column of the file that holds the reference, for messages.
  """

  prompt: str
  reference: Any
  source: str
  solution: str | None = None
  messages: tuple[Mapping[str, Any], ...] = ()
  kind: str = ''
  pass_rate: float | None = None
  key: str = ''
  location: str = ''
  column: str = ''


def question_key(question: str) -> str:
  """Digest of a question's words, ignoring case, whitespace and composed accents.

  >>> question_key('What is  $x$?') == question_key('what is $x$?')
  True
  """
  text = ' '.join(unicodedata.normalize('NFC', question.lower()).split())
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def abbreviate(text: str, length: int = 80) -> str:
  """Returns a quoted text of limited length, for errors.

  >>> abbreviate('a question', 3)
  "'a q…'"
  """
  return repr(text if len(text) <= length else f'{text[:length]}…')


def check_unicode(text: str, name: str, location: str = '') -> None:
  """Checks that a text has no lone surrogates, which cannot be encoded.

  Args:
    text: the text.
    name: name of the text in the message, such as `the prompt`.
    location: file and row, for the message; empty if unknown.

  Raises:
    ValueError: the text has a lone surrogate.

  >>> check_unicode('x\\ud800', 'the prompt', 'row 3 of a.jsonl')
  Traceback (most recent call last):
  ValueError: the prompt of row 3 of a.jsonl must be valid Unicode, got the lone surrogate '\\ud800'
  """
  try:
    text.encode()
  except UnicodeEncodeError as error:
    owner = f' of {location}' if location else ''
    raise ValueError(
      f'{name}{owner} must be valid Unicode, got the lone surrogate'
      f' {text[error.start]!r}'
    ) from None


@runtime_checkable
class ProblemSource(Protocol):
  """A Grain `RandomAccessDataSource` of `Problem`.

  `source[index]` depends on the index alone, so that a stream can resume from
  one number. It is called from several threads.
  """

  @property
  def names(self) -> tuple[str, ...]:
    """All values of `Problem.source`; the index of a name is its source id."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Problem: ...


@runtime_checkable
class Fingerprinted(Protocol):
  """A source with a digest of its content, which changes with its files."""

  @property
  def fingerprint(self) -> str:
    """Digest of the problems."""
    ...


def source_fingerprint(source: ProblemSource) -> str:
  """The source's fingerprint, or an empty string if it has none."""
  return source.fingerprint if isinstance(source, Fingerprinted) else ''
