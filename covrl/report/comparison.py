# SPDX-License-Identifier: Apache-2.0
"""Several runs on one page, in one table, or in one small picture.

`comparison.html.j2` and `comparison.svg.j2` hold the looks, `compare` the
statistics.
"""

from __future__ import annotations

from collections.abc import Sequence

from etils import epath
from markupsafe import Markup

from covrl import storage
from covrl.evaluation.intervals import Estimate
from covrl.report import verdict, words
from covrl.report.compare import Comparison, differing, load_comparison
from covrl.report.law import TITLES, law_rows, lawless
from covrl.report.overlays import (
  forest_of,
  legend_keys,
  overlay,
  overlay_figures,
  scale_of,
)
from covrl.report.page import render, replace
from covrl.report.run import Run
from covrl.report.series import drawn
from covrl.report.sets import set_table


def write_comparison(
  workdirs: Sequence[epath.PathLike], output: epath.PathLike
) -> epath.Path:
  """Writes one page that compares several runs.

  Args:
    workdirs: run directories; those of one configuration are its seeds, and
      the first configuration is the baseline.
    output: where to write the page.

  Returns:
    Where the page is.

  Raises:
    ValueError: if two runs have the same configuration and seed.
    FileNotFoundError: if one is no directory.
  """
  comparison = load_comparison(workdirs)
  page = render(
    'comparison.html.j2',
    comparison=comparison,
    headline=_headline(comparison),
    findings=[_finding(comparison, name) for name in comparison.metrics],
    statistics=_statistics(comparison),
    judged=len(comparison.seeds) > 1,
    rows=_rows(comparison),
    figures=overlay_figures(comparison),
    forests=[
      forest
      for name in comparison.metrics
      if (forest := forest_of(comparison, name)) is not None
    ],
    differing=[
      (group.name, differing(group, comparison.baseline))
      for group in comparison.groups[1:]
    ],
    law=(TITLES, law_rows(comparison), lawless(comparison)),
    sets=set_table(
      [(group.short, list(group.runs.values())) for group in comparison.groups]
    ),
    runs=[
      (group.name, seed, run.path.name, _state(run), _gain(run))
      for group in comparison.groups
      for seed, run in group.runs.items()
    ],
  )
  return replace(storage.path_of(output), page)


def comparison_table(workdirs: Sequence[epath.PathLike]) -> str:
  """The final figures of several runs as a Markdown table.

  Args:
    workdirs: as for `write_comparison`.

  Returns:
    The table, and a line that says how its intervals were made.
  """
  comparison = load_comparison(workdirs)
  titles = _titles(comparison)
  lines = [
    f'| {" | ".join(["configuration", *titles])} |',
    f'|---|{"---:|" * len(titles)}',
  ]
  for name, cells in _rows(comparison):
    lines.append(f'| {" | ".join([name, *cells])} |')
  note = _statistics(comparison)
  if len(comparison.groups) > 1:
    note += f' Δ: difference to {comparison.baseline.name}, paired by seed.'
  return '\n'.join([*lines, '', note, ''])


def comparison_svg(workdirs: Sequence[epath.PathLike]) -> str:
  """Entropy and mean accuracy over the iterations, as a standalone picture.

  Args:
    workdirs: as for `write_comparison`.

  Raises:
    ValueError: if the runs have neither.
  """
  comparison = load_comparison(workdirs)
  metric = comparison.metrics[1]
  panels = drawn(
    [overlay(comparison, field) for field in ('entropy', metric)], (430, 290)
  )
  if not panels:
    raise ValueError(
      f'a picture needs entropy or {metric} of some run, got neither'
    )
  return render(
    'comparison.svg.j2',
    panels=panels,
    keys=legend_keys([group.short for group in comparison.groups], 860),
  )


def _titles(comparison: Comparison) -> list[str]:
  """Columns of the table."""
  levels = [
    name if name == 'entropy' else f'{name}, %' for name in comparison.metrics
  ]
  if len(comparison.groups) == 1:
    return levels
  return [*levels, *(f'Δ {name}' for name in comparison.metrics[1:])]


def _rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
  """The table: the warm start, then each configuration."""
  before = [_level(comparison.before(m), m) for m in comparison.metrics]
  blanks = len(_titles(comparison)) - len(before)
  rows = [('warm start', before + [''] * blanks)]
  for group in comparison.groups:
    cells = [_level(group.level(m), m) for m in comparison.metrics]
    if blanks:
      cells += [
        _difference(group.difference(comparison.baseline, m), m)
        if group is not comparison.baseline
        else ''
        for m in comparison.metrics[1:]
      ]
    rows.append((group.name, cells))
  return rows


