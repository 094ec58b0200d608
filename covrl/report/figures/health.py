# SPDX-License-Identifier: Apache-2.0
"""Diagnostic figures of a run: clipping, gaps, lengths, throughput, times."""

from __future__ import annotations

from covrl.report import formats
from covrl.report.figures.chart import SMALL_SIZE, Figure, FigureLayout
from covrl.report.figures.series import (
  BLUE,
  GREEN,
  ORANGE,
  VERMILION,
  lay_out_all,
  metric_figure,
)
from covrl.report.inputs.phase_metrics import PhaseMetrics
from covrl.report.inputs.run_data import RunData
from covrl.report.inputs.run_json import short_text


def health_figures(run: RunData) -> list[FigureLayout]:
  """The diagnostic figures that have data."""
  return lay_out_all(
    [*_update_figures(run.train), *_rollout_figures(run.train)], SMALL_SIZE
  )


def phase_times(run: RunData) -> list[tuple[str, str, float]]:
  """Mean time per iteration by phase, the longest first.

  Returns:
    Name, time as text, and time relative to the longest phase.
  """
  times = {
    short_text(name.removeprefix('time/').replace('_', ' '), 40): (
      run.train.seconds_per_iteration(name)
    )
    for name in run.train.names('time/')
  }
  positive_times = {
    name: mean for name, mean in times.items() if mean and mean > 0
  }
  longest = max(positive_times.values(), default=1.0)
  return [
    (name, _seconds_text(mean), mean / longest)
    for name, mean in sorted(positive_times.items(), key=lambda item: -item[1])
  ]


def _update_figures(train: PhaseMetrics) -> list[Figure]:
  """Figures of the policy updates."""
  return [
    metric_figure(
      train,
      'clipping',
      'Tokens clipped and selected',
      'of response tokens, %',
      {'clip_fraction': 'clipped', 'selected_fraction': 'selected'},
      (VERMILION, BLUE),
      scale=100,
      unit='%',
      includes_zero=True,
    ),
    metric_figure(
      train,
      'log-ratio',
      'Log-ratio to the rollout policy',
      'log-ratio, nats',
      {'log_ratio_abs': 'mean |log ratio|', 'log_ratio': 'mean log ratio'},
      (BLUE, ORANGE),
      unit='nats',
      includes_zero=True,
    ),
    metric_figure(
      train,
      'sampler-gap',
      'Sampler against trainer',
      'nats, logarithmic',
      {'sampler_gap_max': 'largest', 'sampler_gap': 'mean'},
      (ORANGE, BLUE),
      caption='Absolute difference of log-probabilities of the same tokens '
      'under the same parameters.',
      unit='nats',
      log=True,
    ),
    metric_figure(
      train,
      'penalty',
      'Relative size of entropy control',
      'of the norm of the signal, %',
      {'penalty_share': 'fraction'},
      caption='Norm of the change of the gradient signal by the token chain, '
      'divided by the norm of the result.',
      scale=100,
      unit='%',
      includes_zero=True,
    ),
    metric_figure(
      train,
      'entropy-drift',
      'Drift of entropy',
      'nats per update',
      {'entropy_drift': 'measured'},
      caption='Change of the mean entropy between consecutive batches.',
      unit='nats',
      includes_zero=True,
    ),
    _predicted_entropy_change(train),
    metric_figure(
      train,
      'gradient-norm',
      'Gradient norm',
      'before clipping',
      {'gradient_norm': 'mean'},
      includes_zero=True,
    ),
  ]


def _predicted_entropy_change(train: PhaseMetrics) -> Figure:
  """Figure of the first-order predictions of the change of entropy."""
  fields = train.names('predicted_entropy_change')
  names = {field: short_text(field.rpartition('/')[2], 40) for field in fields}
  if list(names) == ['predicted_entropy_change']:
    names = {'predicted_entropy_change': 'from the covariance'}
  return metric_figure(
    train,
    'entropy-predicted',
    'Predicted change of entropy',
    'nats per unit of step size',
    names,
    (BLUE, ORANGE, GREEN),
    caption='From the covariance in the batch and in each state.'
    if len(names) > 1
    else '',
    includes_zero=True,
  )


def _rollout_figures(train: PhaseMetrics) -> list[Figure]:
  """Figures of responses and throughput."""
  return [
    metric_figure(
      train,
      'length',
      'Response length',
      'tokens',
      {'response_length': 'mean'},
      unit='tokens',
    ),
    metric_figure(
      train,
      'endings',
      'Ends of responses, and groups of equal reward',
      'of responses or groups, %',
      {
        'end_fraction': 'ended by the policy',
        'truncated_fraction': 'truncated at the limit',
        'equal_reward_groups': 'groups of equal reward',
        'reward_failures': 'responses not scored',
      },
      (BLUE, VERMILION, GREEN, ORANGE),
      scale=100,
      unit='%',
      includes_zero=True,
    ),
    metric_figure(
      train,
      'throughput',
      'Throughput',
      'tokens per second, in updates',
      {'tokens_per_second': 'tokens'},
      unit='per second',
      includes_zero=True,
    ),
  ]


def _seconds_text(mean: float) -> str:
  """Seconds with two decimals, or one significant digit below 10 ms."""
  if mean >= 0.01:
    return f'{formats.fixed(mean, 2)} s'
  return f'{formats.number(mean, 1)} s'
