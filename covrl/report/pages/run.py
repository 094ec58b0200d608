# SPDX-License-Identifier: Apache-2.0
"""Report of one run as a single HTML file that works offline.

`templates/run.html.j2` is the page, `style.css` its style, `hover.js` shows
tooltips, and `macros.html.j2` draws the figures.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from etils import epath

from covrl import storage
from covrl.report import examples, formats, samples
from covrl.report.advice import advice_text
from covrl.report.evaluation_table import evaluation_table
from covrl.report.figures import health as health_figures
from covrl.report.figures import run as run_figures
from covrl.report.inputs.run_data import RunData, load_run
from covrl.report.inputs.run_json import flatten_config, short_text
from covrl.report.pages.rendering import check_output_path, render, write_page
from covrl.report.predictors import predictors
from covrl.report.summary import Finding, Summary, health_warnings, summarize

# Maximum number of characters of the recipe's source.
_MAX_SOURCE_CHARACTERS = 100_000
# Maximum number of rows of the table of evaluations: the first and the last ones.
_MAX_EVALUATION_ROWS = 200


def write_report(
  workdir: epath.PathLike, output: epath.PathLike | None = None
) -> epath.Path:
  """Writes the report of a run.

  Args:
    workdir: the run directory; the run may be unfinished.
    output: path of the page; `report.html` in the run directory by default.

  Returns:
    Path of the page.

  Raises:
    FileNotFoundError: the path is not a run directory.
    ValueError: `output` is a file that holds something else.
  """
  run = load_run(workdir)
  if output is not None:
    check_output_path(storage.as_path(output))
  has_suites = any(suite for suite, _ in run.latest_results)
  page = render(
    'run.html.j2',
    name=run.path.name,
    facts=_facts(run),
    description=run.task_description,
    examples=examples.example_table(run),
    warnings=[*run.notices, *health_warnings(run)],
    summary=_summary(run),
    main=run_figures.main_figures(run),
    health=health_figures.health_figures(run),
    warm_start=run_figures.warm_start_figures(run),
    times=health_figures.phase_times(run),
    predictors=_predictor_rows(run),
    accuracies=run.accuracies,
    evaluations=_evaluation_rows(run),
    suites=evaluation_table([(run.path.name, [run])]) if has_suites else None,
    tables=samples.sample_tables(run),
    settings=flatten_config(run.config),
    overrides=_texts(run.settings.get('overrides'), 200),
    source=short_text(run.settings.get('source') or '', _MAX_SOURCE_CHARACTERS),
    identity=short_text(run.settings.get('identity') or ''),
    unreadable=run.unreadable.sentences(),
  )
  file = run.path / 'report.html' if output is None else storage.as_path(output)
  return write_page(file, page)


def _summary(run: RunData) -> Summary:
  """The summary, with a recommendation for the next run where there is one."""
  summary = summarize(run)
  text = advice_text(run)
  if not text:
    return summary
  advice = Finding('Advice for the next run', text)
  return dataclasses.replace(summary, findings=[*summary.findings, advice])


def _facts(run: RunData) -> list[str]:
  """Facts below the title of the page."""
  finished, planned = run.finished_iterations, run.planned_iterations
  facts = [run.name] if run.name != run.path.name else []
  for name, text_format in (
    ('entropy.method', 'entropy control: {}'),
    ('seed', 'seed {}'),
  ):
    if (value := run.config_value(name)) is not None:
      facts.append(text_format.format(short_text(value, 80)))
  if not run.finished:
    facts.append(f'{finished:,} of {planned:,} iterations, unfinished')
  else:
    facts.append(f'{finished:,} iterations')
  seconds = run.train.column('seconds')
  total_seconds = float(np.nansum(seconds))
  if total_seconds > 0:
    facts.append(f'{formats.duration(total_seconds)} of training')
  return facts


def _evaluation_rows(run: RunData) -> list[list[str]]:
  """Rows of evaluations: iteration, accuracies ± half width, entropy."""
  rows = []
  count, half = len(run.evals), _MAX_EVALUATION_ROWS // 2
  for index in range(count):
    if half <= index < count - half:
      if index == half:
        rows.append(
          [f'{count - 2 * half:,} more', *(1 + len(run.accuracies)) * ['']]
        )
      continue
    iteration = run.evals.value_at(index, 'iteration')
    row = ['–' if iteration is None else f'{iteration:,.0f}']
    for metric in run.accuracies:
      value = run.evals.value_at(index, metric)
      error = run.evals.value_at(index, f'{metric}_stderr')
      text = '–' if value is None else formats.fixed(100 * value, 1)
      row.append(
        text if error is None else f'{text} ± {formats.fixed(196 * error, 1)}'
      )
    entropy = run.evals.value_at(index, 'entropy')
    row.append('–' if entropy is None else formats.number(entropy))
    rows.append(row)
  return rows


def _predictor_rows(run: RunData) -> list[list[str]]:
  """Rows of predictors: name, correlation, slope, measurements."""
  return [
    [
      predictor.name,
      formats.fixed(predictor.correlation, 2),
      formats.number(predictor.slope),
      f'{predictor.count:,}',
    ]
    for predictor in predictors(run)
  ]


def _texts(values: object, limit: int) -> list[str]:
  """The first items of a list as texts; empty if the value is not a list."""
  items = values if isinstance(values, list) else []
  return [short_text(item, limit) for item in items[:limit]]
