# SPDX-License-Identifier: Apache-2.0
"""Summary of a run: accuracy, entropy, selected tokens, effect of control.

Public functions compute the numbers; `summarize` puts them into text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from covrl.evaluation import intervals
from covrl.evaluation.intervals import Estimate
from covrl.report import formats
from covrl.report.inputs.problem_results import problem_score
from covrl.report.inputs.run_data import RunData

TOKEN_KINDS = {
  'positive_likely': 'likely tokens in right answers',
  'negative_rare': 'rare tokens in wrong answers',
  'positive_rare': 'rare tokens in right answers',
  'negative_likely': 'likely tokens in wrong answers',
}
"""Kinds of selected tokens, as logged and as displayed."""


@dataclasses.dataclass(frozen=True)
class Finding:
  """One line of a summary: its subject and a sentence or numbers.

  Attributes:
    term: the subject.
    text: the sentence or numbers.
  """

  term: str
  text: str


@dataclasses.dataclass(frozen=True)
class Summary:
  """A headline and further findings."""

  headline: str
  findings: Sequence[Finding]


def summarize(run: RunData) -> Summary:
  """Summarises what a run has recorded so far."""
  texts = {
    'Accuracy': _accuracy_text(run),
    'Entropy': _entropy_text(run),
    'Tokens selected': _selection_text(run),
    'Effect of control': _control_text(run),
  }
  findings = [Finding(term, text) for term, text in texts.items() if text]
  return Summary(_headline(run), findings)


def health_warnings(run: RunData) -> list[str]:
  """Sentences about updates that were skipped, changed nothing or had a clamped fraction."""
  total = len(run.train)
  without_tokens = int(np.sum(run.train.column('tokens') == 0))
  sentences = []
  # Those of networks beside the policy are named `NETWORK/skipped`.
  for name in ('skipped', *run.train.names('', ending='/skipped')):
    network = name.removesuffix('skipped').removesuffix('/')
    of_network = f' of the {network}' if network else ''
    if skipped := int(np.sum(run.train.column(name) > 0)):
      sentences.append(
        f'{skipped:,} of {total:,} updates{of_network} were skipped, because'
        ' gradients or parameters were not finite.'
      )
  if without_tokens:
    sentences.append(
      f'{without_tokens:,} of {total:,} updates had no token to train on, and '
      'changed nothing.'
    )
  without_gradient = int(np.sum(run.train.column('gradient_norm') == 0))
  if without_gradient:
    sentences.append(
      f'{without_gradient:,} of {total:,} updates had a gradient of 0, as where '
      'the rewards of every group are equal.'
    )
  clamped = int(np.sum(run.train.column('clamped') > 0))
  if clamped:
    sentences.append(
      f'{clamped:,} of {total:,} updates selected tokens by a fraction outside '
      'its range, which was clamped.'
    )
  return sentences


def accuracy_gain(run: RunData, metric: str | None = None) -> Estimate | None:
  """Change of an accuracy from the first evaluation to the last.

  The interval is a bootstrap paired by problem if results by problem were
  saved, and comes from the standard errors otherwise.

  Args:
    run: the run.
    metric: `'greedy'`, `'mean@8'`, …; `run.main_accuracy` by default.

  Returns:
    The change as a fraction; `None` with fewer than two evaluations.
  """
  metric = metric or run.main_accuracy
  ends = first_and_last(run, metric)
  if ends is None:
    return None
  differences = _problem_differences(run, metric)
  if len(differences) == 1:
    return intervals.bootstrap_mean(*differences)
  if differences:
    return intervals.bootstrap_sets(differences)
  field = f'{metric}_stderr'
  errors = [run.evals.value_at(i, field) for i in _indices_with(run, metric)]
  return intervals.normal_difference(*ends, errors[0], errors[-1])


def first_and_last(run: RunData, metric: str) -> tuple[float, float] | None:
  """A metric at the first and at the last evaluation that have it.

  `None` with fewer than two such evaluations.
  """
  evaluated_indices = _indices_with(run, metric)
  if len(evaluated_indices) < 2:
    return None
  values = run.evals.column(metric)
  return float(values[evaluated_indices[0]]), float(
    values[evaluated_indices[-1]]
  )


def entropy_change(run: RunData) -> tuple[float, float] | None:
  """Entropy in nats at the start and at the end; `None` if not recorded.

  From evaluations if two have it, otherwise from training iterations.
  """
  ends = first_and_last(run, 'entropy')
  if ends is not None:
    return ends
  curve = run.train.curve('entropy')
  return (float(curve.y[0]), float(curve.y[-1])) if curve else None


def count_selected_tokens(run: RunData) -> dict[str, float]:
  """Number of selected tokens in the whole run, by kind: sign of the advantage, rarity."""
  return {
    name: float(np.nansum(run.train.column(f'quadrant/{name}')))
    for name in TOKEN_KINDS
  }


def describe_selected_tokens(counts: Mapping[str, float]) -> str:
  """Kinds of selected tokens with their fractions, the most frequent first.

  >>> describe_selected_tokens({'positive_likely': 10.0, 'negative_rare': 90.0})
  'rare tokens in wrong answers (90 %), likely tokens in right answers (10 %)'
  """
  total = sum(counts.values())
  ordered = sorted(counts.items(), key=lambda item: -item[1])
  return ', '.join(
    f'{TOKEN_KINDS[name]} ({100 * count / total:.0f} %)'
    for name, count in ordered
    if count / total > 0.005
  )


def _indices_with(run: RunData, metric: str) -> list[int]:
  """Indices of the evaluations that have a metric."""
  return np.flatnonzero(np.isfinite(run.evals.column(metric))).tolist()


def _problem_differences(
  run: RunData, metric: str
) -> list[Float[np.ndarray, ' n']]:
  """Last minus first score of each problem, one array per evaluation set.

  Empty if the results by problem of either evaluation were not saved.
  """
  evaluated_indices = _indices_with(run, metric)
  first, last = (
    run.results_at(run.evals.value_at(index, 'iteration'))
    for index in (evaluated_indices[0], evaluated_indices[-1])
  )
  differences: dict[str, list[float]] = {}
  for (suite, key), records in first.items():
    pairs = zip(records, last.get((suite, key), ()), strict=False)
    for before, after in pairs:
      scores = problem_score(before, metric), problem_score(after, metric)
      if scores[0] is not None and scores[1] is not None:
        differences.setdefault(suite, []).append(scores[1] - scores[0])
  return [np.array(values) for values in differences.values()]


def _headline(run: RunData) -> str:
  """Change of the main accuracy, or its only value, or the recorded lines."""
  metric = run.main_accuracy
  evaluated_indices = _indices_with(run, metric)
  gain, ends = accuracy_gain(run, metric), first_and_last(run, metric)
  if gain is not None and ends is not None:
    first, last = (
      run.evals.value_at(index, 'iteration')
      for index in (evaluated_indices[0], evaluated_indices[-1])
    )
    interval = formats.interval_text(gain, scale=100)
    return Markup(
      '{}: {} → {}, <b class="c{}">{} points</b>. <small>{}{}.</small>'
    ).format(
      metric,
      *(formats.percent(end) for end in ends),
      (0, 1, 2)[gain.sign],
      formats.signed(100 * gain.value),
      interval[:1].upper() + interval[1:],
      f', iteration {first or 0:,.0f} to {last or 0:,.0f}',
    )
  if evaluated_indices:
    value = run.evals.column(metric)[evaluated_indices[0]]
    return Markup('{}: <b>{}</b> at the only evaluation so far.').format(
      metric, formats.percent(value)
    )
  if len(run.evals):
    return 'No accuracy in any evaluation so far.'
  return (
    f'No evaluation yet. Lines in metrics.jsonl: {len(run.warm_start):,} of '
    f'the warm start, {len(run.train):,} of training.'
  )


def _accuracy_text(run: RunData) -> str:
  """The other accuracies with their changes and intervals."""
  parts = []
  for metric in run.accuracies:
    if metric == run.main_accuracy:
      continue
    ends, gain = first_and_last(run, metric), accuracy_gain(run, metric)
    if ends is None or gain is None:
      continue
    parts.append(
      Markup('{} {} → {}, <b>{}</b>').format(
        metric, *(formats.percent(end) for end in ends), gain_text(gain)
      )
    )
  return Markup('{}.').format(Markup('; ').join(parts)) if parts else ''


def gain_text(gain: Estimate) -> str:
  """A change in percentage points with the ends of its interval."""
  text = formats.signed(100 * gain.value)
  if gain.low is None or gain.high is None:
    return text
  low, high = (formats.signed(100 * end) for end in (gain.low, gain.high))
  return f'{text} ({low} to {high})'


def _entropy_text(run: RunData) -> str:
  """Entropy at both ends and their ratio."""
  ends = entropy_change(run)
  if ends is None or ends[0] <= 0:
    return ''
  start, end = ends
  return Markup('{} → {} nats per token, <b>{}</b> of the start.').format(
    *(formats.number(value) for value in ends), formats.percent(end / start, 0)
  )


def _selection_text(run: RunData) -> str:
  """Number, fraction and kinds of the selected tokens."""
  if not len(run.train):
    return ''
  counts = count_selected_tokens(run)
  selected = np.nansum(run.train.column('selected')) or sum(counts.values())
  parts = [f'{formats.fixed(selected, 0)} tokens']
  fraction = run.train.mean('selected_fraction')
  if fraction:
    parts.append(f'{formats.percent(fraction, 2)} of those trained on')
  if sum(counts.values()):
    parts.append(describe_selected_tokens(counts))
  return f'{"; ".join(parts)}.'


def _control_text(run: RunData) -> str:
  """Mean change of the gradient signal by the token chain."""
  share = run.train.mean('penalty_share')
  if not share:
    return ''
  return Markup('a change of <b>{}</b> of the gradient signal’s norm.').format(
    formats.percent(share)
  )
