# SPDX-License-Identifier: Apache-2.0
"""Published accuracies that recipes reproduce, shown next to a run's own.

The paper's averages are not the mean of the seven columns in any row, and the
paper does not define them, so reports show both.

References:
  Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning
  Language Models, arXiv:2505.22617, table 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

_EVALUATION_SETS = (
  'aime24',
  'aime25',
  'amc',
  'math500',
  'omni_math',
  'olympiadbench',
  'minerva',
)


@dataclasses.dataclass(frozen=True)
class PublishedRow:
  """One row of the table, in percent.

  Attributes:
    name: method and model as printed.
    accuracies: accuracy on each evaluation set.
    printed_average: average that the paper prints.

  >>> row = PUBLISHED_ROWS['qwen2_5_7b_kl_cov']
  >>> row.printed_average, round(row.mean(row.accuracies), 1)
  (40.6, 41.1)
  """

  name: str
  accuracies: dict[str, float]
  printed_average: float

  def mean(self, sets: Iterable[str]) -> float | None:
    """Mean over the sets on which the row has an accuracy; `None` without any."""
    set_accuracies = [
      self.accuracies[name] for name in sets if name in self.accuracies
    ]
    return sum(set_accuracies) / len(set_accuracies) if set_accuracies else None


def _row(name: str, *accuracies: float) -> PublishedRow:
  """A row of the table: method, accuracies of `_EVALUATION_SETS`, and printed average."""
  *set_accuracies, printed_average = accuracies
  return PublishedRow(
    name,
    dict(zip(_EVALUATION_SETS, set_accuracies, strict=True)),
    printed_average,
  )


PUBLISHED_ROWS = {
  'qwen2_5_7b_grpo': _row(
    'GRPO, 7B', 21.2, 9.6, 58.7, 78.8, 27.9, 40.7, 36.7, 38.6
  ),
  'qwen2_5_7b_clip_higher': _row(
    'clip-higher, 7B', 18.1, 11.5, 56.6, 79.2, 29.8, 43.3, 40.4, 38.8
  ),
  'qwen2_5_7b_clip_cov': _row(
    'Clip-Cov, 7B', 22.1, 15.8, 58.2, 80.4, 30.5, 44.1, 41.1, 40.4
  ),
  'qwen2_5_7b_kl_cov': _row(
    'KL-Cov, 7B', 22.6, 12.9, 61.4, 80.8, 29.1, 42.6, 38.2, 40.6
  ),
  'qwen2_5_32b_grpo': _row(
    'GRPO, 32B', 21.8, 16.2, 69.7, 84.2, 35.2, 43.6, 45.5, 45.8
  ),
  'qwen2_5_32b_clip_higher': _row(
    'clip-higher, 32B', 35.6, 22.3, 69.5, 77.2, 35.1, 42.5, 43.0, 47.2
  ),
  'qwen2_5_32b_clip_cov': _row(
    'Clip-Cov, 32B', 32.3, 22.7, 67.2, 87.0, 42.0, 57.2, 46.0, 50.3
  ),
  'qwen2_5_32b_kl_cov': _row(
    'KL-Cov, 32B', 36.8, 30.8, 74.5, 84.6, 39.1, 49.0, 46.3, 52.2
  ),
}
"""Rows by the recipe that reproduces them."""
