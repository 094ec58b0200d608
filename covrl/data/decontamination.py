# SPDX-License-Identifier: Apache-2.0
"""Decontamination: detects evaluation questions in training data by n-grams."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from covrl.data.problems import Problem, question_key

_WORD = re.compile(r'\w+')


class NgramIndex:
  """Index of the word n-grams of evaluation sets.

  Words are runs of letters and digits; case is ignored, and so is how a character
  is encoded: accents may be combined, digits of full width. A question is
  contaminated if it shares n consecutive words with a question of an evaluation
  set; for shorter questions, all words. N-grams that occur in two questions of
  one set, usually the prompt's instruction, are ignored.

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
    self._set_of_ngram: dict[int, str] = {}
    for name, problems in sets.items():
      # Key of the first question with an n-gram.
      first_key_of_ngram: dict[int, str] = {}
      shared: set[int] = set()
      for problem in problems:
        key = problem.key or question_key(problem.prompt)
        for ngram in self._ngrams(problem.prompt):
          if first_key_of_ngram.setdefault(ngram, key) != key:
            shared.add(ngram)
      self._set_of_ngram |= {
        n: name for n in first_key_of_ngram if n not in shared
      }

  def find(self, question: str) -> str | None:
    """Name of an evaluation set that contains the question, or `None`."""
    ngrams = self._ngrams(question)
    return next(
      (self._set_of_ngram[n] for n in ngrams if n in self._set_of_ngram), None
    )

  def _ngrams(self, text: str) -> Iterator[int]:
    """Digests of all n-grams of a text; of all its words if they are fewer."""
    words = _WORD.findall(unicodedata.normalize('NFKC', text).casefold())
    for start in range(max(len(words) - self._ngram_words + 1, 1)):
      ngram = ' '.join(words[start : start + self._ngram_words])
      digest = hashlib.blake2b(ngram.encode(), digest_size=8).digest()
      yield int.from_bytes(digest, 'big')
