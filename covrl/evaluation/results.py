# SPDX-License-Identifier: Apache-2.0
"""What an evaluation found: figures with their intervals, and every problem."""

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
from covrl.evaluation.metrics import majority, pass_at


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteResult:
  """What the policy got right of one set.

  Attributes:
    suite: the set.
    greedy: whether the likeliest response was right.
    correct: whether each sample was.
    responses: the texts, the likeliest first, then the samples.
    answers: of the samples, for a vote; `None` where there is none.
  """

  suite: Suite
  greedy: Bool[np.ndarray, ' N']
  correct: Bool[np.ndarray, 'N k']
  responses: Sequence[Sequence[str]]
  answers: Sequence[Sequence[str | None]] | None = None

  def figures(self) -> dict[str, Float[np.ndarray, ' N']]:
    """Every figure, problem by problem.

    greedy, and with k samples mean@k, pass@j for the powers of 2 up to k and
    for k, and maj@k where there are answers.
    """
    figures = {'greedy': self.greedy.astype(float)}
    samples = self.suite.samples
    if not samples:
      return figures
    figures[f'mean@{samples}'] = self.correct.mean(axis=1)
    powers = [1 << n for n in range(1, samples.bit_length())]
    for k in dict.fromkeys((*(p for p in powers if p < samples), samples)):
      figures[f'pass@{k}'] = pass_at(self.correct, k)
    if self.answers is not None:
      figures[f'maj@{samples}'] = majority(self.answers, self.correct)
    return figures

  def accuracy(self) -> Float[np.ndarray, ' N']:
    """The figure that is compared: mean over the samples, or greedy without."""
    figures = self.figures()
    return figures.get(f'mean@{self.suite.samples}', figures['greedy'])

  def lines(self, *, responses: bool) -> Iterator[dict[str, Any]]:
    """One object a problem, as files keep them.

    Args:
      responses: whether their texts are kept, too.
    """
    for place, problem in enumerate(self.suite.problems):
      line: dict[str, Any] = {
        'suite': self.suite.name,
        'key': problem.key,
        'prompt': problem.prompt,
        'greedy': int(self.greedy[place]),
        'correct': self.correct[place].astype(int).tolist(),
      }
      if self.answers is not None:
        line['answers'] = list(self.answers[place])
      if responses:
        if isinstance(problem.reference, str):
          line['reference'] = problem.reference
        line['responses'] = list(self.responses[place])
      yield line


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """What the policy got right.

  Attributes:
    results: of each set.
    entropy: mean of −log π over sampled tokens, in nats.
  """

  results: tuple[SuiteResult, ...]
  entropy: float

  def values(self) -> dict[str, list[Float[np.ndarray, ' N']]]:
    """Every figure, problem by problem, of all sets that have it.

    A named set's figures are under its name, `aime24/mean@32`. Those without a
    name are of all sets that have them, and `accuracy` is of all sets, each by
    the figure that is published of it.
    """
    pooled: dict[str, list[Float[np.ndarray, ' N']]] = {}
    own: dict[str, list[Float[np.ndarray, ' N']]] = {}
    for result in self.results:
      figures = result.figures()
      if result.suite.name:
        figures = figures | {'accuracy': result.accuracy()}
        own |= {f'{result.suite.name}/{n}': [v] for n, v in figures.items()}
      for name, column in figures.items():
        pooled.setdefault(name, []).append(column)
    return pooled | own

  def estimates(self) -> dict[str, Estimate]:
    """Every figure with its interval; of several sets their plain mean."""
    return {name: bootstrap_sets(v) for name, v in self.values().items()}

  def summary(self) -> dict[str, float]:
    """The figures, as metrics: each with standard error and interval."""
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
    """One object a problem, of all sets; see `SuiteResult.lines`."""
    for result in self.results:
      yield from result.lines(responses=responses)


def _stderr(sets: Sequence[Float[np.ndarray, ' N']]) -> float:
  """Standard error of the plain mean of sets' means, over their problems."""
  variances = [values.var() / values.size for values in sets]
  return float(np.sqrt(np.sum(variances)) / len(sets))


def write_results(
  evaluation: Evaluation, directory: epath.PathLike, about: Mapping[str, Any]
) -> epath.Path:
  """Keeps an evaluation's results, one file a set; others' stay.

  evaluation/NAME.jsonl      one object a problem, responses included
  evaluation/summary.json    figures and sampling of every set

  Args:
    evaluation: of named sets.
    directory: below which they are kept.
    about: what was evaluated, for the summary.

  Returns:
    The summary.
  """
  folder = storage.path_of(directory) / 'evaluation'
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
      'layout': suite.layout,
      'figures': {
        name.removeprefix(f'{suite.name}/'): [each.value, each.low, each.high]
        for name, each in estimates.items()
        if name.startswith(f'{suite.name}/')
      },
    }
  file.write_text(json.dumps(summary, indent=2))
  return file
