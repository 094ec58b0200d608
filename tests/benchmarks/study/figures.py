# SPDX-License-Identifier: Apache-2.0
"""Figures of the study: metrics of the finished runs over iterations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from covrl.report.figures.chart import Figure, Series

from .driver import Lines, evaluations, updates
from .tasks import StudyTask

RunsByVariant = dict[str, dict[int, Lines]]
"""Metrics by variant and seed."""

SHOWN_VARIANTS = (
  'grpo',
  'clip_higher',
  'bonus_0.01',
  'target_entropy',
  'kl_cov',
  'random_k',
)
"""Variants in the figures; tables have all."""

# Metrics by task: name, title of the figure, unit, factor of the values.
_CURVES = {
  'changed_rule': (('new_rule', 'Answers by the new rule', '%', 100.0),),
  'lock': (
    ('left_distractor', 'Prompts that leave the distractor', '%', 100.0),
  ),
  'many_solutions': (
    ('distinct', 'Distinct solutions in 64 samples', 'solutions', 1.0),
    ('accuracy', 'Right responses (pass@1)', '%', 100.0),
    ('pass64', 'Solved within 64 samples', '%', 100.0),
  ),
  'out_of_distribution': (
    ('unusual', 'Right responses, goals in other directions', '%', 100.0),
    ('usual', 'Right responses, goals in the usual directions', '%', 100.0),
  ),
}


def curves(task: StudyTask, runs_by_variant: RunsByVariant) -> list[Figure]:
  """Measurements and entropy over iterations, mean over seeds."""
  figures = [
    metric_figure(task, runs_by_variant, name, unit, title, scale)
    for name, title, unit, scale in _CURVES[task.name]
  ]
  figures.append(
    Figure(
      key=f'{task.name}-entropy',
      title='Entropy of sampled responses',
      y_label='nats per token',
      series=[
        mean_series(
          variant,
          color,
          [updates(x) for x in runs_by_variant[variant].values()],
          'rollout_entropy',
          1.0,
        )
        for color, variant in enumerate(SHOWN_VARIANTS)
        if runs_by_variant[variant]
      ],
      includes_zero=True,
    )
  )
  return figures


def metric_figure(
  task: StudyTask,
  runs_by_variant: RunsByVariant,
  name: str,
  unit: str,
  title: str,
  scale: float,
) -> Figure:
  """A metric of the evaluations over iterations, mean over seeds."""
  return Figure(
    key=f'{task.name}-{name}',
    title=title,
    y_label=unit,
    series=[
      mean_series(
        variant,
        color,
        [evaluations(x) for x in runs_by_variant[variant].values()],
        name,
        scale,
      )
      for color, variant in enumerate(SHOWN_VARIANTS)
      if runs_by_variant[variant]
    ],
    includes_zero=True,
  )


def mean_series(
  name: str, color: int, runs: Sequence[Lines], field: str, scale: float
) -> Series:
  """A curve over iterations, mean over runs, with their range as a band."""
  by_iteration = [
    {int(line['iteration']): float(line[field]) for line in run} for run in runs
  ]
  x = sorted(set.intersection(*(set(each) for each in by_iteration)))
  values = scale * np.array([[each[i] for i in x] for each in by_iteration])
  several = len(runs) > 1
  return Series(
    name=name,
    x=np.array(x, float),
    y=values.mean(axis=0),
    low=values.min(axis=0) if several else None,
    high=values.max(axis=0) if several else None,
    color=color,
  )
