# SPDX-License-Identifier: Apache-2.0
"""The smaller figures of a run's report: whether the machinery behaved."""

from __future__ import annotations

from covrl.report import words
from covrl.report.chart import SMALL, Drawing, Figure
from covrl.report.run import Run
from covrl.report.series import BLUE, GREEN, ORANGE, VERMILION, drawn, lines_of


def health_figures(run: Run) -> list[Drawing]:
  """Whether the machinery behaved."""
  return drawn(
    [
      _clipping(run),
      _log_ratio(run),
      _sampler_gap(run),
      _penalty(run),
      _entropy_drift(run),
      _predicted(run),
      _length(run),
      _endings(run),
      _gradient_norm(run),
      _throughput(run),
    ],
    SMALL,
  )


def phase_times(run: Run) -> list[tuple[str, str, float]]:
  """Mean seconds per phase of an iteration: name, time, share of the longest."""
  times = {
    name.removeprefix('time/').replace('_', ' '): run.train.seconds(name)
    for name in run.train.fields('time/')
  }
  known = {name: mean for name, mean in times.items() if mean}
  longest = max(known.values(), default=1.0)
  return [
    (name, _seconds(mean), mean / longest)
    for name, mean in sorted(known.items(), key=lambda item: -item[1])
  ]


def _clipping(run: Run) -> Figure:
  names = {'clip_fraction': 'clipped', 'selected_fraction': 'selected'}
  return Figure(
    key='clipping',
    title='Tokens clipped and selected',
    y_label='of response tokens, %',
    series=lines_of(run.train, names, (VERMILION, BLUE), scale=100),
    unit='%',
    zero=True,
  )


def _log_ratio(run: Run) -> Figure:
  names = {'log_ratio_abs': 'mean |log ratio|', 'log_ratio': 'mean log ratio'}
  return Figure(
    key='log-ratio',
    title='How far an iteration’s updates move',
    y_label='log-ratio, nats',
    series=lines_of(run.train, names, (BLUE, ORANGE)),
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
    series=lines_of(run.train, names, (ORANGE, BLUE)),
    unit='nats',
    log=True,
  )


def _penalty(run: Run) -> Figure:
  names = {'penalty_share': 'share'}
  return Figure(
    key='penalty',
    title='Weight of entropy control',
    caption='Norm of what the token chain changed in the gradient signal, over '
    'the norm of the result.',
    y_label='of the signal’s norm, %',
    series=lines_of(run.train, names, scale=100),
    unit='%',
    zero=True,
  )


def _entropy_drift(run: Run) -> Figure:
  return Figure(
    key='entropy-drift',
    title='Drift of entropy',
    caption='Between consecutive batches.',
    y_label='nats per update',
    series=lines_of(run.train, {'entropy_drift': 'measured'}),
    unit='nats',
    zero=True,
  )


def _predicted(run: Run) -> Figure:
  fields = run.train.fields('predicted_entropy_change')
  names = {field: field.rpartition('/')[2] for field in fields}
  if list(names) == ['predicted_entropy_change']:
    names = {'predicted_entropy_change': 'from the covariance'}
  return Figure(
    key='entropy-predicted',
    title='Predicted change of entropy',
    caption='By the covariance of the batch, and of each state.'
    if len(names) > 1
    else '',
    y_label='nats per unit of step size',
    series=lines_of(run.train, names, (BLUE, ORANGE, GREEN)),
    zero=True,
  )


def _length(run: Run) -> Figure:
  return Figure(
    key='length',
    title='Response length',
    y_label='tokens',
    series=lines_of(run.train, {'response_length': 'mean'}),
    unit='tokens',
  )


def _endings(run: Run) -> Figure:
  names = {
    'end_fraction': 'ended by the policy',
    'truncated_fraction': 'cut off at the limit',
    'equal_reward_groups': 'groups of equal reward',
    'reward_failures': 'responses not scored',
  }
  return Figure(
    key='endings',
    title='Endings, and groups without a signal',
    y_label='of responses or groups, %',
    series=lines_of(
      run.train, names, (BLUE, VERMILION, GREEN, ORANGE), scale=100
    ),
    unit='%',
    zero=True,
  )


def _gradient_norm(run: Run) -> Figure:
  return Figure(
    key='gradient-norm',
    title='Gradient norm',
    y_label='before clipping',
    series=lines_of(run.train, {'gradient_norm': 'mean'}),
    zero=True,
  )


def _throughput(run: Run) -> Figure:
  return Figure(
    key='throughput',
    title='Throughput',
    y_label='tokens per second, in updates',
    series=lines_of(run.train, {'tokens_per_second': 'tokens'}),
    unit='per second',
    zero=True,
  )


def _seconds(mean: float) -> str:
  """Seconds, to hundredths where they show."""
  return f'{words.fixed(mean, 2) if mean >= 0.01 else words.number(mean, 1)} s'
