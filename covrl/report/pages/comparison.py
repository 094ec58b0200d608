# SPDX-License-Identifier: Apache-2.0
"""Comparison of several runs: an HTML page, a Markdown table, an SVG figure.

`comparison` computes the statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from etils import epath
from markupsafe import Markup

from covrl import storage
from covrl.evaluation.intervals import Estimate
from covrl.report import formats
from covrl.report.comparison import (
  Comparison,
  differing_fields,
  load_comparison,
)
from covrl.report.evaluation_table import evaluation_table
from covrl.report.figures.comparison import (
  comparison_figure,
  comparison_figures,
  difference_plot,
  display_scale,
  legend_entries,
)
from covrl.report.figures.series import lay_out_all
from covrl.report.inputs.run_data import RunData
from covrl.report.pages.rendering import check_output_path, render, write_page
from covrl.report.reward_law_table import (
  REWARD_LAW_COLUMNS,
  reward_law_rows,
  runs_without_law,
)
from covrl.report.summary import (
  Finding,
  accuracy_gain,
  gain_text,
  health_warnings,
)

# Warnings of a run on a comparison, at most.
_MAX_WARNINGS = 3


def write_comparison(
  workdirs: Sequence[epath.PathLike], output: epath.PathLike
) -> epath.Path:
  """Writes a page that compares several runs.

  Args:
    workdirs: run directories; runs of the same configuration are its seeds, and
      the first configuration is the baseline.
    output: path of the page.

  Returns:
    Path of the page.

  Raises:
    ValueError: two runs have the same configuration and seed, or `output` is a
      file that holds something else.
    FileNotFoundError: a directory does not exist.
  """
  comparison = load_comparison(workdirs)
  check_output_path(storage.as_path(output))
  page = render(
    'comparison.html.j2',
    comparison=comparison,
    headline=_headline(comparison),
    findings=[
      Finding(name, text)
      for name in comparison.metrics
      if (text := _differences(comparison, name))
    ],
    table_note=_table_note(comparison),
    rows=_rows(comparison),
    figures=comparison_figures(comparison),
    difference_plots=[
      plot
      for name in comparison.metrics
      if (plot := difference_plot(comparison, name)) is not None
    ],
    differing_fields=[
      (group.name, differing_fields(group, comparison.baseline))
      for group in comparison.groups[1:]
    ],
    law_columns=REWARD_LAW_COLUMNS,
    law_rows=reward_law_rows(comparison),
    runs_without_law=runs_without_law(comparison),
    suites=evaluation_table(
      [
        (group.short_name, list(group.runs.values()))
        for group in comparison.groups
      ]
    ),
    runs=[
      (
        group.name,
        seed,
        run.path.name,
        _progress_text(run),
        _gain_text(run, comparison.main_accuracy),
      )
      for group in comparison.groups
      for seed, run in group.runs.items()
    ],
    unreadable=[
      f'{run.path.name}: {sentence}'
      for group in comparison.groups
      for run in group.runs.values()
      for sentence in (*_warnings(run), *run.unreadable.sentences())
    ],
  )
  return write_page(storage.as_path(output), page)


def comparison_table(workdirs: Sequence[epath.PathLike]) -> str:
  """Markdown table of the last evaluations of several runs.

  Args:
    workdirs: run directories, see `write_comparison`.

  Returns:
    The table, followed by a line that explains its intervals.
  """
  comparison = load_comparison(workdirs)
  titles = _titles(comparison)
  lines = [
    f'| {" | ".join(["configuration", *titles])} |',
    f'|---|{"---:|" * len(titles)}',
  ]
  for name, cells in _rows(comparison):
    lines.append(f'| {" | ".join([name, *cells])} |')
  note = _table_note(comparison)
  if len(comparison.groups) > 1:
    note += f' Δ: difference to {comparison.baseline.name}, paired by seed.'
  return '\n'.join([*lines, '', note, ''])


def comparison_svg(workdirs: Sequence[epath.PathLike]) -> str:
  """Standalone SVG figure of entropy and mean accuracy over iterations.

  Args:
    workdirs: run directories, see `write_comparison`.

  Raises:
    ValueError: the runs have neither.
  """
  comparison = load_comparison(workdirs)
  metric = comparison.main_accuracy
  panels = lay_out_all(
    [comparison_figure(comparison, field) for field in ('entropy', metric)],
    (430, 290),
  )
  if not panels:
    raise ValueError(
      'one of the runs must have an entropy or accuracy, got neither'
    )
  return render(
    'comparison.svg.j2',
    panels=panels,
    pitch=440,  # distance between the left edges of two panels
    legend=legend_entries(
      [group.short_name for group in comparison.groups], 860
    ),
  )


def _titles(comparison: Comparison) -> list[str]:
  """Column titles of the table."""
  titles = [
    name if name == 'entropy' else f'{name}, %' for name in comparison.metrics
  ]
  if len(comparison.groups) == 1:
    return titles
  return [*titles, *(f'Δ {name}' for name in comparison.metrics_of_differences)]


def _rows(comparison: Comparison) -> list[tuple[str, list[str]]]:
  """Rows of the table: the warm start, then each configuration."""
  metrics, baseline = comparison.metrics, comparison.baseline
  warm_start_cells = [_cell(comparison.first_evaluation(m), m) for m in metrics]
  blanks = [''] * (len(_titles(comparison)) - len(warm_start_cells))
  rows = [('warm start', warm_start_cells + blanks)]
  for group in comparison.groups:
    cells = [_cell(group.mean(m), m) for m in metrics]
    if group is baseline:
      cells += blanks
    elif blanks:
      cells += [
        _cell(group.difference(baseline, m), m, formats.signed)
        for m in comparison.metrics_of_differences
      ]
    rows.append((group.name, cells))
  return rows


def _cell(
  estimate: Estimate | None,
  metric: str,
  number_format: Callable[[float, int], str] = formats.fixed,
) -> str:
  """An estimate with half the width of its interval, or with its values."""
  if estimate is None:
    return '–'
  scale, digits = display_scale(metric)
  text = number_format(scale * estimate.value, digits)
  if estimate.values:
    values = (number_format(scale * x, digits) for x in estimate.values)
    return f'{text} ({", ".join(values)})'
  half = formats.half_width(estimate, scale=scale, digits=digits)
  return f'{text}{half}'


def _table_note(comparison: Comparison) -> str:
  """Explanation of the table: seeds, intervals, unfinished runs, recipes."""
  counts = {len(group.runs) for group in comparison.groups}
  fewest, most = min(counts), max(counts)
  seeds = f'{most} seeds' if fewest == most else f'{fewest} to {most} seeds'
  text = f'Last evaluation, mean over {"one seed" if most == 1 else seeds}; '
  if most == 1:
    text += 'one seed has no interval'
  else:
    parts = ['± half width of the 95 % t interval over seeds'] * (most > 2)
    if 2 in counts:
      parts.append(
        'in parentheses the values of two seeds, without an interval'
      )
    text += '; '.join(parts)
  text += '. Entropy in nats per token.'
  unfinished = [
    f'{group.name} with seed {seed}'
    for group in comparison.groups
    for seed, run in group.runs.items()
    if not run.finished
  ]
  if unfinished:
    text += f' Unfinished: {formats.join_words(unfinished)}.'
  for group in comparison.groups:
    if len(recipes := group.seeds_by_recipe) > 1:
      parts = [formats.join_words(list(map(str, seeds))) for seeds in recipes]
      text += (
        f' Other recipe files: the seeds {" and those ".join(parts)} of'
        f' {group.name}, which may have trained differently.'
      )
  return text


def _headline(comparison: Comparison) -> str:
  """Differences in the main accuracy, or the mean of a single group."""
  metric, baseline = comparison.main_accuracy, comparison.baseline
  if metric not in comparison.metrics:
    return 'No accuracy yet.'
  if not comparison.differences(metric):
    return f'{baseline.name}: {metric} {_cell(baseline.mean(metric), metric)}.'
  return Markup('{} against {}, in percentage points: {}').format(
    metric, baseline.short_name, _differences(comparison, metric)
  )


def _differences(comparison: Comparison, metric: str) -> str:
  """Difference of each configuration from the baseline.

  Bold if the interval excludes 0, in colour by the sign.
  """
  parts = []
  for group, estimate in comparison.differences(metric):
    change = _cell(estimate, metric, formats.signed)
    if estimate.sign:
      color = 1 if estimate.sign > 0 else 2
      change = Markup('<b class="c{}">{}</b>').format(color, change)
    parts.append(Markup('{} {}').format(group.short_name, change))
  return Markup('{}.').format(Markup(', ').join(parts)) if parts else ''


def _warnings(run: RunData) -> list[str]:
  """The first warnings of a run's own page, and the number of the others."""
  texts = [*run.notices, *health_warnings(run)]
  shown, num_others = texts[:_MAX_WARNINGS], len(texts) - _MAX_WARNINGS
  if num_others > 0:
    shown.append(f'{num_others:,} more warnings are on its own page.')
  return shown


def _progress_text(run: RunData) -> str:
  """Number of finished iterations, and of planned ones if some are left."""
  if not run.finished:
    return (
      f'{run.finished_iterations:,} of {run.planned_iterations:,} iterations'
    )
  return f'{run.finished_iterations:,} iterations'


def _gain_text(run: RunData, metric: str) -> str:
  """Change of an accuracy since the first evaluation."""
  gain = accuracy_gain(run, metric)
  return '–' if gain is None else gain_text(gain)
