# SPDX-License-Identifier: Apache-2.0
"""Report of one run as a single HTML file that works offline.

`templates/run.html.j2` is the page, `style.css` its style, `hover.js` shows
tooltips, and `macros.html.j2` draws the figures.
"""

from __future__ import annotations

from etils import epath

from covrl.report import formats, health_figures, run_figures, samples
from covrl.report.comparison import flatten_config
from covrl.report.evaluation_table import evaluation_table
from covrl.report.predictors import predictors
from covrl.report.rendering import render, write_page
from covrl.report.run_data import RunData, load_run
from covrl.report.summary import summarize


def write_report(workdir: epath.PathLike) -> epath.Path:
  """Writes `report.html` into a run directory.

  Args:
    workdir: the run directory; the run may be unfinished.

  Returns:
    Path of the page.

  Raises:
    FileNotFoundError: the directory does not exist.
  """
  run = load_run(workdir)
  has_suites = any(suite for suite, _ in run.latest_results)
  page = render(
    'run.html.j2',
    name=run.path.name,
    facts=_facts(run),
    summary=summarize(run),
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
    overrides=[str(item) for item in run.settings.get('overrides') or ()],
    source=str(run.settings.get('source') or ''),
    identity=str(run.settings.get('identity') or ''),
    skipped=run.skipped,
  )
  return write_page(run.path / 'report.html', page)


def _facts(run: RunData) -> list[str]:
  """Facts below the title of the page."""
  done, total_iterations = run.iterations
  facts = [run.name] if run.name != run.path.name else []
  if run.config_value('entropy.method') is not None:
    facts.append(f'entropy control: {run.config_value("entropy.method")}')
  if run.config_value('seed') is not None:
    facts.append(f'seed {run.config_value("seed")}')
  if not run.finished:
    facts.append(f'{done:,} of {total_iterations:,} iterations, unfinished')
  else:
    facts.append(f'{done:,} iterations')
  seconds = run.train.column('seconds')
  total = float(seconds[seconds == seconds].sum())
  if total:
    facts.append(f'{formats.duration(total)} of training')
  return facts


def _evaluation_rows(run: RunData) -> list[list[str]]:
  """Rows of evaluations: iteration, accuracies ± half width, entropy."""
  rows = []
  for index in range(len(run.evals)):
    iteration = run.evals.value_at(index, 'iteration')
    row = ['–' if iteration is None else f'{iteration:,.0f}']
    for metric in run.accuracies:
      value = run.evals.value_at(index, metric)
      error = run.evals.value_at(index, f'{metric}_stderr')
      text = '–' if value is None else formats.fixed(100 * value, 1)
      row.append(text if error is None else f'{text} ± {196 * error:.1f}')
    entropy = run.evals.value_at(index, 'entropy')
    row.append('–' if entropy is None else formats.number(entropy))
    rows.append(row)
  return rows


def _predictor_rows(run: RunData) -> list[list[str]]:
  """Rows of predictors: name, correlation, slope, measurements."""
  return [
    [
      each.name,
      formats.fixed(each.correlation, 2),
      formats.number(each.slope),
      f'{each.count:,}',
    ]
    for each in predictors(run)
  ]
