# SPDX-License-Identifier: Apache-2.0
"""Files of an evaluation's results, which `covrl report` reads."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.evaluation.results import Evaluation

HELD_OUT = 'held_out'
"""Name of the files of held-out problems, whose suite has no name."""


def write_results(
  evaluation: Evaluation,
  directory: epath.PathLike,
  policy_fields: Mapping[str, Any],
) -> epath.Path:
  """Writes an evaluation's results; files of other suites are kept.

  evaluation/held_out.jsonl  held-out problems, one object per problem, with the
                             responses
  evaluation/NAME.jsonl      the same of a named suite
  evaluation/summary.json    metrics and sampling settings of all of them

  A summary of earlier results that cannot be read is kept under another name.
  Entries of the suites are removed from the summary before their files are replaced,
  so that it never describes other results than those in the files. Only one process
  may write at a time, see `covrl.run.lock`.

  Args:
    evaluation: the results.
    directory: parent of the directory `evaluation`.
    policy_fields: entries that describe the policy, added to the summary.

  Returns:
    The path of the summary.

  Raises:
    StorageError: a file cannot be written.
  """
  folder = storage.as_path(directory) / 'evaluation'
  file = folder / 'summary.json'
  summary = _earlier_summary(file)
  names = [result.suite.name or HELD_OUT for result in evaluation.results]
  if any(name in summary for name in names):
    summary = {n: entry for n, entry in summary.items() if n not in names}
    storage.write_atomically(file, json.dumps(summary, indent=2))
  for result in evaluation.results:
    suite = result.suite
    name = suite.name or HELD_OUT
    lines = map(json.dumps, result.lines(responses=True))
    storage.write_atomically(folder / f'{name}.jsonl', '\n'.join((*lines, '')))
    estimates = dataclasses.replace(evaluation, results=(result,)).estimates()
    summary[name] = {
      **policy_fields,
      'problems': len(suite.problems),
      'unscored': result.unscored,
      'truncated': result.truncated,
      'samples': suite.samples,
      'temperature': suite.temperature if suite.samples else 0.0,
      'schema': suite.schema,
      'metrics': {
        name.removeprefix(f'{suite.name}/'): [
          _finite(estimate.value),
          estimate.low,
          estimate.high,
        ]
        for name, estimate in estimates.items()
        if not suite.name or name.startswith(f'{suite.name}/')
      },
    }
  storage.write_atomically(file, json.dumps(summary, indent=2))
  return file


def _earlier_summary(file: epath.Path) -> dict[str, Any]:
  """Reads a summary to add to; copies a file that is not one."""
  if not file.exists():
    return {}
  content = storage.read_bytes(file)
  try:
    summary = json.loads(content)
  except (ValueError, RecursionError):
    summary = None
  if isinstance(summary, dict):
    return summary
  storage.write_atomically(storage.numbered_sibling(file, 'damaged'), content)
  return {}


def _finite(number: float | None) -> float | None:
  """Replaces a number that JSON cannot hold, such as NaN, by `None`."""
  return number if number is not None and math.isfinite(number) else None
