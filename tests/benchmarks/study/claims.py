# SPDX-License-Identifier: Apache-2.0
"""Table of the claims in section VIII of arXiv:2604.09676, checked on the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from covrl.evaluation.intervals import Estimate, student_mean
from covrl.report import formats
from covrl.report.pages.sections import PageSection

from .driver import Lines, Study, by_iteration, fit_law, primary_metric
from .figures import RunsByVariant
from .rates_and_sizes import size_rows
from .results import (
  claim_verdict,
  differences,
  entropy_at_end,
  finished_runs,
  verdict,
)
from .tasks import TASKS

Row = list[str]
ALPHAS = ('bonus_0.0001', 'bonus_0.001', 'bonus_0.005', 'bonus_0.01')


def claims_section(study: Study) -> PageSection:
  """One row per claim: the text of the paper, what was measured, the verdict."""
  runs_by_task = {name: finished_runs(study, name) for name in TASKS}
  runs_by_task = {
    name: variants
    for name, variants in runs_by_task.items()
    if variants['grpo']
  }
  rows = [
    _correlation_row(runs_by_task),
    _sparsity_row(runs_by_task),
    _late_entropy_row(runs_by_task),
    _bonus_sensitivity_row(study, runs_by_task),
    _annealed_row(study, runs_by_task),
    *size_rows(study),
    _law_row(runs_by_task),
  ]
  return PageSection(
    title='Section VIII of the comparison paper (arXiv:2604.09676), run here',
    texts=(
      'Policies of 0.02 million parameters on the tasks above, if no size is named; the paper reports runs'
      ' of 0.5 to 32 billion parameters from another paper. Mean over seeds ± half'
      ' width of the 95 % t interval. D1 is measured before the rule changes, where a'
      ' claim is about changes during training.',
    ),
    columns=['claim', 'measured', 'verdict'],
    is_numeric=False,
    rows=rows,
  )


def _text(estimate: Estimate, digits: int = 2, scale: float = 1.0) -> str:
  """Mean ± half width of the interval."""
  half = formats.half_width(estimate, scale=scale, digits=digits)
  return f'{formats.fixed(scale * estimate.value, digits)}{half}'


def _means_by_task(
  runs_by_task: Mapping[str, RunsByVariant],
  value: Callable[[Lines], float],
  digits: int = 2,
) -> tuple[list[float], str]:
  """Mean of a value over GRPO's runs by task, and the means as text."""
  means, texts = [], []
  for name, variants in runs_by_task.items():
    values = [value(lines) for lines in variants['grpo'].values()]
    estimate = student_mean(np.array(values))
    means.append(estimate.value)
    texts.append(f'{_label(name)} {_text(estimate, digits)}')
  return means, ', '.join(texts)


def _label(name: str) -> str:
  """Short name of a task in the tables, such as `D1`."""
  return TASKS[name]().title.partition(',')[0]


def decrease_correlation(lines: Lines) -> float:
  """Correlation of −ΔH between rollouts with the covariance of the updates."""
  entropy_decrease = -np.diff(by_iteration(lines, 'rollout_entropy'))
  covariance = by_iteration(lines, 'covariance')[:-1]
  return float(np.corrcoef(entropy_decrease, covariance)[0, 1])


def _correlation_row(runs_by_task: Mapping[str, RunsByVariant]) -> Row:
  """Row of the claim that −ΔH and the covariance correlate."""
  means, text = _means_by_task(runs_by_task, decrease_correlation)
  holds = min(means) > 0.92
  return [
    '−ΔH of the policy and the covariance correlate with r > 0.92 in all of GRPO’s training',
    f'r over iterations of `grpo`: {text}',
    'holds' if holds else 'fails',
  ]


