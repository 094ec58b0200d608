# SPDX-License-Identifier: Apache-2.0
"""The verdict on a run, in words: what was gained, kept, selected, paid.

Numbers first (`gain`, `entropy_kept`, `quadrants`, `Cost`), then sentences on
them. A gain whose interval contains 0 is not called a gain.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from covrl.evaluation import intervals
from covrl.evaluation.intervals import Estimate
from covrl.report import words
from covrl.report.run import Run

QUADRANTS = {
  'positive_likely': 'likely tokens in right answers',
  'negative_rare': 'rare tokens in wrong answers',
  'positive_rare': 'rare tokens in right answers',
  'negative_likely': 'likely tokens in wrong answers',
}

# Phases of an iteration that exist because of entropy control alone.
_CONTROL_PHASES = ('control', 'entropy_control', 'selection', 'token_chain')


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of the verdict: what it is about, and what was found."""

  term: str
  text: str


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A sentence to remember, and the findings behind it."""

  headline: str
  findings: Sequence[Finding]


def judge(run: Run) -> Verdict:
  """Says in words what the run showed so far."""
  findings = [
    Finding(term, text)
    for term, text in (
      ('Warm start', '' if len(run.train) else _warm_start(run)),
      ('Accuracy', _accuracy(run)),
      ('Entropy kept', _entropy(run)),
      ('Tokens selected', _selected(run)),
      ('Cost of control', _cost(run)),
    )
    if text
  ]
  return Verdict(_headline(run), findings)


def gain(run: Run, metric: str | None = None) -> Estimate | None:
  """How much an accuracy changed from the first evaluation to the last.

  Paired by problem and bootstrapped where per-problem results were kept, from
  the standard errors where not.

  Args:
    run: with evaluations.
    metric: `'greedy'`, `'mean@8'`, …; the mean over samples by default.

  Returns:
    The change, as a share of 1; `None` without two evaluations.
  """
  metric = metric or run.accuracies[1]
  ends = _ends(run, metric)
  if ends is None:
    return None
  differences = _problem_differences(run, metric)
  if len(differences) == 1:
    return intervals.bootstrap_mean(*differences)
  if differences:
    return intervals.bootstrap_sets(differences)
  field = f'{metric}_stderr'
  errors = [run.evals.at(index, field) for index in _judged(run, metric)]
  return intervals.normal_difference(*ends, errors[0], errors[-1])


def entropy_ends(run: Run) -> tuple[float, float] | None:
  """Entropy in nats at the start and the end, `None` if it was not recorded.

  Of the held-out evaluations where two have it, else of the first and the last
  training iteration.
  """
  ends = _ends(run, 'entropy')
  if ends is not None:
    return ends
  curve = run.train.curve('entropy')
  return (float(curve.y[0]), float(curve.y[-1])) if curve else None


def quadrants(run: Run) -> dict[str, float]:
  """Selected tokens by sign of advantage and likelihood: sums over the run."""
  return {
    name: float(np.nansum(run.train.numbers(f'quadrant/{name}')))
    for name in QUADRANTS
  }


def describe_quadrants(counts: dict[str, float]) -> str:
  """Which tokens were selected, in plain words.

  >>> describe_quadrants({'positive_likely': 10.0, 'negative_rare': 90.0})
  'Mostly rare tokens in wrong answers (90 %)'
  """
  total = sum(counts.values())
  shares = sorted(
    ((count / total, QUADRANTS[name]) for name, count in counts.items()),
    reverse=True,
  )
  leading = [f'{name} ({share:.0%})' for share, name in shares if share > 0.005]
  leading = [text.replace('%)', ' %)') for text in leading]
  if shares[0][0] >= 0.995:
    return f'Only {shares[0][1]}'
  if shares[0][0] >= 0.6:
    return f'Mostly {leading[0]}'
  if shares[0][0] + shares[1][0] >= 0.8:
    return f'Above all {words.listing(leading[:2])}'
  return f'Of every kind: {words.listing(leading)}'


def _judged(run: Run, metric: str) -> list[int]:
  """Which evaluations have the metric."""
  return np.flatnonzero(np.isfinite(run.evals.numbers(metric))).tolist()


def _ends(run: Run, metric: str) -> tuple[float, float] | None:
  """A metric at the first and the last evaluation that have it."""
  judged = _judged(run, metric)
  if len(judged) < 2:
    return None
  numbers = run.evals.numbers(metric)
  return float(numbers[judged[0]]), float(numbers[judged[-1]])


def _problem_differences(
  run: Run, metric: str
) -> list[Float[np.ndarray, ' n']]:
  """Last minus first, one a problem, by set; empty if either was not kept."""
  judged = _judged(run, metric)
  first, last = (
    run.problems(run.evals.at(index, 'iteration'))
    for index in (judged[0], judged[-1])
  )
  found: dict[str, list[float]] = {}
  for problem, befores in first.items():
    for before, after in zip(befores, last.get(problem, ()), strict=False):
      scores = score(before, metric), score(after, metric)
      if scores[0] is not None and scores[1] is not None:
        found.setdefault(problem[0], []).append(scores[1] - scores[0])
  return [np.array(values) for values in found.values()]


def score(problem: Mapping[str, Any], metric: str) -> float | None:
  """One problem's contribution to an accuracy, `None` if it has none."""
  if metric == 'greedy':
    greedy = problem.get('greedy')
    return None if greedy is None else float(greedy)
  correct = problem.get('correct')
  if not correct:
    return None
  mean = metric.startswith('mean')
  return float(np.mean(correct) if mean else max(correct))


