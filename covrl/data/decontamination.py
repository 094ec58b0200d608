# SPDX-License-Identifier: Apache-2.0
"""Decontamination: detects evaluation questions in training data.

Whole questions are compared exactly, and long ones by n-grams, too.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from covrl.data.problems import Problem, question_key

_WORD = re.compile(r'\w+')
# Delimiters of formulas, quotation marks, and punctuation of sentences. Decimal
# points, factorials and ratios remain.
_IGNORED = re.compile(
  r'\\[()\[\]]|["“”„«»`$\\;?,]|(?<!\d)\.|\.(?!\d)'
  r'|(?<=[^\W\d_]):(?=\s|$)|(?<=[^\W\d_]{2})!'
)
_SUPERSCRIPT = re.compile('[²³¹⁰ⁱ⁴-⁹⁺⁻⁼⁽⁾ⁿ]')
# Other characters for the same operator or sign.
_SAME_SYMBOLS = str.maketrans(
  {'−': '-', '–': '-', '—': '-', '‐': '-', '×': '*', '⋅': '*', '·': '*'}
  | {'÷': '/', '≤': '<=', '≥': '>=', '’': "'", '‘': "'"}
)


class NgramIndex:
  """Index of the questions of evaluation sets, and of their word n-grams.

  A question is contaminated if it is one of an evaluation set: if both have the
  same words, signs, operators, relations and brackets in the same order, or the
  same `Problem.key`. Questions that differ in an operator are different ones.

  It is also contaminated if it shares n consecutive words with a question of an
  evaluation set, whatever is between the words. N-grams that occur in two
  questions of one set, usually the prompt's instruction, are ignored.

  Words are runs of letters and digits; case is ignored, and so is how a character
  is encoded: accents may be combined, digits of full width.

  Args:
    sets: evaluation problems by the name of the set.
    ngram_words: n, the number of words of an n-gram.

  Raises:
    ValueError: n is not positive.

  >>> sums = Problem(prompt='Add 2 and 3, then 4.', reference='9', source='s')
  >>> index = NgramIndex({'sums': [sums]}, ngram_words=4)
  >>> index.find('First add 2 and 3!')
  'sums'
  >>> index.find('Add 2 and 4.') is None
  True
  """

  def __init__(
    self, sets: Mapping[str, Sequence[Problem]], *, ngram_words: int = 13
  ) -> None:
    if ngram_words < 1:
      raise ValueError(f'n-grams must have at least 1 word, got {ngram_words}')
    self._ngram_words = ngram_words
    self._set_of_key: dict[str, str] = {}
    self._set_of_question: dict[int, str] = {}
    self._set_of_ngram: dict[int, str] = {}
    for name, problems in sets.items():
      # Key of the first question with an n-gram.
      first_key_of_ngram: dict[int, str] = {}
      shared: set[int] = set()
      for problem in problems:
        key = problem.key or question_key(problem.prompt)
        self._set_of_key[key] = name
        if text := _exact_text(problem.prompt):
          self._set_of_question[_digest(text)] = name
        for ngram in self._ngrams(problem.prompt):
          if first_key_of_ngram.setdefault(ngram, key) != key:
            shared.add(ngram)
      self._set_of_ngram |= {
        n: name for n in first_key_of_ngram if n not in shared
      }

  def find(self, question: str, key: str = '') -> str | None:
    """Name of an evaluation set that contains the question, or `None`.

    Args:
      question: the text of the question.
      key: its `Problem.key`, if known.
    """
    name = self._set_of_key.get(key or question_key(question))
    name = name or self._set_of_question.get(_digest(_exact_text(question)))
    if name is not None:
      return name
    ngrams = self._ngrams(question)
    return next(
      (self._set_of_ngram[n] for n in ngrams if n in self._set_of_ngram), None
    )

  def _ngrams(self, text: str) -> Iterator[int]:
    """Digests of all n-grams of a text; none if it has fewer words."""
    words = _WORD.findall(unicodedata.normalize('NFKC', text).casefold())
    for start in range(len(words) - self._ngram_words + 1):
      yield _digest(' '.join(words[start : start + self._ngram_words]))


def _exact_text(question: str) -> str:
  """Words and symbols of a question, separated by spaces.

  Symbols are signs, operators, relations and brackets.

  >>> _exact_text('What is $1.5 − x²$?')
  'what is 1 . 5 - x ^ 2'
  """
  text = unicodedata.normalize('NFKC', _SUPERSCRIPT.sub(r'^\g<0>', question))
  text = _IGNORED.sub(' ', text.casefold().translate(_SAME_SYMBOLS))
  return ' '.join(re.findall(r'\w+|[^\w\s]', text))


def _digest(text: str) -> int:
  """Digest of a text, of 8 bytes."""
  return int.from_bytes(
    hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big'
  )
