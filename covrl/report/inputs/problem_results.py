# SPDX-License-Identifier: Apache-2.0
"""Results of evaluations by problem, as a run and `covrl evaluate` save them."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from etils import epath

from covrl.evaluation.metrics import pass_at_k
from covrl.evaluation.result_files import HELD_OUT
from covrl.report.inputs.run_json import (
  FOREIGN_FILE,
  Unreadable,
  finite_number,
  read_objects,
  short_text,
)

ProblemId: TypeAlias = tuple[str, str]
"""Evaluation set (empty for the run's own problems), and a key within it."""

ResultsByProblem: TypeAlias = dict[ProblemId, list[dict[str, Any]]]
"""Results by problem; several if a set contains a question twice."""


def read_results(
  files: Sequence[epath.Path], unreadable: Unreadable
) -> ResultsByProblem:
  """Reads the results in files by problem, without unreadable lines.

  A file of a set whose name is not that of the set is left out, such as a copy.

  Args:
    files: files of the directory `evaluation` of a run.
    unreadable: receives the counts of unreadable lines and results.
  """
  results: ResultsByProblem = {}
  for file in files:
    name = f'evaluation/{file.name}'
    failures = 0
    for _, record in read_objects(file, name, unreadable):
      if not file.name.startswith('iteration_') and file.stem != (
        record.get('suite') or HELD_OUT
      ):
        unreadable.set_count(name, FOREIGN_FILE)
        break
      result = _result(record)
      if result is None:
        failures += 1
        continue
      suite = short_text(record.get('suite') or '', 80)
      key = short_text(record.get('key') or record.get('prompt'), 10_000)
      results.setdefault((suite, key), []).append(result)
    unreadable.set_count(name, 'result', failures)
  return results


def problem_score(problem: Mapping[str, Any], metric: str) -> float | None:
  """One problem's contribution to an accuracy; `None` if it has none.

  Args:
    problem: scores of its responses, an entry of `ResultsByProblem`.
    metric: `'greedy'`; `'mean@8'`, for problems with 8 samples, or `'mean@8/32'`,
      for those with 8 or 32; `'pass@4'`, for problems with 4 samples, or with more
      if it is a power of 2, as in `SuiteResult.metrics`.
  """
  if metric == 'greedy':
    return problem['greedy']
  kind, _, numbers = metric.partition('@')
  samples = problem['correct']
  correct = [score for score in samples if score is not None]
  if kind == 'mean':
    has_metric = len(samples) in map(int, numbers.split('/'))
    return float(np.mean(correct)) if correct and has_metric else None
  if kind != 'pass':
    raise ValueError(f'metric must be greedy, mean@k or pass@k, got {metric}')
  k = int(numbers)
  has_metric = len(samples) == k or (k.bit_count() == 1 and len(samples) > k)
  # An edited file may have other scores than 0 and 1.
  if not has_metric or len(correct) < k or not {*correct} <= {0.0, 1.0}:
    return None
  return float(pass_at_k(np.array([correct]), k)[0])


def _result(record: Mapping[str, Any]) -> dict[str, Any] | None:
  """Scores of a problem, temperature of its samples, and digest of its prompt.

  Temperature and digest are `None` if they are not recorded.

  Returns `None` if the record has invalid scores.
  """
  if 'greedy' not in record:
    return None
  correct = record.get('correct')
  if not isinstance(correct, list | None):
    return None
  values = [record['greedy'], *(correct or ())]
  greedy, *scores = map(_score, values)
  # A response without a score is null, anything else is invalid.
  if any(
    score is None and value is not None
    for score, value in zip((greedy, *scores), values, strict=True)
  ):
    return None
  temperature = finite_number(record.get('temperature')) if scores else None
  prompt = record.get('prompt')
  return {
    'greedy': greedy,
    'correct': scores,
    'temperature': temperature,
    'prompt': zlib.crc32(prompt.encode(errors='replace'))
    if isinstance(prompt, str)
    else None,
  }


def _score(value: Any) -> float | None:
  """A score in [0, 1] as a float; also of true and false."""
  score = float(value) if isinstance(value, bool) else finite_number(value)
  return score if score is not None and 0 <= score <= 1 else None
