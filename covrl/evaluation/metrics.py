# SPDX-License-Identifier: Apache-2.0
"""What several responses to each problem say about a policy's accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float


def pass_at(
  correct: Bool[np.ndarray, 'N n'], k: int
) -> Float[np.ndarray, ' N']:
  """The chance that one of k responses is right, without bias.

    1 − C(n − c, k) / C(n, k)

  for c right ones of n: the mean over all choices of k of them.

  Args:
    correct: whether each response was right.
    k: at most n.

  Returns:
    One chance a problem.

  Raises:
    ValueError: k is not in [1, n].

  >>> pass_at(np.array([[True, False, False, False]]), 2).tolist()
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
  none_right = np.prod(np.maximum(wrong - steps, 0) / (count - steps), axis=1)
  return 1.0 - none_right


def majority(
  answers: Sequence[Sequence[str | None]], correct: Bool[np.ndarray, 'N n']
) -> Float[np.ndarray, ' N']:
  """Whether the most frequent answer is right.

  Answers are the same where they are written the same. Of several that are
  equally frequent one is drawn, so that the figure is the share of right ones
  among them; responses without an answer do not vote.

  Args:
    answers: of each response, `None` where it has none.
    correct: whether each response was right.

  Returns:
    One share a problem; 0 where no response has an answer.

  >>> majority([['1', '2', '2', None], ['1', '2', None, None]],
  ...          np.array([[True, False, False, False]] * 2)).tolist()
  [0.0, 0.5]
  """
  return np.array(
    [
      _majority(own, marks) for own, marks in zip(answers, correct, strict=True)
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
  right = dict(zip(answers, correct, strict=True))
  return float(np.mean([right[answer] for answer in leaders]))
