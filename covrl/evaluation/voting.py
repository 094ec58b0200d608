# SPDX-License-Identifier: Apache-2.0
"""Merges answers that are equal but written differently, for majority votes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float


def merge_equal_answers(
  answers: Sequence[Sequence[str | None]],
  correct: Float[np.ndarray, 'N k'],
  are_equal: Callable[[Sequence[tuple[int, str, str]]], Sequence[bool]],
) -> list[list[str | None]]:
  """Replaces each answer by the first equal answer to the same problem.

  Correct answers equal the reference and so one another. Wrong ones are compared
  by `are_equal`, each with the first of those that are left, for all problems at
  once; a wrong answer never equals a correct one.

  Args:
    answers: the answers to each of N problems, `None` for a response without.
    correct: 1 for correct answers, 0 for wrong ones, NaN for unscored ones.
    are_equal: takes (index of the problem, answer, other answer) for several
      pairs, and returns a bool for each. Called as often as a problem has
      different wrong answers, at most.

  Returns:
    The answers with one spelling each, in the order of `answers`.

  Raises:
    TypeError: `are_equal` returns anything but bools.
    ValueError: `answers` and `correct` differ in number, or `are_equal` returns
      another number of them.

  >>> merge_equal_answers(
  ...   [['2', '0.5', '1/2', '4/2', None]], np.array([[0.0, 1, 1, 0, 0]]),
  ...   lambda pairs: [eval(a) == eval(b) for _, a, b in pairs])
  [['2', '0.5', '0.5', '2', None]]
  """
  spelling: dict[tuple[int, bool, str], str] = {}
  remaining: dict[int, list[str]] = {}
  for row, (texts, correctness) in enumerate(
    zip(answers, correct, strict=True)
  ):
    right = [a for a, m in zip(texts, correctness, strict=True) if a and m == 1]
    spelling |= {(row, True, answer): right[0] for answer in right}
    wrong = [a for a, m in zip(texts, correctness, strict=True) if a and m != 1]
    remaining[row] = list(dict.fromkeys(wrong))
  while any(remaining.values()):
    pairs: list[tuple[int, str, str]] = []
    for row, texts in remaining.items():
      if texts:
        first, *others = texts
        spelling[row, False, first] = first
        pairs += [(row, other, first) for other in others]
    remaining = {row: [] for row in remaining}
    equals = are_equal(pairs)
    if len(equals) != len(pairs):
      raise ValueError(
        f'are_equal must return one bool per pair, {len(pairs)}, got {len(equals)}'
      )
    for (row, text, first), equal in zip(pairs, equals, strict=True):
      if not isinstance(equal, bool | np.bool_):
        raise TypeError(f'are_equal must return bools, got {equal!r:.80}')
      if equal:
        spelling[row, False, text] = first
      else:
        remaining[row].append(text)
  return [
    [
      answer and spelling[row, is_correct == 1, answer]
      for answer, is_correct in zip(texts, correctness, strict=True)
    ]
    for row, (texts, correctness) in enumerate(
      zip(answers, correct, strict=True)
    )
  ]


def checked_extractor(extract: Any) -> Callable[[str], str | None] | None:
  """Wraps a function that extracts answers with checks of its results.

  Args:
    extract: what a task's `answer_extractor` has returned for a problem.

  Raises:
    TypeError: it is neither a function nor `None`; or, when it is called, it
      returns neither a text nor `None`.
  """
  if extract is None:
    return None
  if not callable(extract):
    raise TypeError(
      "the task's answer_extractor must return a function or None for a problem,"
      f' got {extract!r:.80}'
    )

  def checked(response: str) -> str | None:
    answer: Any = extract(response)
    if answer is not None and not isinstance(answer, str):
      raise TypeError(
        "the functions of the task's answer_extractor must return a text or None,"
        f' got {answer!r:.80}'
      )
    return answer

  return checked
