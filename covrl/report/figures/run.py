# SPDX-License-Identifier: Apache-2.0
"""Figures of one run: accuracy, entropy, reward, covariance, selection."""

from __future__ import annotations

import re

import numpy as np

from covrl.report.figures.chart import Figure, FigureLayout, Series
from covrl.report.figures.series import (
  BLUE,
  GREEN,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
  lay_out_all,
  metric_figure,
  metric_series,
  smoothed_series,
)
from covrl.report.inputs.run_data import RunData
from covrl.report.summary import TOKEN_KINDS

_MAX_BARS = 24  # bars per figure
_NORMAL_95 = 1.96  # standard errors in half of a 95 % interval

_KIND_COLORS = dict(
  zip(TOKEN_KINDS, (BLUE, VERMILION, SKY, ORANGE), strict=True)
)
_TOP_COLORS = (VERMILION, ORANGE, PURPLE, BLUE, SKY, GREEN)


def main_figures(run: RunData) -> list[FigureLayout]:
  """The main figures that have data."""
  return lay_out_all(
    [
      _accuracy_figure(run),
      _entropy_figure(run),
      _reward_figure(run),
      _selection_figure(run),
      _top_covariance_figure(run),
      _mean_covariance_figure(run),
    ]
  )


def warm_start_figures(run: RunData) -> list[FigureLayout]:
  """Figures of the warm start over its optimiser steps."""
  metrics = run.warm_start
  return lay_out_all(
    [
      metric_figure(
        metrics,
        'warm-loss',
        'Loss',
        'cross-entropy, nats per token',
        {'loss': 'loss'},
        over='step',
        unit='nats',
      ),
      metric_figure(
        metrics,
        'warm-entropy',
        'Entropy',
        'nats per token',
        {'entropy': 'entropy'},
        over='step',
        unit='nats',
        includes_zero=True,
      ),
      metric_figure(
        metrics,
        'warm-accuracy',
        'Token accuracy',
        'next tokens predicted, %',
        {'accuracy': 'accuracy'},
        over='step',
        scale=100,
        unit='%',
      ),
    ]
  )


def _accuracy_figure(run: RunData) -> Figure:
  """Held-out accuracies at each evaluation, with their intervals."""
  series = []
  colors = {'greedy': GREEN, 'mean': BLUE, 'pass': PURPLE}
  for name in reversed(run.accuracies):
    curve = run.evals.curve(name)
    stderr = dict(zip(*run.evals.curve(f'{name}_stderr'), strict=True))
    half_width = (100 * _NORMAL_95) * np.array(
      [stderr.get(iteration, np.nan) for iteration in curve.x]
    )
    has_stderr = bool(stderr)
    series.append(
      Series(
        name=name,
        x=curve.x,
        y=100 * curve.y,
        low=100 * curve.y - np.nan_to_num(half_width) if has_stderr else None,
        high=100 * curve.y + np.nan_to_num(half_width) if has_stderr else None,
        color=colors[name.partition('@')[0]],
        kind='points',
      )
    )
  return Figure(
    key='accuracy',
    title='Held-out problems solved',
    caption='greedy: the likeliest tokens; mean@k: share of k sampled responses '
    'that are correct; pass@k: problems that at least one of them solves. Bars: '
    '95 % intervals over problems.',
    y_label='problems solved, %',
    series=series,
    unit='%',
  )


def _entropy_figure(run: RunData) -> Figure:
  """Entropy on training rollouts and on held-out problems."""
  held_out = run.evals.curve('entropy')
  series = metric_series(run.train, {'entropy': 'training rollouts'}, (BLUE,))
  series.append(
    Series(
      name='held out',
      x=held_out.x,
      y=held_out.y,
      color=ORANGE,
      kind='points',
    )
  )
  return Figure(
    key='entropy',
    title='Entropy of the policy',
    caption='At the sampling temperature; 0 is a deterministic policy.',
    y_label='nats per token',
    series=series,
    unit='nats',
    includes_zero=True,
  )


def _reward_figure(run: RunData) -> Figure:
  """Mean reward of each iteration, smoothed."""
  series, caption = smoothed_series(
    run.train.curve('reward'), 'reward', BLUE, 100
  )
  return Figure(
    key='reward',
    title='Reward of sampled responses',
    caption=caption,
    y_label='mean reward, % of the maximum',
    series=series,
    unit='%',
  )


def _selection_figure(run: RunData) -> Figure:
  """Shares of the four kinds of tokens among the selected ones."""
  fields = [f'quadrant/{name}' for name in TOKEN_KINDS]
  curves = [run.train.curve(field) for field in fields]
  iterations = np.unique(np.concatenate([curve.x for curve in curves]))
  bin_width = (
    -(-(np.ptp(iterations) + 1) // _MAX_BARS) if iterations.size else 1.0
  )
  bins = np.unique(iterations // bin_width)
  counts = np.array(
    [
      [curve.y[curve.x // bin_width == b].sum() for b in bins]
      for curve in curves
    ]
  )
  total = counts.sum(0)
  nonempty = total > 0
  centres = (bins[nonempty] + 0.5) * bin_width - 0.5
  return Figure(
    key='quadrants',
    title='Selected tokens',
    caption='By the sign of the advantage (right: positive) and by probability '
    '(likely: above the median of the batch).',
    y_label='of selected tokens, %',
    series=[
      Series(
        name=label,
        x=centres,
        y=100 * row[nonempty] / total[nonempty],
        color=_KIND_COLORS[name],
        kind='bars',
      )
      for (name, label), row in zip(TOKEN_KINDS.items(), counts, strict=True)
    ],
    unit='%',
    includes_zero=True,
  )


def _top_covariance_figure(run: RunData) -> Figure:
  """Mean covariance of the top tokens by covariance, for each share of tokens."""
  shares = {
    field: float(share)
    for field in run.train.names('covariance_top/')
    if re.fullmatch(r'[01](\.\d{1,10})?', share := field.partition('/')[2])
  }
  names = {
    field: f'top {100 * shares[field]:.10g} %'
    for field in sorted(shares, key=shares.__getitem__)
  }
  return Figure(
    key='covariance-top',
    title='Largest covariances',
    caption='Means over the tokens with the largest covariance of '
    'log-probability and advantage.',
    y_label='covariance, nats',
    series=metric_series(run.train, names, _TOP_COLORS),
    unit='nats',
    log=True,
  )


def _mean_covariance_figure(run: RunData) -> Figure:
  """Mean covariance of all tokens, smoothed."""
  curve = run.train.curve('covariance')
  series, caption = smoothed_series(curve, 'all tokens', BLUE, 1.0)
  return Figure(
    key='covariance',
    title='Mean covariance',
    caption=f'If positive, plain policy gradient lowers entropy. {caption}',
    y_label='covariance, nats',
    series=series,
    unit='nats',
    includes_zero=True,
  )
