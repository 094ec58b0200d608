# SPDX-License-Identifier: Apache-2.0
"""Tables of the study: larger learning rates and more passes (task D5), and sizes of the policy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from covrl.evaluation.intervals import Estimate, student_mean
from covrl.evaluation.reward_law import Fit
from covrl.report import formats
from covrl.report.pages.sections import PageSection

from .driver import (
  PASSES,
  RATE_FACTORS,
  RATES_AND_PASSES,
  SEEDS,
  SIZED_TASKS,
  WIDTHS,
  Lines,
  Study,
  evaluations,
  fit_law,
  primary_metric,
  rates_and_passes_runs,
  sized_runs,
)
from .results import (
  BASELINE,
  PERCENT,
  NumberFormat,
  claim_verdict,
  estimate_text,
  interval,
  shown_variants,
)
from .runner import parameters_of

Cell = tuple[float, int]
"""Factor of the learning rate, passes over a rollout."""
MIN_SIZES = 3  # fewest for a slope over sizes
LINEAR = 0.9  # least |correlation| that counts as linear
CELLS: tuple[Cell, ...] = tuple(
  (rate, passes) for rate in RATE_FACTORS for passes in PASSES
)


def rates_and_passes_section(study: Study) -> PageSection:
  """D5: pass@1 by learning rate and passes, and the best setting."""
  runs: dict[tuple[str, Cell], dict[int, Lines]] = {}
  seconds: dict[int, list[float]] = {}
  for run in rates_and_passes_runs(study.variants(RATES_AND_PASSES), SEEDS):
    if lines := study.finished_lines(run):
      cell = float(run.group.split('_')[1]), run.setting.passes
      runs.setdefault((run.variant.name, cell), {})[run.seed] = lines
      seconds.setdefault(cell[1], []).append(study.core_seconds(run))
  title = 'D5, larger learning rates and more passes'
  if not runs:
    return PageSection(title=title, texts=('Not run yet.',))
  end_iterations = end_iterations_at_equal_time(
    {p: float(np.median(s)) for p, s in seconds.items()},
    next(iter(next(iter(runs.values())).values())),
  )
  best = {
    name: best_cell(name, runs, end_iterations)
    for name in shown_variants(study, RATES_AND_PASSES)
  }
  rows = []
  for name, (cell, values) in best.items():
    if cell is None:
      continue
    difference = paired_difference(values, best[BASELINE][1])
    rows.append(
      [
        f'`{name}`',
        *(
          estimate_text(
            interval([_final(x) for x in runs.get((name, c), {}).values()]),
            PERCENT,
          )
          for c in CELLS
        ),
        f'{sum(gain_is_positive(runs.get((name, c), {})) for c in CELLS)} of {len(CELLS)}',
        cell_title(cell),
        estimate_text(interval([*values.values()]), PERCENT),
        estimate_text(difference, PERCENT, signed=True)
        if name != BASELINE
        else '',
      ]
    )
  iterations = ', '.join(
    f'{end_iterations[p]} with {_passes(p)}' for p in end_iterations
  )
  return PageSection(
    title=title,
    texts=(
      'pass@1 on held-out prompts after 60 iterations, %, by factor of the learning rate'
      ' and passes over a rollout; mean over seeds ± half width of the 95 % t interval.'
      ' *Rises*: settings in which the interval of the gain over the warm start is above 0.'
      ' *Best*: the setting with the highest mean at equal processor time'
      f' (iterations: {iterations}), its pass@1 there, and the difference, paired by seed, to the best of `grpo`.',
    ),
    columns=[
      'variant',
      *(cell_title(c) for c in CELLS),
      'rises',
      'best at equal time',
      'pass@1, %',
      'Δ',
    ],
    rows=rows,
  )


def cell_title(cell: Cell) -> str:
  """A learning rate and number of passes in words."""
  return f'× {cell[0]:g}, {_passes(cell[1])}'


def _passes(count: int) -> str:
  """Number of passes in words."""
  return f'{count} pass{"es" * (count > 1)}'


def _final(lines: Lines) -> float:
  """pass@1 at the end of a run."""
  return evaluations(lines)[-1]['accuracy']


def gain_is_positive(runs: Mapping[int, Lines]) -> bool:
  """Whether pass@1 is higher than at the warm start, by the interval over seeds."""
  gains = [_final(x) - evaluations(x)[0]['accuracy'] for x in runs.values()]
  return bool(gains) and student_mean(np.array(gains)).sign > 0


def end_iterations_at_equal_time(
  seconds: Mapping[int, float], lines: Lines
) -> dict[int, int]:
  """The iteration up to which runs of each number of passes take the same time.

  Args:
    seconds: processor time of a whole run by passes.
    lines: metrics of any run; all have the same evaluations.

  Returns:
    The last evaluation within the time of a whole run with the fewest passes.
  """
  iterations = [line['iteration'] for line in evaluations(lines)]
  budget = seconds[min(seconds)]
  return {
    passes: max(
      i for i in iterations if i * run_seconds <= budget * iterations[-1]
    )
    for passes, run_seconds in sorted(seconds.items())
  }


class BestSetting(NamedTuple):
  """A variant's best setting.

  Attributes:
    cell: the setting; `None` if the variant has no runs.
    values: pass@1 by seed.
  """

  cell: Cell | None
  values: dict[int, float]


def best_cell(
  name: str,
  runs: Mapping[tuple[str, Cell], Mapping[int, Lines]],
  end_iterations: Mapping[int, int],
) -> BestSetting:
  """The setting with the highest mean at equal time.

  Only settings with as many seeds as any other setting of the variant count.
  """
  by_cell = {
    cell: {
      seed: next(
        x['accuracy']
        for x in evaluations(lines)
        if x['iteration'] == end_iterations[cell[1]]
      )
      for seed, lines in runs[name, cell].items()
    }
    for cell in CELLS
    if (name, cell) in runs
  }
  if not by_cell:
    return BestSetting(None, {})
  max_seeds = max(len(values) for values in by_cell.values())
  complete = {c: v for c, v in by_cell.items() if len(v) == max_seeds}
  cell = max(complete, key=lambda c: np.mean([*complete[c].values()]))
  return BestSetting(cell, complete[cell])


def paired_difference(
  values: Mapping[int, float], baseline: Mapping[int, float]
) -> Estimate | None:
  """Difference to a baseline, paired by seed."""
  shared_seeds = sorted(set(values) & set(baseline))
  return interval([values[s] - baseline[s] for s in shared_seeds])


RunsBySize = dict[tuple[str, int, str], dict[int, Lines]]
"""Runs by task, width and variant, then seed."""


def runs_by_size(study: Study) -> RunsBySize:
  """The finished runs of all sizes."""
  runs: RunsBySize = {}
  for run in sized_runs(study.variants(RATES_AND_PASSES), SEEDS):
    if lines := study.finished_lines(run):
      key = run.task, run.setting.width, run.variant.name
      runs.setdefault(key, {})[run.seed] = lines
  return runs


def gains(
  study: Study, runs: RunsBySize, task: str
) -> dict[int, dict[int, float]]:
  """Gain of KL-Cov over GRPO in the primary metric, by width and seed."""
  sign = 1 if study.task(task).higher_is_better else -1
  result: dict[int, dict[int, float]] = {}
  for width in WIDTHS:
    variants = [runs.get((task, width, a), {}) for a in ('kl_cov', BASELINE)]
    for seed in sorted(set(variants[0]) & set(variants[1])):
      kl_cov, grpo = (
        primary_metric(study.task(task), variant[seed]) for variant in variants
      )
      result.setdefault(width, {})[seed] = sign * (kl_cov - grpo)
  return result


def slope_by_size(
  by_width: Mapping[int, Mapping[int, float]],
) -> Estimate | None:
  """Slope of a number over log10 of the parameters, mean over seeds.

  Seeds with fewer than three sizes are left out.
  """
  slopes = []
  for seed in sorted({s for values in by_width.values() for s in values}):
    points = [(w, v[seed]) for w, v in by_width.items() if seed in v]
    if len(points) >= MIN_SIZES:
      x = [math.log10(parameters_of(w)) for w, _ in points]
      slopes.append(float(np.polyfit(x, [v for _, v in points], 1)[0]))
  return interval(slopes)


def law_by_size(runs: RunsBySize) -> dict[int, list[Fit]]:
  """The law between entropy and reward, fitted to GRPO's runs on D5's task."""
  return {
    width: [
      fit_law(lines)
      for lines in runs.get((RATES_AND_PASSES, width, BASELINE), {}).values()
    ]
    for width in WIDTHS
  }


def sizes_section(study: Study) -> PageSection:
  """GRPO and KL-Cov with policies of several sizes."""
  runs = runs_by_size(study)
  title = 'Sizes of the policy'
  if not runs:
    return PageSection(title=title, texts=('Not run yet.',))
  updates, percent = NumberFormat('', 0), PERCENT
  number_formats = dict(zip(SIZED_TASKS, (updates, percent), strict=True))
  law = law_by_size(runs)
  rows = []
  for width in WIDTHS:
    row = [f'{parameters_of(width) / 1e6:.2f}']
    for name, number_format in number_formats.items():
      task = study.task(name)
      variants = [runs.get((name, width, a), {}) for a in (BASELINE, 'kl_cov')]
      row.append('/'.join(str(len(variant)) for variant in variants))
      row += [
        estimate_text(
          interval([primary_metric(task, x) for x in variant.values()]),
          number_format,
        )
        for variant in variants
      ]
      gain = gains(study, runs, name).get(width, {})
      row.append(
        estimate_text(interval([*gain.values()]), number_format, signed=True)
      )
    fits = law[width]
    row += [
      estimate_text(
        interval([coefficient(fit) for fit in fits]), NumberFormat('', 2)
      )
      for coefficient in (_a, _b, _r_squared)
    ]
    rows.append(row)
  return PageSection(
    title=title,
    texts=(
      'GRPO and KL-Cov with the settings chosen for 0.02 million parameters; learning rates of both'
      ' phases fall as 1 / width. *Gain* of KL-Cov over GRPO, paired by seed: updates saved after the change'
      ' (D1), points of pass@1 after 60 iterations (D5’s task). a, b, R²: the law R = −a e^H + b of GRPO’s'
      ' runs on D5’s task.',
    ),
    columns=[
      'parameters, millions',
      *('D1 seeds', 'updates to ½, `grpo`', '`kl_cov`', 'gain'),
      *('D5 seeds', 'pass@1, %, `grpo`', '`kl_cov`', 'gain'),
      *('a', 'b', 'R²'),
    ],
    rows=rows,
  )


def _a(fit: Fit) -> float:
  return fit.a.value


def _b(fit: Fit) -> float:
  return fit.b.value


def _r_squared(fit: Fit) -> float:
  return fit.r_squared


def size_rows(study: Study) -> list[list[str]]:
  """Claims about the size of the model: claim, measured, verdict."""
  runs = runs_by_size(study)
  slope_texts, grows = [], []
  for name in SIZED_TASKS:
    by_width = gains(study, runs, name)
    slope = slope_by_size(by_width)
    if slope is not None:
      number_format = NumberFormat('', 1) if name == 'changed_rule' else PERCENT
      unit = 'updates' if name == 'changed_rule' else 'points'
      slope_texts.append(
        f'{study.task(name).title.partition(",")[0]}, {len(by_width)} sizes: '
        f'{estimate_text(slope, number_format, signed=True)} {unit}'
      )
      grows.append(slope.sign > 0)
  fits = {
    width: width_fits
    for width, width_fits in law_by_size(runs).items()
    if width_fits
  }
  correlations = [
    correlation_with_size(fits, coefficient)
    for coefficient in (_a, _b)
    if len(fits) >= MIN_SIZES
  ]
  correlations_text = ', '.join(
    f'{name} {formats.fixed(value, 2)}'
    for name, value in zip('ab', correlations, strict=False)
  )
  return [
    [
      'The gain of covariance methods grows with the size of the model',
      f'gain of `kl_cov` over `grpo` per factor of ten in parameters: {"; ".join(slope_texts) or "–"}',
      claim_verdict(grows),
    ],
    [
      'a and b of the law are linear in the logarithm of the size',
      f'correlation with log of the parameters over {len(fits)} sizes, `grpo` on D5’s task (above {LINEAR} or below −{LINEAR} holds): {correlations_text or "–"}',
      linear_verdict(correlations),
    ],
  ]


def linear_verdict(correlations: Sequence[float]) -> str:
  """Whether all coefficients are linear in the logarithm of the size."""
  if not correlations:
    return 'open'
  return 'holds' if all(abs(c) > LINEAR for c in correlations) else 'fails'


def correlation_with_size(
  fits: Mapping[int, Sequence[Fit]], coefficient: Callable[[Fit], float]
) -> float:
  """Correlation of a coefficient's mean over seeds with the log of the size."""
  sizes = [math.log10(parameters_of(width)) for width in fits]
  means = [
    np.mean([coefficient(fit) for fit in width_fits])
    for width_fits in fits.values()
  ]
  return float(np.corrcoef(sizes, means)[0, 1])
