# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: metrics with intervals, and results per problem."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float

from covrl.data import Suite
from covrl.evaluation.intervals import Estimate, bootstrap_sets
from covrl.evaluation.metrics import (
  Correctness,
  check_correctness,
  majority_vote,
  mean_correct,
  pass_at_k,
)
from covrl.rewards import GRADE_TOLERANCE

NUM_EXAMPLES = 8
"""Problems of each suite whose greedy responses a run's evaluations keep."""

Metrics: TypeAlias = dict[str, Float[np.ndarray, ' N']]
"""Values per problem by the name of the metric; NaN for problems without one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteResult:
  """Results of one suite of N problems.

  A response that could not be scored is neither correct nor wrong, and its entry
  is NaN.

  Attributes:
    suite: the suite.
    greedy: whether the greedy response to each problem is correct.
    correct: whether each of k samples is correct.
    responses: the texts per problem, first the greedy one, then the samples.
    answers: the samples' final answers, for maj@k, equal answers in the same
      spelling; `None` if the problems have no short answers.
    undecided: indices of problems of which two wrong answers could not be
      compared, so that their vote is unknown.
    truncated: number of responses that the length limit ended.

  Raises:
    ValueError: results or answers are not one per problem and sample, or an entry
      of `correct` is neither 0, 1 nor NaN.
  """

  suite: Suite
  greedy: Bool[np.ndarray, ' N'] | Float[np.ndarray, ' N']
  correct: Correctness
  responses: Sequence[Sequence[str]]
  answers: Sequence[Sequence[str | None]] | None = None
  undecided: frozenset[int] = frozenset()
  truncated: int = 0

  def __post_init__(self) -> None:
    count, samples = len(self.suite.problems), self.suite.samples
    check_correctness(self.greedy[:, None])
    check_correctness(self.correct)
    sizes = {
      'greedy': (self.greedy.shape, (count,)),
      'correct': (self.correct.shape, (count, samples)),
      'responses': (_shape(self.responses, 1 + samples), (count, 1 + samples)),
    }
    if self.answers is not None:
      sizes['answers'] = (_shape(self.answers, samples), (count, samples))
    for name, (actual, required) in sizes.items():
      if actual != required:
        raise ValueError(f'{name} must be {required}, got {actual}')

  @property
  def unscored(self) -> int:
    """Number of responses without a score."""
    return int(np.isnan(self.greedy).sum() + np.isnan(self.correct).sum())

  def metrics(self) -> Metrics:
    """Returns all metrics per problem.

    These are greedy; with k samples mean@k, and pass@j for j = k and all smaller
    powers of 2; with answers maj@k. Unscored responses are left out; a problem with
    too few scored responses has the value NaN.
    """
    metrics = {'greedy': self.greedy.astype(float)}
    samples = self.suite.samples
    if not samples:
      return metrics
    metrics[f'mean@{samples}'] = mean_correct(self.correct)
    powers = [1 << n for n in range(1, samples.bit_length())]
    for k in dict.fromkeys((*(p for p in powers if p < samples), samples)):
      metrics[f'pass@{k}'] = pass_at_k(self.correct, k)
    if self.answers is not None:
      votes = majority_vote(self.answers, self.correct)
      votes[list(self.undecided)] = math.nan
      metrics[f'maj@{samples}'] = votes
    return metrics

  def metric_bounds(self) -> tuple[Metrics, Metrics]:
    """Returns the smallest and largest metrics that unscored responses allow.

    They are those with all of them wrong, and with all of them correct.
    """
    bounds: list[Metrics] = []
    for value in (0.0, 1.0):
      metrics = dataclasses.replace(
        self,
        greedy=_with_missing(self.greedy, value),
        correct=_with_missing(self.correct, value),
      ).metrics()
      # An unscored response that is correct may also lower a vote: 0 to 1 are allowed.
      votes = {n: v for n, v in self.metrics().items() if n.startswith('maj@')}
      bounds.append(
        metrics | {n: _with_missing(v, value) for n, v in votes.items()}
      )
    low, high = bounds
    return low, high

  def lines(
    self, *, responses: bool, examples: int = 0
  ) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per problem; unscored responses are null.

    Args:
      responses: whether to include the texts of all responses.
      examples: number of problems with the text of the greedy response.
    """
    for index, problem in enumerate(self.suite.problems):
      line: dict[str, Any] = {
        'suite': self.suite.name,
        'key': problem.key,
        'prompt': problem.prompt,
        'greedy': _to_integer(self.greedy[index]),
        'correct': list(map(_to_integer, self.correct[index])),
      }
      if self.suite.samples:
        line['temperature'] = self.suite.temperature
      if self.answers is not None:
        line['answers'] = list(self.answers[index])
      if responses:
        if isinstance(problem.reference, str):
          line['reference'] = problem.reference
        line['responses'] = list(self.responses[index])
      if index < examples:
        line['response'] = self.responses[index][0]
      yield line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Results of all suites.

  Attributes:
    results: the result of each suite.
    entropy: mean of −log π over the tokens of samples at temperature 1, in nats; NaN
      without such samples, since other tokens are not drawn from the policy.
    highest_grade: highest score of a response, relative to the score of a correct one.
  """

  results: tuple[SuiteResult, ...]
  entropy: float
  highest_grade: float = 1.0

  @property
  def unscored(self) -> int:
    """Number of responses without a score."""
    return sum(result.unscored for result in self.results)

  @property
  def num_responses(self) -> int:
    """Number of responses, the greedy ones and the samples."""
    return sum(r.greedy.size + r.correct.size for r in self.results)

  @property
  def truncated(self) -> int:
    """Number of responses that the length limit ended."""
    return sum(result.truncated for result in self.results)

  def grade_warning(self) -> str | None:
    """Returns a sentence if grades are not on the scale from wrong to correct."""
    if self.highest_grade <= 1 + GRADE_TOLERANCE:
      return None
    return (
      'scores of rewards must be at most 1, that of a correct response, got'
      f' {self.highest_grade:g}: accuracies count every response of 1 or more as'
      ' correct; the score function can divide by its highest score'
    )

  def values(self) -> dict[str, list[Float[np.ndarray, ' N']]]:
    """Returns all metrics per problem, as one array per suite.

    The metrics of a named suite have its name, `aime24/mean@32`. A metric
    without a suite's name covers all suites that have it; `accuracy` covers all
    named suites, each by its main metric. Unscored responses are left out.
    """
    return self._by_metric(SuiteResult.metrics)

  def estimates(self) -> dict[str, Estimate]:
    """Returns each metric's mean over suites, with its interval.

    With unscored responses the lower end is that of the interval in which all of
    them are wrong, the upper end that in which all are correct.
    """
    estimates = {n: _estimate(v) for n, v in self.values().items()}
    if not self.unscored and not any(r.undecided for r in self.results):
      return estimates
    low, high = (
      self._by_metric(lambda result, index=index: result.metric_bounds()[index])
      for index in range(2)
    )
    return {
      name: _widened(
        estimate, bootstrap_sets(low[name]), bootstrap_sets(high[name])
      )
      for name, estimate in estimates.items()
    }

  def summary(self) -> dict[str, float]:
    """Returns means, standard errors and intervals under flat names.

    A metric that no problem has is NaN, without an interval. The standard error
    of a set of one problem is NaN, too.
    """
    summary: dict[str, float] = {
      'problems': sum(len(result.greedy) for result in self.results),
      'unscored': self.unscored,
      'truncated_fraction': self.truncated / self.num_responses,
    }
    values = self.values()
    for name, estimate in self.estimates().items():
      summary[name] = estimate.value
      summary[f'{name}_stderr'] = _stderr(values[name])
      if estimate.low is not None and estimate.high is not None:
        summary[f'{name}_low'] = estimate.low
        summary[f'{name}_high'] = estimate.high
    return summary | {'entropy': self.entropy}

  def _by_metric(
    self, metrics_of: Callable[[SuiteResult], Metrics]
  ) -> dict[str, list[Float[np.ndarray, ' N']]]:
    """Sorts the metrics of all suites by name; see `values`."""
    pooled: dict[str, list[Float[np.ndarray, ' N']]] = {}
    named: dict[str, list[Float[np.ndarray, ' N']]] = {}
    for result in self.results:
      suite = result.suite
      metrics = metrics_of(result)
      if suite.name:
        main = f'mean@{suite.samples}' if suite.samples else 'greedy'
        metrics = metrics | {'accuracy': metrics[main]}
        named |= {f'{suite.name}/{n}': [v] for n, v in metrics.items()}
      for name, column in metrics.items():
        pooled.setdefault(name, []).append(column)
    return pooled | named

  def lines(self) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per problem, the first with a greedy response."""
    for result in self.results:
      yield from result.lines(responses=False, examples=NUM_EXAMPLES)


