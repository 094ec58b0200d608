# SPDX-License-Identifier: Apache-2.0
"""One run's report: a single HTML file that opens anywhere, offline.

`report.html.j2` holds the page, `style.css` its looks, `hover.js` the numbers
under the pointer, `parts.html.j2` the figures; see `chart` for why the
pictures are drawn here. The file is replaced in one move, so that a reader who
reloads during training never sees half a page.
"""

from __future__ import annotations

import pathlib
from typing import Any

import jinja2
from etils import epath

from covrl import storage
from covrl.report import figures, machinery, samples, words
from covrl.report.compare import flat
from covrl.report.predictors import predictors
from covrl.report.run import Run, load_run
from covrl.report.sets import set_table
from covrl.report.verdict import judge


def write_report(workdir: epath.PathLike) -> epath.Path:
  """Writes `report.html` into a run directory, whatever it holds so far.

  Args:
    workdir: the run directory; read, and written to.

  Returns:
    Where the page is.

  Raises:
    FileNotFoundError: if there is no such directory.
  """
  run = load_run(workdir)
  page = render(
    'report.html.j2',
    name=run.path.name,
    facts=_facts(run),
    verdict=judge(run),
    main=figures.main_figures(run),
    health=machinery.health_figures(run),
    warm_start=figures.warm_start_figures(run),
    times=machinery.phase_times(run),
    predictors=_predictors(run),
    accuracies=run.accuracies,
    evaluations=_evaluations(run),
    sets=set_table([(run.path.name, [run])]) if _has_sets(run) else None,
    tables=samples.sample_tables(run),
    settings=flat(run.config),
    overrides=[str(item) for item in run.settings.get('overrides') or ()],
    source=str(run.settings.get('source') or ''),
    identity=str(run.settings.get('identity') or ''),
    skipped=run.skipped,
  )
  return replace(run.path / 'report.html', page)


def render(template: str, **values: Any) -> str:
  """Fills one of this folder's templates, everything escaped."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  return environment.get_template(template).render(values)


def replace(path: epath.Path, content: str) -> epath.Path:
  """Puts a file in place, whole."""
  storage.write_atomically(path, content)
  return path


def _facts(run: Run) -> list[str]:
  """The line under the page's name."""
  done, asked = run.iterations
  facts = [run.name] if run.name != run.path.name else []
  if run.option('entropy.method') is not None:
    facts.append(f'entropy control: {run.option("entropy.method")}')
  if run.option('seed') is not None:
    facts.append(f'seed {run.option("seed")}')
  if not run.finished:
    facts.append(f'{done:,} of {asked:,} iterations, unfinished')
  else:
    facts.append(f'{done:,} iterations')
  seconds = run.train.numbers('seconds')
  total = float(seconds[seconds == seconds].sum())
  if total:
    facts.append(f'{words.duration(total)} of training')
  return facts


def _has_sets(run: Run) -> bool:
  """Whether there are results of named evaluation sets."""
  return any(suite for suite, _ in run.answered)


def _evaluations(run: Run) -> list[list[str]]:
  """The table of evaluations: iteration, accuracies ± error, entropy."""
  rows = []
  for index in range(len(run.evals)):
    iteration = run.evals.at(index, 'iteration')
    row = ['–' if iteration is None else f'{iteration:,.0f}']
    for metric in run.accuracies:
      value = run.evals.at(index, metric)
      error = run.evals.at(index, f'{metric}_stderr')
      text = '–' if value is None else words.fixed(100 * value, 1)
      row.append(text if error is None else f'{text} ± {196 * error:.1f}')
    entropy = run.evals.at(index, 'entropy')
    row.append('–' if entropy is None else words.number(entropy))
    rows.append(row)
  return rows


def _predictors(run: Run) -> list[list[str]]:
  """The table of predictors: name, correlation, slope, measurements."""
  return [
    [
      each.name,
      words.fixed(each.correlation, 2),
      words.number(each.slope),
      f'{each.count:,}',
    ]
    for each in predictors(run)
  ]
