# SPDX-License-Identifier: Apache-2.0
"""Accuracy metrics of several responses per problem: pass@k and maj@k."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def pass_at_k(
  correct: Bool[np.ndarray, 'N n'], k: int
) -> Float[np.ndarray, ' N']:
  """Unbiased estimate of the probability that one of k responses is correct.

    1 − C(n − c, k) / C(n, k)

  for c correct ones of n: the mean over all subsets of k responses.

  Args:
    correct: whether each of n responses to each of N problems is correct.
    k: number of responses, in [1, n].

  Returns:
    One probability per problem.

  Raises:
    ValueError: k is outside [1, n].

  >>> pass_at_k(np.array([[True, False, False, False]]), 2).tolist()
  [0.5]

  References:
    Chen et al., Evaluating Large Language Models Trained on Code,
    arXiv:2107.03374, equation 1.
  """
  count = correct.shape[1]
  if not 1 <= k <= count:
    raise ValueError(f'k must lie in [1, {count}] responses, got {k}')
  wrong = count - correct.sum(axis=1)[:, None]
  # C(n − c, k) / C(n, k) as a product whose factors are at most 1.
  steps = np.arange(k)
  all_wrong = np.prod(np.maximum(wrong - steps, 0) / (count - steps), axis=1)
  return 1.0 - all_wrong


def majority_vote(
  answers: Sequence[Sequence[str | None]], correct: Bool[np.ndarray, 'N n']
) -> Float[np.ndarray, ' N']:
  """Accuracy of the most frequent answer, maj@n.

  Answers are equal if their strings are. Ties are broken at random: the result
  is the expectation, the fraction of correct answers among the most frequent
  ones. Responses without an answer have no vote.

  Args:
    answers: the final answer of each response, `None` if it has none.
    correct: whether each response is correct.

  Returns:
    One value in [0, 1] per problem; 0 without any answer.

  >>> majority_vote([['1', '2', '2', None], ['1', '2', None, None]],
  ...               np.array([[True, False, False, False]] * 2)).tolist()
  [0.0, 0.5]
  """
  return np.array(
    [
      _majority(row, marks) for row, marks in zip(answers, correct, strict=True)
    ],
    float,
  )


def _majority(
  answers: Sequence[str | None], correct: Bool[np.ndarray, ' n']
) -> float:
  votes = Counter(answer for answer in answers if answer is not None)
  if not votes:
    return 0.0
  most = max(votes.values())
  leaders = [answer for answer, count in votes.items() if count == most]
  is_correct = dict(zip(answers, correct, strict=True))
  return float(np.mean([is_correct[answer] for answer in leaders]))
