# SPDX-License-Identifier: Apache-2.0
"""Results of an evaluation: metrics with intervals, and results per problem."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Bool, Float

from covrl import storage
from covrl.data import Suite
from covrl.evaluation.intervals import Estimate, bootstrap_sets
from covrl.evaluation.metrics import majority_vote, pass_at_k


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteResult:
  """Results of one suite of N problems.

  Attributes:
    suite: the suite.
    greedy: whether the greedy response to each problem is correct.
    correct: whether each of k samples is correct.
    responses: the texts per problem, first the greedy one, then the samples.
    answers: the samples' final answers, for maj@k; `None` if the problems have
      no short answers.
  """

  suite: Suite
  greedy: Bool[np.ndarray, ' N']
  correct: Bool[np.ndarray, 'N k']
  responses: Sequence[Sequence[str]]
  answers: Sequence[Sequence[str | None]] | None = None

  def metrics(self) -> dict[str, Float[np.ndarray, ' N']]:
    """Returns all metrics per problem.

    greedy; with k samples mean@k, and pass@j for k and all smaller powers of 2;
    with answers maj@k.
    """
    metrics = {'greedy': self.greedy.astype(float)}
    samples = self.suite.samples
    if not samples:
      return metrics
    metrics[f'mean@{samples}'] = self.correct.mean(axis=1)
    powers = [1 << n for n in range(1, samples.bit_length())]
    for k in dict.fromkeys((*(p for p in powers if p < samples), samples)):
      metrics[f'pass@{k}'] = pass_at_k(self.correct, k)
    if self.answers is not None:
      metrics[f'maj@{samples}'] = majority_vote(self.answers, self.correct)
    return metrics

  def accuracy(self) -> Float[np.ndarray, ' N']:
    """Returns the main metric: mean@k, or greedy without samples."""
    metrics = self.metrics()
    return metrics.get(f'mean@{self.suite.samples}', metrics['greedy'])

  def lines(self, *, responses: bool) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per problem.

    Args:
      responses: whether to include the responses' texts.
    """
    for index, problem in enumerate(self.suite.problems):
      line: dict[str, Any] = {
        'suite': self.suite.name,
        'key': problem.key,
        'prompt': problem.prompt,
        'greedy': int(self.greedy[index]),
        'correct': self.correct[index].astype(int).tolist(),
      }
      if self.answers is not None:
        line['answers'] = list(self.answers[index])
      if responses:
        if isinstance(problem.reference, str):
          line['reference'] = problem.reference
        line['responses'] = list(self.responses[index])
      yield line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """Results of all suites.

  Attributes:
    results: the result of each suite.
    entropy: mean of −log π over sampled tokens, in nats.
  """

  results: tuple[SuiteResult, ...]
  entropy: float

  def values(self) -> dict[str, list[Float[np.ndarray, ' N']]]:
    """Returns all metrics per problem, as one array per suite.

    The metrics of a named suite have its name, `aime24/mean@32`. A metric
    without a suite's name covers all suites that have it; `accuracy` covers all
    named suites, each by its main metric.
    """
    pooled: dict[str, list[Float[np.ndarray, ' N']]] = {}
    named: dict[str, list[Float[np.ndarray, ' N']]] = {}
    for result in self.results:
      metrics = result.metrics()
      if result.suite.name:
        metrics = metrics | {'accuracy': result.accuracy()}
        named |= {f'{result.suite.name}/{n}': [v] for n, v in metrics.items()}
      for name, column in metrics.items():
        pooled.setdefault(name, []).append(column)
    return pooled | named

  def estimates(self) -> dict[str, Estimate]:
    """Returns each metric's mean over suites, with its interval."""
    return {name: bootstrap_sets(v) for name, v in self.values().items()}

  def summary(self) -> dict[str, float]:
    """Returns means, standard errors and intervals under flat names."""
    summary: dict[str, float] = {
      'problems': sum(len(result.greedy) for result in self.results)
    }
    values = self.values()
    for name, estimate in self.estimates().items():
      summary[name] = estimate.value
      summary[f'{name}_stderr'] = _stderr(values[name])
      if estimate.low is not None and estimate.high is not None:
        summary[f'{name}_low'] = estimate.low
        summary[f'{name}_high'] = estimate.high
    return summary | {'entropy': self.entropy}

  def lines(self, *, responses: bool = False) -> Iterator[dict[str, Any]]:
    """Yields one JSON object per problem; see `SuiteResult.lines`."""
    for result in self.results:
      yield from result.lines(responses=responses)


def _stderr(suites: Sequence[Float[np.ndarray, ' N']]) -> float:
  """Returns the standard error of the mean over suites, from their problems."""
  variances = [values.var() / values.size for values in suites]
  return float(np.sqrt(np.sum(variances)) / len(suites))


def write_results(
  evaluation: Evaluation, directory: epath.PathLike, about: Mapping[str, Any]
) -> epath.Path:
  """Writes an evaluation's results; files of other suites are kept.

  evaluation/NAME.jsonl      one object per problem, responses included
  evaluation/summary.json    metrics and sampling settings of every suite

  Args:
    evaluation: the results of named suites.
    directory: parent of the directory `evaluation`.
    about: entries that describe the policy, added to the summary.

  Returns:
    The path of the summary.
  """
  folder = storage.as_path(directory) / 'evaluation'
  folder.mkdir(parents=True, exist_ok=True)
  estimates = evaluation.estimates()
  file = folder / 'summary.json'
  summary = json.loads(file.read_text()) if file.exists() else {}
  for result in evaluation.results:
    suite = result.suite
    lines = map(json.dumps, result.lines(responses=True))
    (folder / f'{suite.name}.jsonl').write_text('\n'.join((*lines, '')))
    summary[suite.name] = {
      **about,
      'problems': len(suite.problems),
      'samples': suite.samples,
      'temperature': suite.temperature if suite.samples else 0.0,
      'layout': suite.schema,
      'figures': {
        name.removeprefix(f'{suite.name}/'): [each.value, each.low, each.high]
        for name, each in estimates.items()
        if name.startswith(f'{suite.name}/')
      },
    }
  file.write_text(json.dumps(summary, indent=2))
  return file
