# SPDX-License-Identifier: Apache-2.0
"""Results of evaluation sets, and their table."""

from __future__ import annotations

from covrl.report.evaluation_table import evaluation_table
from covrl.report.inputs.run_data import load_run


def results(name, scores, *, samples=0, first=0):
  """Results of a set with the given fraction of correct samples."""
  return [
    {
      'suite': name,
      'key': f'{name}{index}',
      'prompt': f'{name} {index}?',
      'greedy': int(score >= 0.5),
      'correct': [int(n < score * samples) for n in range(samples)],
    }
    for index, score in enumerate(scores, start=first)
  ]


def table_of(*paths):
  table = evaluation_table([(path.name, [load_run(path)]) for path in paths])
  assert table is not None
  return table