def _shape(rows: Sequence[Sequence[Any]], width: int) -> tuple[int, int]:
  """Number of rows, and `width` or the first length of a row that differs from it."""
  others = [len(row) for row in rows if len(row) != width]
  return len(rows), others[0] if others else width


def _estimate(suites: Sequence[Float[np.ndarray, ' N']]) -> Estimate:
  """Returns the mean over suites; NaN if a suite has no value."""
  present = [values[~np.isnan(values)] for values in suites]
  if not all(values.size for values in present):
    return Estimate(math.nan)
  return bootstrap_sets(present)


def _widened(estimate: Estimate, low: Estimate, high: Estimate) -> Estimate:
  """Returns the estimate with an interval that includes those of all three.

  If the bounds have no interval, as for one problem, neither has the result.
  """
  if low.low is None:
    return Estimate(estimate.value, kind=low.kind)
  ends = [
    end
    for source in (estimate, low, high)
    for end in (source.value, source.low, source.high)
    if end is not None and math.isfinite(end)
  ]
  kind = f'{low.kind}, with unscored responses wrong or correct'
  return Estimate(estimate.value, min(ends), max(ends), kind)


def _stderr(suites: Sequence[Float[np.ndarray, ' N']]) -> float:
  """Returns the standard error of the mean over suites, from their problems.

  NaN if a suite has fewer than two values.
  """
  present = [values[~np.isnan(values)] for values in suites]
  if any(values.size < 2 for values in present):
    return math.nan
  variances = [values.var() / values.size for values in present]
  return float(np.sqrt(np.sum(variances)) / len(suites))


def _with_missing(correct: Correctness, value: float) -> Any:
  """Replaces missing entries by a value."""
  return np.where(np.isnan(correct), value, correct)


def _to_integer(value: Any) -> int | None:
  """Converts an entry to an integer, or `None` if it is missing."""
  return None if np.isnan(value) else int(value)