def _headline(run: Run) -> str:
  """The one sentence, with the gain where there is one to state."""
  metric = run.accuracies[1]
  estimate, ends = gain(run), _ends(run, metric)
  if estimate is not None and ends is not None:
    verb = {1: 'rose', -1: 'fell', 0: 'shows no clear change:'}[estimate.sign]
    if estimate.low is None:
      verb = 'went'
    span = [run.evals.at(i, 'iteration') for i in _judged(run, metric)]
    return Markup(
      '{} {} from {} to {}: <b class="c{}">{} points</b>. <small>{}{}.</small>'
    ).format(
      metric,
      verb,
      *(words.percent(end) for end in ends),
      (0, 1, 2)[estimate.sign],
      words.signed(100 * estimate.value),
      _capital(words.interval(estimate, scale=100)),
      _between(span[0], span[-1]),
    )
  if run.evals.has(metric):
    value = run.evals.numbers(metric)[_judged(run, metric)[0]]
    return Markup(
      'One evaluation so far: {} is <b>{}</b>. A gain needs a second one.'
    ).format(metric, words.percent(value))
  if len(run.train):
    return 'Training goes on; nothing has been evaluated yet.'
  if len(run.warm_start):
    return 'Still in the warm start; reinforcement learning has not begun.'
  return 'Nothing has been recorded yet.'


def _accuracy(run: Run) -> str:
  """The other accuracies, each with its change and interval."""
  parts = []
  greedy, _, best = run.accuracies
  for metric in (greedy, best):
    ends, estimate = _ends(run, metric), gain(run, metric)
    if ends is None or estimate is None:
      continue
    spread = ''
    if estimate.low is not None and estimate.high is not None:
      low, high = (
        words.signed(100 * end) for end in (estimate.low, estimate.high)
      )
      spread = f' ({low} to {high})'
    parts.append(
      Markup('{} {} → {}, <b>{}</b>{}').format(
        metric,
        *(words.percent(end) for end in ends),
        words.signed(100 * estimate.value),
        spread,
      )
    )
  return Markup('{}.').format(Markup('; ').join(parts)) if parts else ''


def _warm_start(run: Run) -> str:
  """Where the warm start stands, for runs with nothing better to say."""
  if not len(run.warm_start):
    return ''
  parts = []
  for field, say in (('loss', words.number), ('accuracy', words.percent)):
    curve = run.warm_start.curve(field, 'step')
    if curve:
      parts.append(f'{field} {say(curve.y[-1])}')
  steps = run.warm_start.numbers('step')[-1]
  done = f' after {steps:,.0f} steps' if np.isfinite(steps) else ''
  return _capital(f'{words.listing(parts)}{done}.') if parts else ''


def _entropy(run: Run) -> str:
  """Entropy at both ends, and the share that is left."""
  ends = entropy_ends(run)
  if ends is None or ends[0] <= 0:
    return ''
  start, end = ends
  return Markup('{} → {} nats per token: <b>{}</b> {}.').format(
    *(words.number(value) for value in ends),
    words.percent(end / start, 0),
    'kept' if end <= start else 'of the start, more than there was',
  )


def _selected(run: Run) -> str:
  """Which tokens the method chose, and how many."""
  fraction = run.train.mean('selected_fraction')
  counts = quadrants(run)
  chosen = np.nansum(run.train.numbers('selected'))
  if not sum(counts.values()) and not chosen and not fraction:
    return 'None: this run selects no tokens.' if len(run.train) else ''
  parts = []
  if sum(counts.values()):
    parts.append(Markup('<b>{}</b>').format(describe_quadrants(counts)))
  how_many = []
  if chosen:
    how_many.append(f'{chosen:,.0f} tokens')
  if fraction:
    how_many.append(f'{words.percent(fraction, 2)} of those trained on')
  if how_many:
    parts.append(Markup(', ').join(how_many))
  return Markup('{}.').format(Markup('; ').join(parts))


def _cost(run: Run) -> str:
  """What entropy control took: time, and weight in what is learnt from."""
  parts = []
  seconds = run.train.seconds('seconds')
  spent = [run.train.seconds(f'time/{name}') for name in _CONTROL_PHASES]
  spent = [value for value in spent if value is not None]
  if spent and seconds:
    share = words.percent(sum(spent) / seconds)
    parts.append(Markup('<b>{}</b> of the time').format(share))
  penalty = run.train.mean('penalty_share')
  if penalty:
    parts.append(
      Markup(
        'what it changed is <b>{}</b> of the gradient signal’s norm on average'
      ).format(words.percent(penalty))
    )
  text = Markup('; ').join(parts)
  return Markup('{}.').format(_capital(text)) if text else ''


def _between(first: float | None, last: float | None) -> str:
  """Which evaluations a change is between."""
  if first is None or last is None:
    return ''
  return f', iteration {first:,.0f} to {last:,.0f}'


def _capital(text: str) -> str:
  """The text with its first letter in upper case."""
  return text[:1].upper() + text[1:]
