# SPDX-License-Identifier: Apache-2.0
"""Advice on entropy control from a run's metrics.

The guidelines of section VIII.D of arXiv:2604.09676 as rules, with what covrl has
measured where it contradicts them: the published covariance of a few tokens lies
far above five times the mean, a bonus does not restore the entropy of a policy
that is nearly deterministic, and an annealed coefficient leaves no control at the
end. Every recommendation states the numbers that it follows from.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from covrl.report import formats
from covrl.report.advice_inputs import WIDEST_TAIL, AdviceInputs
from covrl.report.inputs.phase_metrics import PhaseMetrics, check_possible
from covrl.report.inputs.run_data import RunData

Method = Literal['none', 'controlled_bonus', 'kl_cov', 'clip_cov']

TAIL_SHARES = (0.0002, 0.002, WIDEST_TAIL)
"""Shares of tokens; a run logs the mean covariance of the top tokens by each share.

In an update of few tokens a small share is less than one token, and is not logged.
"""

METRICS_AT_INTERVALS = (
  f'covariance_top/{WIDEST_TAIL:g}',
  'covariance_quantile/0.99',
)
"""Metrics of updates that a run may measure only every few iterations."""

REQUIRED_METRICS = (
  'entropy',
  'covariance',
  *METRICS_AT_INTERVALS,
  'tokens',
  'reward',
  'equal_reward_groups',
)
"""Metrics of updates that the advice depends on, besides `iteration`."""

# Fewest iterations with which a recommendation is given.
MIN_ITERATIONS = 5
# No control is recommended if the entropy falls by a smaller share.
SMALL_DECREASE = 0.2
# All tokens are controlled if the top 2 % hold a smaller share of the covariance.
MIN_TAIL_SHARE = 0.25
# Largest share of the iterations that may lack a metric.
MAX_MISSING_SHARE = 0.1
# Share of groups with equal rewards from which the coefficient may be annealed.
SATURATED_GROUP_SHARE = 0.9
# Fewest tokens per update, and largest share of them, that are recommended to select.
MIN_SELECTED_TOKENS = 4
MAX_FRACTION = 0.05


@dataclasses.dataclass(frozen=True, kw_only=True)
class Advice:
  """A recommendation of an entropy-control method and its settings.

  Attributes:
    method: entropy control; 'none' keeps the run's loss and token chain.
    fraction: share of the tokens of an update to select, k; 0 without a selection.
    coefficient: coefficient of KL-Cov's penalty, β; 0 without one.
    low: Clip-Cov's lower bound of the covariance; 0 without it.
    high: Clip-Cov's upper bound; infinite for none.
    target: target entropy in nats; 0 without one.
    annealed: whether the coefficient falls to 0 along a line.
    reasons: sentences with the numbers that led to it.
  """

  method: Method
  fraction: float = 0.0
  coefficient: float = 0.0
  low: float = 0.0
  high: float = 0.0
  target: float = 0.0
  annealed: bool = False
  reasons: Sequence[str] = ()

  @property
  def recommendation(self) -> str:
    """The recommendation in one line."""
    schedule = 'annealed to 0' if self.annealed else 'constant'
    match self.method:
      case 'none':
        return 'no change: keep the loss and the token chain'
      case 'controlled_bonus':
        return (
          'an entropy bonus that a controller sets:'
          f' adaptive_bonus({formats.number(self.target)})'
        )
      case 'kl_cov':
        return (
          f'KL-Cov without a clip: k = {self.fraction:.2g}, β ='
          f' {self.coefficient:g}, {schedule}'
        )
      case 'clip_cov':
        bounds = f'above {formats.number(self.low)}'
        if math.isfinite(self.high):
          bounds += f' and below {formats.number(self.high)}'
        return f'Clip-Cov: k = {self.fraction:.2g}, covariances {bounds}'


def read_inputs(run: RunData) -> AdviceInputs:
  """Reads the numbers that the advice depends on.

  Raises:
    ValueError: metrics are impossible, or missing, in the whole run, in more than
      a tenth of its iterations or, where they are measured at intervals, in its
      first third; the run has fewer than five iterations with updates; its updates
      have no tokens; or its entropy is 0 at the start.
  """
  train, name = run.train, run.path.name
  check_possible(train, name)
  missing = [metric for metric in REQUIRED_METRICS if not train.has(metric)]
  if missing:
    cause = ''
    if set(missing) <= set(METRICS_AT_INTERVALS):
      cause = (
        ', which logging.diagnostics_every=0 leaves out'
        if run.config_value('logging.diagnostics_every') == 0
        else ', as where an update has too few tokens for them'
      )
    raise ValueError(
      f'{name} must have the metrics {formats.join_words(missing)} of updates, got'
      f' none{cause}'
    )
  iterations = np.unique(train.column('iteration'))
  iterations = iterations[np.isfinite(iterations)]
  num_iterations = iterations.size
  if num_iterations < MIN_ITERATIONS:
    raise ValueError(
      f'{name} must have {MIN_ITERATIONS} iterations with updates, got {num_iterations}'
    )
  metrics_of_all_iterations = [
    metric for metric in REQUIRED_METRICS if metric not in METRICS_AT_INTERVALS
  ]
  for metric in metrics_of_all_iterations:
    num_absent = num_iterations - train.curve(metric).x.size
    if num_absent > MAX_MISSING_SHARE * num_iterations:
      raise ValueError(
        f'{name} must have {metric} in {formats.percent(1 - MAX_MISSING_SHARE, 0)} of the'
        f' iterations, got {num_iterations - num_absent} of {num_iterations}'
      )
  common_iterations = functools.reduce(
    np.intersect1d,
    (train.curve(metric).x for metric in metrics_of_all_iterations),
  )
  first_third_end = common_iterations[max(1, common_iterations.size // 3) - 1]

  def values(metric: str) -> Float[np.ndarray, ' n']:
    curve = train.curve(metric)
    return curve.y[np.isin(curve.x, common_iterations)]

  def first_third(metric: str) -> float:
    curve = train.curve(metric)
    measured = curve.y[curve.x <= first_third_end]
    if not measured.size:
      raise ValueError(
        f'{name} must have {metric} in the first third of the iterations, got'
        f' none up to iteration {first_third_end:g}'
      )
    return float(measured.mean())

  def has_tail(share: float) -> bool:
    metric = f'covariance_top/{share:g}'
    if metric in METRICS_AT_INTERVALS:
      return True
    return train.has(metric) and bool(
      np.any(train.curve(metric).x <= first_third_end)
    )

  def last_tenth(metric: str) -> float:
    return float(values(metric)[-num_in_tenth:].mean())

  num_in_tenth = max(1, common_iterations.size // 10)
  entropy, tokens = values('entropy'), float(values('tokens').mean())
  start = float(entropy[:num_in_tenth].mean())
  if start <= 0:
    raise ValueError(
      f'the entropy of {name} must be above 0 at the start, got {start:g} nats'
    )
  if tokens < 1:
    raise ValueError(
      f'updates of {name} must have at least one token, got {tokens:g}'
    )
  halved_iterations = common_iterations[entropy <= start / 2]
  return AdviceInputs(
    iterations=num_iterations,
    planned_iterations=None if run.finished else run.planned_iterations,
    updates_per_iteration=_updates_per_iteration(train),
    tokens=tokens,
    entropy_start=start,
    entropy_end=last_tenth('entropy'),
    halving_iterations=float(halved_iterations[0] - common_iterations[0])
    if halved_iterations.size
    else None,
    covariance=first_third('covariance'),
    tails={
      share: first_third(f'covariance_top/{share:g}')
      for share in TAIL_SHARES
      if has_tail(share)
    },
    high_quantile=first_third('covariance_quantile/0.99'),
    equal_group_share=last_tenth('equal_reward_groups'),
    reward=last_tenth('reward'),
    selected=train.mean('selected') or 0.0,  # absent without a selection
  )


def advise(inputs: AdviceInputs) -> Advice:
  """Recommends method, share of tokens, bounds and schedule."""
  change_text = (
    f'entropy went from {formats.number(inputs.entropy_start)} to'
    f' {formats.number(inputs.entropy_end)} nats per token in'
    f' {inputs.iterations:,} iterations'
  )
  if inputs.planned_iterations is not None:
    change_text += f' of {inputs.planned_iterations:,}, the run is not finished'
  if inputs.selected > 0:
    change_text += (
      f', with control of {inputs.selected:,.0f} of {inputs.tokens:,.0f} tokens'
      ' per update by the token chain'
    )
  if inputs.lost_entropy_share < SMALL_DECREASE:
    change = (
      f'less than {formats.percent(SMALL_DECREASE, 0)} is lost'
      if inputs.lost_entropy_share > -SMALL_DECREASE
      else f'it rose by {formats.percent(-inputs.lost_entropy_share, 0)}'
    )
    return Advice(
      method='none', reasons=[f'{change_text}: {change}, there is no collapse']
    )
  reasons = [
    f'{change_text}: {formats.percent(inputs.lost_entropy_share, 0)} is lost'
  ]
  if inputs.halving_iterations is not None:
    reasons.append(
      f'half of it after {inputs.halving_iterations:,.0f} iterations'
    )
  if inputs.tail_share < MIN_TAIL_SHARE:
    reasons.append(
      f'the top 2\u202f% of the tokens hold {formats.percent(inputs.tail_share, 0)} of the covariance,'
      f' less than {formats.percent(MIN_TAIL_SHARE, 0)}: many tokens contribute to it, so all are controlled'
    )
    return Advice(
      method='controlled_bonus',
      target=inputs.entropy_start / 2,
      reasons=[*reasons, 'the target is half of the entropy at the start'],
    )
  reasons.append(
    f'the top 2\u202f% of the tokens hold {formats.percent(inputs.tail_share, 0)} of the covariance'
  )
  fraction, text = _fraction(inputs)
  reasons.append(text)
  if inputs.updates_per_iteration < 1.5:
    low, high, text = _bounds(inputs)
    return Advice(
      method='clip_cov',
      fraction=fraction,
      low=low,
      high=high,
      reasons=[
        *reasons,
        "with one update per rollout KL-Cov's penalty has no gradient",
        text,
      ],
    )
  is_saturated = inputs.equal_group_share >= SATURATED_GROUP_SHARE
  equal_groups_text = f'{formats.percent(inputs.equal_group_share, 0)} of the groups have equal rewards at the end'
  reasons.append(
    f'{equal_groups_text}: nothing is left to explore, β may fall to 0'
    if is_saturated and inputs.reward > 0.5
    else f'{equal_groups_text}: exploration is needed to the end, β stays'
  )
  coefficient, text = _coefficient(inputs)
  return Advice(
    method='kl_cov',
    fraction=fraction,
    coefficient=coefficient,
    annealed=is_saturated and inputs.reward > 0.5,
    reasons=[*reasons, text],
  )


def advice_text(run: RunData) -> str:
  """Recommendation and reasons as one text; empty if metrics are missing."""
  try:
    advice = advise(read_inputs(run))
  except ValueError:
    return ''
  return f'{advice.recommendation}. Because {"; ".join(advice.reasons)}.'


def _fraction(inputs: AdviceInputs) -> tuple[float, str]:
  """The smallest logged share of tokens that holds half of the tail."""
  tails = inputs.tails
  half_of_tail = WIDEST_TAIL * tails[WIDEST_TAIL] / 2
  share = min(share for share in tails if share * tails[share] >= half_of_tail)
  min_share = MIN_SELECTED_TOKENS / max(inputs.tokens, 1.0)
  # Rounded to the two digits that are printed; the numbers are no more precise.
  fraction = float(f'{min(max(share, min_share), MAX_FRACTION):.2g}')
  text = (
    f'the top {formats.percent(share, 2)} of the tokens hold half of that'
    if share < WIDEST_TAIL
    else 'no smaller share that is logged holds half of that'
  )
  if fraction != share:
    text += (
      f'; k is {fraction:.2g}, {MIN_SELECTED_TOKENS} of the {inputs.tokens:,.0f} tokens'
      f' of an update but at most {MAX_FRACTION:g}'
    )
  return fraction, text


def _bounds(inputs: AdviceInputs) -> tuple[float, float, str]:
  """Clip-Cov's bounds: the .99 quantile, and the mean of the smallest logged tail."""
  low, smallest_share = max(inputs.high_quantile, 0.0), min(inputs.tails)
  high = inputs.tails[smallest_share]
  text = 'the lower bound is the .99 quantile of the covariance'
  if smallest_share < WIDEST_TAIL and high > low:
    text += f', the upper one the mean of its top {formats.percent(smallest_share, 2)}'
  else:
    high = math.inf
    text += ', and no smaller share than the top 2 % is known for an upper one'
  return (
    low,
    high,
    f'{text}; 1 to 5 times the mean, as published, would be'
    f' {formats.number(inputs.covariance)} to'
    f' {formats.number(5 * inputs.covariance)}, where ordinary tokens are',
  )


def _coefficient(inputs: AdviceInputs) -> tuple[float, str]:
  """KL-Cov's coefficient: larger where entropy falls fast."""
  is_fast = (
    inputs.halving_iterations is not None
    and inputs.halving_iterations <= inputs.iterations / 5
  )
  if is_fast:
    return 3.0, 'entropy halves within a fifth of the run: β = 3'
  return (
    1.0,
    'entropy did not halve within a fifth of the run: β = 1, as published',
  )


def _updates_per_iteration(train: PhaseMetrics) -> float:
  """Mean number of lines of metrics, one per update, in an iteration."""
  iterations = train.column('iteration')
  return len(train) / max(
    1, np.unique(iterations[np.isfinite(iterations)]).size
  )
