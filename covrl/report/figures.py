# SPDX-License-Identifier: Apache-2.0
"""The figures of one run's report; those with nothing to draw are left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from covrl.report import words
from covrl.report.chart import Drawing, Figure, Series, draw, smooth
from covrl.report.run import Curve, Lines, Run
from covrl.report.verdict import ACCURACIES, QUADRANTS

# Indices of the page's palette (Okabe and Ito's, in `style.css`).
INK, BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY = range(8)

_ACCURACY_COLORS = dict(zip(ACCURACIES, (GREEN, BLUE, PURPLE), strict=True))
_QUADRANT_COLORS = dict(
  zip(QUADRANTS, (BLUE, VERMILION, SKY, ORANGE), strict=True)
)
_TOP_COLORS = (VERMILION, ORANGE, PURPLE, BLUE, SKY, GREEN)


def main_figures(run: Run) -> list[Drawing]:
  """What the run is about: accuracy, entropy, reward, covariance, selection."""
  return _drawn(
    [
      _accuracy(run),
      _entropy(run),
      _reward(run),
      _quadrants(run),
      _top_covariance(run),
      _covariance(run),
    ]
  )


def health_figures(run: Run) -> list[Drawing]:
  """Whether the machinery behaved."""
  return _drawn(
    [
      _clipping(run),
      _log_ratio(run),
      _sampler_gap(run),
      _penalty(run),
      _entropy_change(run),
      _length(run),
      _endings(run),
      _gradient_norm(run),
      _throughput(run),
    ]
  )


def warm_start_figures(run: Run) -> list[Drawing]:
  """The supervised beginning, over its optimiser steps."""
  lines = run.warm_start
  return _drawn(
    [
      Figure(
        key='warm-loss',
        title='Loss',
        y_label='cross-entropy, nats per token',
        series=_lines(lines, {'loss': 'loss'}, over='step'),
        x_label='step',
        unit='nats',
      ),
      Figure(
        key='warm-accuracy',
        title='Token accuracy',
        y_label='next tokens predicted, %',
        series=_lines(lines, {'accuracy': 'accuracy'}, over='step', scale=100),
        x_label='step',
        unit='%',
      ),
    ]
  )


def phase_times(run: Run) -> list[tuple[str, str, float]]:
  """Mean seconds per phase of an iteration: name, time, share of the longest."""
  times = {
    name.removeprefix('time/').replace('_', ' '): run.train.mean(name)
    for name in run.train.fields('time/')
  }
  known = {name: mean for name, mean in times.items() if mean}
  longest = max(known.values(), default=1.0)
  return [
    (name, f'{words.number(mean)} s', mean / longest)
    for name, mean in sorted(known.items(), key=lambda item: -item[1])
  ]


def _accuracy(run: Run) -> Figure:
  series = []
  for name in reversed(ACCURACIES):
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
        color=_ACCURACY_COLORS[name],
        kind='points',
      )
    )
  return Figure(
    key='accuracy',
    title='Held-out problems solved',
    caption='Bars: 95 % of the evaluation’s own sampling error. '
    'pass@8 counts a problem that any of 8 samples solves.',
    y_label='problems solved, %',
    series=series,
    unit='%',
  )


def _entropy(run: Run) -> Figure:
  held_out = run.evals.curve('entropy')
  series = _lines(run.train, {'entropy': 'while training'}, (BLUE,))
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
  series, caption = _smoothed(run.train.curve('reward'), 'reward', BLUE, 100)
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
  bins = np.array_split(places, min(places.size, 24)) if places.size else []
  counts = np.array(
    [[_within(curve, places) for places in bins] for curve in curves]
  )
  total = counts.sum(0) if bins else np.zeros(0)
  chosen = total > 0
  centres = np.array([places.mean() for places in bins])[chosen]
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
      for (name, label), row in zip(QUADRANTS.items(), counts, strict=False)
    ]
    if bins
    else [],
    unit='%',
    zero=True,
  )


def _top_covariance(run: Run) -> Figure:
  fields = run.train.fields('covariance_top/')
  fields.sort(key=lambda field: float(field.split('/')[1]))
  names = {
    field: f'top {words.number(100 * float(field.split("/")[1]), 2)} %'
    for field in fields
  }
  return Figure(
    key='covariance-top',
    title='The largest covariances',
    caption='Means over the tokens with the largest covariance of '
    'log-probability and advantage: few tokens carry most of it.',
    y_label='covariance, nats',
    series=_lines(run.train, names, _TOP_COLORS),
    unit='nats',
    log=True,
  )


def _covariance(run: Run) -> Figure:
  curve = run.train.curve('covariance')
  series, caption = _smoothed(curve, 'all tokens', BLUE, 1.0)
  return Figure(
    key='covariance',
    title='Mean covariance',
    caption=f'Above 0, a plain policy gradient lowers entropy. {caption}',
    y_label='covariance, nats',
    series=series,
    unit='nats',
    zero=True,
  )


def _clipping(run: Run) -> Figure:
  names = {'clip_fraction': 'clipped', 'selected_fraction': 'selected'}
  return Figure(
    key='clipping',
    title='Tokens clipped and selected',
    y_label='of response tokens, %',
    series=_lines(run.train, names, (VERMILION, BLUE), scale=100),
    unit='%',
    zero=True,
  )


def _log_ratio(run: Run) -> Figure:
  names = {'log_ratio_abs': 'mean |log ratio|', 'log_ratio': 'mean log ratio'}
  return Figure(
    key='log-ratio',
    title='How far an iteration’s updates move',
    y_label='log π/π_old, nats',
    series=_lines(run.train, names, (BLUE, ORANGE)),
    unit='nats',
    zero=True,
  )


def _sampler_gap(run: Run) -> Figure:
  names = {'sampler_gap_max': 'largest', 'sampler_gap': 'mean'}
  return Figure(
    key='sampler-gap',
    title='Sampler against trainer',
    caption='|log-probability difference| on the same tokens and parameters.',
    y_label='nats, logarithmic',
    series=_lines(run.train, names, (ORANGE, BLUE)),
    unit='nats',
    log=True,
  )


def _penalty(run: Run) -> Figure:
  names = {'penalty_share': 'penalty'}
  return Figure(
    key='penalty',
    title='Weight of the penalty',
    y_label='of the gradient norm, %',
    series=_lines(run.train, names, scale=100),
    unit='%',
    zero=True,
  )


def _entropy_change(run: Run) -> Figure:
  names = {'entropy_drift': 'measured', 'predicted_entropy_change': 'predicted'}
  return Figure(
    key='entropy-change',
    title='Change of entropy',
    caption='Predicted from the covariance; measured between consecutive '
    'batches.',
    y_label='nats per iteration',
    series=_lines(run.train, names, (BLUE, ORANGE)),
    unit='nats',
    zero=True,
  )


def _length(run: Run) -> Figure:
  return Figure(
    key='length',
    title='Response length',
    y_label='tokens',
    series=_lines(run.train, {'response_length': 'mean'}),
    unit='tokens',
  )


def _endings(run: Run) -> Figure:
  names = {
    'end_fraction': 'ended by the policy',
    'truncated_fraction': 'cut off at the limit',
    'equal_reward_groups': 'groups of equal reward',
  }
  return Figure(
    key='endings',
    title='Endings, and groups without a signal',
    y_label='of responses or groups, %',
    series=_lines(run.train, names, (BLUE, VERMILION, GREEN), scale=100),
    unit='%',
    zero=True,
  )


def _gradient_norm(run: Run) -> Figure:
  return Figure(
    key='gradient-norm',
    title='Gradient norm',
    y_label='before clipping',
    series=_lines(run.train, {'gradient_norm': 'mean'}),
    zero=True,
  )


def _throughput(run: Run) -> Figure:
  return Figure(
    key='throughput',
    title='Throughput',
    y_label='tokens per second',
    series=_lines(run.train, {'tokens_per_second': 'tokens'}),
    unit='per second',
    zero=True,
  )


def _lines(
  lines: Lines,
  names: dict[str, str],
  colors: Sequence[int] = (BLUE,),
  *,
  over: str = 'iteration',
  scale: float = 1.0,
) -> list[Series]:
  """One line a field."""
  return [
    Series(name=name, x=curve.x, y=scale * curve.y, color=color)
    for (field, name), color in zip(names.items(), colors, strict=False)
    if (curve := lines.curve(field, over))
  ]


def _smoothed(
  curve: Curve, name: str, color: int, scale: float
) -> tuple[list[Series], str]:
  """A noisy quantity: each iteration thin, its running mean bold."""
  x, y = curve.x, scale * curve.y
  if x.size < 12:
    return [Series(name=name, x=x, y=y, color=color)], ''
  window = 2 * (x.size // 24) + 3
  mean = Series(name=name, x=x, y=smooth(y, window), color=color)
  each = Series(name='each iteration', x=x, y=y, color=GREY, kind='faint')
  return [each, mean], f'Bold: running mean over {window} iterations.'


def _within(curve: Curve, places: np.ndarray) -> float:
  """Sum of a curve over some iterations."""
  return float(curve.y[np.isin(curve.x, places)].sum())


def _drawn(figures: Sequence[Figure]) -> list[Drawing]:
  """Lays out the figures that have something to show."""
  return [
    draw(figure)
    for figure in figures
    if any(_has_points(series, figure.log) for series in figure.series)
  ]


def _has_points(series: Series, log: bool) -> bool:
  return bool((np.isfinite(series.y) & ((series.y > 0) | (not log))).any())
