# SPDX-License-Identifier: Apache-2.0
"""Decontamination: detects evaluation questions in training data.

Whole questions are compared exactly, also within longer ones, and long ones by
n-grams, too.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from covrl.data.problems import Problem, question_key

_WORD = re.compile(r'\w+')
# A question of fewer words is not searched within longer ones, which may have its
# words by chance.
_MIN_CONTAINED_WORDS = 5
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

  It is also contaminated if it contains one of at least 5 words, as between an
  instruction and a format of the answer, unless a formula goes on behind it: `What
  is the value of 2 + 3 * 4?` does not contain `What is the value of 2 + 3?`.

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
  >>> primes = Problem(prompt='How many primes are below 9?', reference='4', source='s')
  >>> NgramIndex({'primes': [primes]}).find('Think! How many primes are below 9?')
  'primes'
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
    # Lengths of the questions to search within others, by their first tokens.
    self._lengths: dict[tuple[str, ...], set[int]] = {}
    for name, problems in sets.items():
      # Key of the first question with an n-gram.
      first_key_of_ngram: dict[int, str] = {}
      shared: set[int] = set()
      for problem in problems:
        key = problem.key or question_key(problem.prompt)
        self._set_of_key[key] = name
        if tokens := _exact_tokens(problem.prompt):
          self._set_of_question[_digest(' '.join(tokens))] = name
        if sum(map(str.isalnum, tokens)) >= _MIN_CONTAINED_WORDS:
          start = tuple(tokens[:_MIN_CONTAINED_WORDS])
          self._lengths.setdefault(start, set()).add(len(tokens))
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
    name = name or self._find_within(_exact_tokens(question))
    if name is not None:
      return name
    ngrams = self._ngrams(question)
    return next(
      (self._set_of_ngram[n] for n in ngrams if n in self._set_of_ngram), None
    )

  def _find_within(self, tokens: Sequence[str]) -> str | None:
    """Name of a set with a question that is, or is contained in, another one."""
    name = self._set_of_question.get(_digest(' '.join(tokens)))
    if name is not None or not self._lengths:
      return name
    for start in range(len(tokens) - _MIN_CONTAINED_WORDS + 1):
      prefix = tuple(tokens[start : start + _MIN_CONTAINED_WORDS])
      for length in self._lengths.get(prefix, ()):
        end = start + length
        if end > len(tokens):
          continue
        digest = _digest(' '.join(tokens[start:end]))
        name = self._set_of_question.get(digest)
        if name is not None and not _goes_on(tokens[end : end + 2]):
          return name
    return None

  def _ngrams(self, text: str) -> Iterator[int]:
    """Digests of all n-grams of a text; none if it has fewer words."""
    words = _WORD.findall(unicodedata.normalize('NFKC', text).casefold())
    for start in range(len(words) - self._ngram_words + 1):
      yield _digest(' '.join(words[start : start + self._ngram_words]))


def _exact_tokens(question: str) -> list[str]:
  """Words and symbols of a question.

  Symbols are signs, operators, relations and brackets.

  >>> ' '.join(_exact_tokens('What is $1.5 − x²$?'))
  'what is 1 . 5 - x ^ 2'
  """
  text = unicodedata.normalize('NFKC', _SUPERSCRIPT.sub(r'^\g<0>', question))
  text = _IGNORED.sub(' ', text.casefold().translate(_SAME_SYMBOLS))
  return re.findall(r'\w+|[^\w\s]', text)


def _goes_on(following: Sequence[str]) -> bool:
  """Whether a formula goes on with the tokens that follow it.

  >>> _goes_on(['*', '3']), _goes_on(['<', 'think']), _goes_on([])
  (True, False, False)
  """
  symbol, *operands = following or ('',)
  if symbol == '!':
    return True
  return symbol in set('+-*/^=<>.%') and any(
    operand.isdecimal()
    or (len(operand) == 1 and operand.isalpha())
    or operand == '('
    for operand in operands
  )


def _digest(text: str) -> int:
  """Digest of a text, of 8 bytes."""
  return int.from_bytes(
    hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big'
  )
