# SPDX-License-Identifier: Apache-2.0
"""The figures of one run's report; those with nothing to draw are left out."""

from __future__ import annotations

import numpy as np

from covrl.report.chart import Drawing, Figure, Series
from covrl.report.run import Run
from covrl.report.series import (
  BLUE,
  GREEN,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
  drawn,
  lines_of,
  smoothed,
)
from covrl.report.verdict import QUADRANTS

_BINS = 24  # bars in a figure

_QUADRANT_COLORS = dict(
  zip(QUADRANTS, (BLUE, VERMILION, SKY, ORANGE), strict=True)
)
_TOP_COLORS = (VERMILION, ORANGE, PURPLE, BLUE, SKY, GREEN)


def main_figures(run: Run) -> list[Drawing]:
  """What the run is about: accuracy, entropy, reward, covariance, selection."""
  return drawn(
    [
      _accuracy(run),
      _entropy(run),
      _reward(run),
      _quadrants(run),
      _top_covariance(run),
      _covariance(run),
    ]
  )


def warm_start_figures(run: Run) -> list[Drawing]:
  """The supervised beginning, over its optimiser steps."""
  lines = run.warm_start
  return drawn(
    [
      Figure(
        key='warm-loss',
        title='Loss',
        y_label='cross-entropy, nats per token',
        series=lines_of(lines, {'loss': 'loss'}, over='step'),
        x_label='step',
        unit='nats',
      ),
      Figure(
        key='warm-entropy',
        title='Entropy',
        y_label='nats per token',
        series=lines_of(lines, {'entropy': 'entropy'}, over='step'),
        x_label='step',
        unit='nats',
        zero=True,
      ),
      Figure(
        key='warm-accuracy',
        title='Token accuracy',
        y_label='next tokens predicted, %',
        series=lines_of(
          lines, {'accuracy': 'accuracy'}, over='step', scale=100
        ),
        x_label='step',
        unit='%',
      ),
    ]
  )


def _accuracy(run: Run) -> Figure:
  series = []
  colors = zip(run.accuracies, (GREEN, BLUE, PURPLE), strict=True)
  for name, color in reversed(list(colors)):
    curve = run.evals.curve(name)
    half = dict(zip(*run.evals.curve(f'{name}_stderr'), strict=True))
    error = 196 * np.array([half.get(place, np.nan) for place in curve.x])
    known = bool(half)
    series.append(
      Series(
        name=name,
        x=curve.x,
        y=100 * curve.y,
        low=100 * curve.y - np.nan_to_num(error) if known else None,
        high=100 * curve.y + np.nan_to_num(error) if known else None,
        color=color,
        kind='points',
      )
    )
  return Figure(
    key='accuracy',
    title='Held-out problems solved',
    caption='Bars: 95 % intervals over problems. pass@k counts a problem that '
    'any of k samples solves.',
    y_label='problems solved, %',
    series=series,
    unit='%',
  )


def _entropy(run: Run) -> Figure:
  held_out = run.evals.curve('entropy')
  series = lines_of(run.train, {'entropy': 'while training'}, (BLUE,))
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
    caption='At the sampling temperature; 0 is a policy that no longer '
    'explores.',
    y_label='nats per token',
    series=series,
    unit='nats',
    zero=True,
  )


def _reward(run: Run) -> Figure:
  series, caption = smoothed(run.train.curve('reward'), 'reward', BLUE, 100)
  return Figure(
    key='reward',
    title='Reward of sampled responses',
    caption=caption,
    y_label='mean reward, % of full marks',
    series=series,
    unit='%',
  )


def _quadrants(run: Run) -> Figure:
  fields = [f'quadrant/{name}' for name in QUADRANTS]
  curves = [run.train.curve(field) for field in fields]
  places = np.unique(np.concatenate([curve.x for curve in curves]))
  width = -(-(np.ptp(places) + 1) // _BINS) if places.size else 1.0
  bins = np.unique(places // width)
  counts = np.array(
    [[curve.y[curve.x // width == b].sum() for b in bins] for curve in curves]
  )
  total = counts.sum(0)
  chosen = total > 0
  centres = (bins[chosen] + 0.5) * width - 0.5
  return Figure(
    key='quadrants',
    title='Which tokens were selected',
    caption='By the sign of the advantage (right: positive) and by likelihood '
    '(above or below the batch’s median probability).',
    y_label='of selected tokens, %',
    series=[
      Series(
        name=label,
        x=centres,
        y=100 * row[chosen] / total[chosen],
        color=_QUADRANT_COLORS[name],
        kind='bars',
      )
      for (name, label), row in zip(QUADRANTS.items(), counts, strict=True)
    ],
    unit='%',
    zero=True,
  )


def _top_covariance(run: Run) -> Figure:
  fields = run.train.fields('covariance_top/')
  fields.sort(key=lambda field: float(field.split('/')[1]))
  names = {
    field: f'top {100 * float(field.split("/")[1]):.10g} %' for field in fields
  }
  return Figure(
    key='covariance-top',
    title='The largest covariances',
    caption='Means over the tokens with the largest covariance of '
    'log-probability and advantage: few tokens carry most of it.',
    y_label='covariance, nats',
    series=lines_of(run.train, names, _TOP_COLORS),
    unit='nats',
    log=True,
  )


def _covariance(run: Run) -> Figure:
  curve = run.train.curve('covariance')
  series, caption = smoothed(curve, 'all tokens', BLUE, 1.0)
  return Figure(
    key='covariance',
    title='Mean covariance',
    caption=f'Above 0, a plain policy gradient lowers entropy. {caption}',
    y_label='covariance, nats',
    series=series,
    unit='nats',
    zero=True,
  )
