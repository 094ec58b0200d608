# SPDX-License-Identifier: Apache-2.0
"""Whether a question to train on is also in an evaluation set, by n-grams."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence

from covrl.data.problems import Problem

_WORD = re.compile(r'\w+')


class Overlap:
  """The n-grams of evaluation sets.

  Words are runs of letters and digits, of whatever case. A question overlaps
  if it shares n words in a row with a question of an evaluation set, or all of
  its words where there are fewer. Words that two questions of one set share
  tell neither (an instruction around each, as a rule), and do not count.

  Args:
    sets: evaluation problems, by the name of the set.
    words: n.

  Raises:
    ValueError: n is not positive.

  >>> sums = Problem(prompt='Add 2 and 3, then 4.', reference='9', source='s')
  >>> overlap = Overlap({'sums': [sums]}, words=4)
  >>> overlap.of('First add 2 and 3!')
  'sums'
  >>> overlap.of('Add 2 and 4.') is None
  True
  """

  def __init__(
    self, sets: Mapping[str, Sequence[Problem]], *, words: int = 13
  ) -> None:
    if words < 1:
      raise ValueError(f'n-grams must have at least 1 word, got {words}.')
    self._words = words
    self._grams: dict[int, str] = {}
    for name, problems in sets.items():
      owners: dict[int, str] = {}
      shared: set[int] = set()
      for problem in problems:
        for gram in self._grams_of(problem.prompt):
          if owners.setdefault(gram, problem.key) != problem.key:
            shared.add(gram)
      self._grams |= {gram: name for gram in owners if gram not in shared}

  def of(self, question: str) -> str | None:
    """The evaluation set that the question is in, `None` for none."""
    return next(
      (
        self._grams[gram]
        for gram in self._grams_of(question)
        if gram in self._grams
      ),
      None,
    )

  def _grams_of(self, text: str) -> Iterator[int]:
    """Digests of all runs of n words; of the whole where there are fewer."""
    words = _WORD.findall(text.lower())
    for start in range(max(len(words) - self._words + 1, 1)):
      gram = ' '.join(words[start : start + self._words])
      digest = hashlib.blake2b(gram.encode(), digest_size=8).digest()
      yield int.from_bytes(digest, 'big')