def _level(estimate: Estimate | None, metric: str) -> str:
  """A mean with the half width of its interval."""
  if estimate is None:
    return '–'
  scale, digits = scale_of(metric)
  text = words.fixed(scale * estimate.value, digits)
  return f'{text}{_half(estimate, scale, digits)}'


def _difference(estimate: Estimate | None, metric: str) -> str:
  """A difference with the half width of its interval."""
  if estimate is None:
    return '–'
  scale, digits = scale_of(metric)
  text = words.signed(scale * estimate.value, digits)
  return f'{text}{_half(estimate, scale, digits)}'


def _half(estimate: Estimate, scale: float, digits: int) -> str:
  if estimate.high is None:
    return ''
  half = words.fixed(scale * (estimate.high - estimate.value), digits)
  return f' ± {half}'


def _statistics(comparison: Comparison) -> str:
  """How many seeds there are, and what the intervals are."""
  counts = {len(group.runs) for group in comparison.groups}
  several = max(counts) > 1
  seeds = f'{max(counts)} seeds' if several else 'one seed'
  if len(counts) > 1:
    seeds = f'{min(counts)} to {max(counts)} seeds'
  text = f'Last evaluation, mean over {seeds}'
  if several:
    text += '; ± half width of the 95 % t interval over seeds'
  if not several:
    text += '; one seed has no interval'
  text += '. Entropy in nats per token.'
  short = [
    f'{group.name} with seed {seed}'
    for group in comparison.groups
    for seed, run in group.runs.items()
    if not run.finished
  ]
  return f'{text} Unfinished: {words.listing(short)}.' if short else text


def _headline(comparison: Comparison) -> str:
  """What the comparison shows, by the mean over samples."""
  metric, baseline = comparison.metrics[1], comparison.baseline
  others = comparison.differences(metric)
  if not others:
    level = baseline.level(metric)
    said = '–' if level is None else words.percent(level.value)
    return f'{baseline.name} ends at {metric} {said}.'
  clear = [(group, e) for group, e in others if e.sign]
  if clear:
    parts = [
      Markup('<b class="c{}">{}{} points</b> with {}').format(
        1 if estimate.sign > 0 else 2,
        words.signed(100 * estimate.value),
        _half(estimate, 100, 1),
        group.short,
      )
      for group, estimate in clear
    ]
    return Markup('{} against {}: {}.').format(
      metric, baseline.short, Markup(words.listing(parts))
    )
  if all(estimate.low is None for _, estimate in others):
    group, best = max(others, key=lambda other: abs(other[1].value))
    return Markup(
      '{} against {}: the largest difference is <b>{} points</b>, with {}. '
      '<small>One seed has no interval: no difference is judged.</small>'
    ).format(
      metric, baseline.short, words.signed(100 * best.value), group.short
    )
  return f'No configuration differs clearly from {baseline.short} in {metric}.'


def _finding(comparison: Comparison, metric: str) -> verdict.Finding:
  """Which configurations are clearly above or below the baseline."""
  scale, digits = scale_of(metric)
  sides: dict[int, list[str]] = {1: [], -1: [], 0: []}
  for group, estimate in comparison.differences(metric):
    change = words.signed(scale * estimate.value, digits)
    sides[estimate.sign].append(f'{group.short} ({change})')
  judged = any(
    estimate.low is not None for _, estimate in comparison.differences(metric)
  )
  labels = {
    1: 'clearly higher',
    -1: 'clearly lower',
    0: 'no clear difference',
  }
  parts = [
    Markup('<b>{}</b>: {}').format(labels[sign], words.listing(names))
    if judged
    else words.listing(names)
    for sign, names in sides.items()
    if names
  ]
  text = Markup('; ').join(parts)
  return verdict.Finding(metric, Markup('{}.').format(text) if parts else '')


def _state(run: Run) -> str:
  """How far a run got."""
  done, asked = run.iterations
  if not run.finished:
    return f'{done:,} of {asked:,} iterations'
  return f'{done:,} iterations'


def _gain(run: Run) -> str:
  """A run's own gain over its warm start, with its interval."""
  estimate = verdict.gain(run)
  if estimate is None:
    return '–'
  ends = [
    words.signed(100 * end)
    for end in (estimate.low, estimate.high)
    if end is not None
  ]
  change = words.signed(100 * estimate.value)
  return f'{change} ({ends[0]} to {ends[1]})' if ends else change
