# SPDX-License-Identifier: Apache-2.0
"""Accuracy metrics of several responses per problem: mean, pass@k and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

Correctness: TypeAlias = Bool[np.ndarray, 'N n'] | Float[np.ndarray, 'N n']
"""Whether each of n responses to each of N problems is correct.

NaN stands for a response that could not be scored.
"""


def mean_correct(correct: Correctness) -> Float[np.ndarray, ' N']:
  """Fraction of correct responses per problem, of those that have a score.

  Args:
    correct: see `Correctness`.

  Returns:
    One value per problem; NaN for a problem without any scored response.

  Raises:
    ValueError: an entry of `correct` is neither 0, 1 nor NaN, or is masked.

  >>> mean_correct(np.array([[1.0, 0.0], [1.0, np.nan]])).tolist()
  [0.5, 1.0]
  """
  check_correctness(correct)
  scored = ~np.isnan(correct)
  counts = scored.sum(axis=1)
  right = np.where(scored, correct, 0.0).sum(axis=1)
  return np.where(counts > 0, right / np.maximum(counts, 1), np.nan)


def pass_at_k(correct: Correctness, k: int) -> Float[np.ndarray, ' N']:
  """Unbiased estimate of the probability that one of k responses is correct.

    1 − C(n − c, k) / C(n, k)

  for c correct ones of n: the mean over all subsets of k responses. Responses
  without a score are not among the n.

  Args:
    correct: see `Correctness`.
    k: number of responses, in [1, n].

  Returns:
    One probability per problem; NaN for one with fewer than k scored responses.

  Raises:
    ValueError: k is outside [1, n], or an entry of `correct` is neither 0, 1 nor
      NaN.

  >>> pass_at_k(np.array([[True, False, False, False]]), 2).tolist()
  [0.5]

  References:
    Chen et al., Evaluating Large Language Models Trained on Code,
    arXiv:2107.03374, equation 1.
  """
  check_correctness(correct)
  is_whole = isinstance(k, int | np.integer) and not isinstance(k, bool)
  if not is_whole or not 1 <= k <= correct.shape[1]:
    raise ValueError(
      f'k must be an integer in [1, {correct.shape[1]}], the responses, got {k!r}'
    )
  counts = (~np.isnan(correct)).sum(axis=1)[:, None]
  wrong = counts - (correct == 1).sum(axis=1)[:, None]
  # C(n − c, k) / C(n, k) as a product whose factors are at most 1.
  steps = np.arange(k)
  factors = np.maximum(wrong - steps, 0) / np.maximum(counts - steps, 1)
  return np.where(counts[:, 0] >= k, 1.0 - np.prod(factors, axis=1), np.nan)


def majority_vote(
  answers: Sequence[Sequence[Hashable | None]], correct: Correctness
) -> Float[np.ndarray, ' N']:
  """Accuracy of the most frequent answer, maj@n.

  Correct answers are equal to the reference and so to one another, however they
  are written; other answers are equal if their entries are. Ties are broken at
  random: the result is the expectation, the fraction of correct answers among the
  most frequent ones. Responses without an answer have no vote.

  Args:
    answers: the final answer of each response, `None` if it has none; the same
      entry for answers that the grader regards as equal.
    correct: see `Correctness`.

  Returns:
    One value in [0, 1] per problem; 0 without any answer, NaN for a problem of
    which a response has no score.

  Raises:
    TypeError: the answers to a problem are a text, of which each letter would
      vote.
    ValueError: an entry of `correct` is neither 0, 1 nor NaN, there is not one
      answer per response, or an answer is NaN, which equals no answer.

  >>> majority_vote([['1', '2', '2', None], ['1', '2', None, None]],
  ...               np.array([[True, False, False, False]] * 2)).tolist()
  [0.0, 0.5]
  """
  check_correctness(correct)
  counts = [len(row) for row in answers]
  if counts != [correct.shape[1]] * len(correct):
    raise ValueError(
      f'answers must be one per response {correct.shape}, got {counts!r:.80} to'
      f' {len(counts)} problems'
    )
  for row in answers:
    if isinstance(row, str | bytes):
      raise TypeError(f'answers must be a list per problem, got {row!r:.80}')
    if any(isinstance(answer, float) and answer != answer for answer in row):
      raise ValueError('answers must be entries or None, got nan')
  return np.array(
    [
      _majority(row, correctness)
      for row, correctness in zip(answers, correct, strict=True)
    ],
    float,
  )


def check_correctness(correct: Correctness) -> None:
  """Refuses entries other than 0, 1 and NaN, and arrays without a row per problem.

  Raises:
    ValueError: they are not an array `[N, n]` of 0, 1 and NaN without a mask.
  """
  correctness: object = correct
  is_plain = isinstance(correctness, np.ndarray) and not isinstance(
    correctness, np.ma.MaskedArray
  )
  if (
    not is_plain
    or correctness.ndim != 2
    or correctness.dtype.kind not in 'biuf'
  ):
    raise ValueError(
      f'correct must be an array [N, n] of numbers, got {np.shape(correct)} of'
      f' {getattr(correct, "dtype", "")} {type(correct).__name__}'
    )
  wrong = correct[~(np.isnan(correct) | np.isin(correct, (0, 1)))]
  if wrong.size:
    raise ValueError(f'correct must be 0, 1 or NaN, got {wrong.flat[0]:g}')


def _majority(
  answers: Sequence[Hashable | None],
  correctness: Bool[np.ndarray, ' n'] | Float[np.ndarray, ' n'],
) -> float:
  """The value of `majority_vote` for one problem."""
  if np.isnan(correctness).any():
    return float('nan')
  votes = Counter(
    (True, None) if is_correct else (False, answer)
    for answer, is_correct in zip(answers, correctness, strict=True)
    if answer is not None
  )
  if not votes:
    return 0.0
  most_votes = max(votes.values())
  leaders = [
    right for (right, _), count in votes.items() if count == most_votes
  ]
  return float(np.mean(leaders))