def tail_ratio(lines: Lines) -> float:
  """Mean covariance of the top 2 % of the tokens over that of all, early on."""
  tail = by_iteration(lines, 'covariance_top/0.02')
  first_third = max(1, tail.size // 3)
  return float(
    tail[:first_third].mean()
    / by_iteration(lines, 'covariance')[:first_third].mean()
  )


def _sparsity_row(runs_by_task: Mapping[str, RunsByVariant]) -> Row:
  """Row of the claim that few tokens hold most of the covariance."""
  means, text = _means_by_task(runs_by_task, tail_ratio, 1)
  is_sparse = min(means) > 10
  return [
    'Covariance is sparse: the top 0.02 % of the tokens have over 1,800 times the mean',
    'an update has some 300 tokens, so the top 2 %: their mean over that of all tokens, '
    f'in the first third of `grpo`: {text}',
    'holds in kind: a few tokens hold most of it'
    if is_sparse
    else 'fails: less concentrated',
  ]


def _late_entropy_row(runs_by_task: Mapping[str, RunsByVariant]) -> Row:
  """Row of the claim that covariance methods keep the entropy."""
  texts, ratios = [], []
  for name, variants in runs_by_task.items():
    shared_seeds = sorted(set(variants['grpo']) & set(variants['kl_cov']))
    if shared_seeds:
      values = [
        entropy_at_end(variants['kl_cov'][s])
        / entropy_at_end(variants['grpo'][s])
        for s in shared_seeds
      ]
      ratios.append(float(np.median(values)))
      texts.append(f'{_label(name)} {ratios[-1]:.1f}')
  return [
    'Covariance methods keep ten times GRPO’s entropy late in training',
    f'entropy of `kl_cov` over that of `grpo` at the end, median over seeds: {", ".join(texts) or "–"}',
    claim_verdict([r >= 10 for r in ratios]),
  ]


def _bonus_sensitivity_row(
  study: Study, runs_by_task: Mapping[str, RunsByVariant]
) -> Row:
  """Row of the claim that an entropy bonus is sensitive to α."""
  texts, is_sensitive = [], []
  for name, variants in runs_by_task.items():
    task = study.task(name)
    if len(variants['grpo']) < 2:  # no interval, no verdict
      continue
    verdicts = [
      verdict(task, differences(task, variants, alpha)) or 'as GRPO'
      for alpha in ALPHAS
      if variants[alpha]
    ]
    if verdicts:
      is_sensitive.append(len(set(verdicts)) > 1)
      texts.append(f'{_label(name)}: {", ".join(verdicts)}')
  return [
    'An entropy bonus is sensitive to α: 1e-4 too small, 1e-2 harmful, 5e-3 moderately good',
    f'against `grpo` at α = 1e-4, 1e-3, 5e-3, 1e-2: {"; ".join(texts) or "–"}',
    claim_verdict(is_sensitive),
  ]


def _annealed_row(
  study: Study, runs_by_task: Mapping[str, RunsByVariant]
) -> Row:
  """Row of the claim that annealed KL-Cov has the best result."""
  texts, is_best = [], []
  for name, variants in runs_by_task.items():
    task = study.task(name)
    means = {
      variant: float(
        np.mean([primary_metric(task, lines) for lines in runs.values()])
      )
      for variant, runs in variants.items()
      if runs
    }
    if 'kl_cov_annealed' in means:
      ranking = sorted(
        means, key=lambda a: means[a], reverse=task.higher_is_better
      )
      rank = ranking.index('kl_cov_annealed') + 1
      is_best.append(rank == 1)
      texts.append(
        f'{_label(name)}: {rank} of {len(ranking)}, best `{ranking[0]}`'
      )
  return [
    'KL-Cov with β annealed from 1 to 0 has the best final result',
    f'rank by the primary metric: {"; ".join(texts) or "–"}',
    claim_verdict(is_best),
  ]


def law_fit(lines: Lines) -> tuple[float, float]:
  """R² of R = −a e^H + b, and the error of its forecast from the first third."""
  fit = fit_law(lines)
  return fit.r_squared, abs(fit.error)


def _law_row(runs_by_task: Mapping[str, RunsByVariant]) -> Row:
  """Row of the claim that reward follows from entropy."""
  texts, holds = [], []
  for name, variants in runs_by_task.items():
    fits = np.array([law_fit(lines) for lines in variants['grpo'].values()])
    r_squared, error = fits.mean(axis=0)
    holds.append(r_squared > 0.9 and error < 0.05)
    texts.append(f'{_label(name)} {r_squared:.2f} and {100 * error:.0f}')
  return [
    'R = −a e^H + b, which predicts the end of training',
    'R² and the error of the forecast from the first third in points of reward, `grpo`: '
    f'{"; ".join(texts)}',
    claim_verdict(holds),
  ]
