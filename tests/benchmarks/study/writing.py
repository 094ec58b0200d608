# SPDX-License-Identifier: Apache-2.0
"""Writes the study's results: tables in README.md, an HTML page and an SVG figure."""

from __future__ import annotations

import dataclasses
import json
import pathlib

from covrl.report.figures.chart import Figure
from covrl.report.formats import join_words
from covrl.report.pages.sections import (
  PageSection,
  panels_svg,
  write_sections,
)

from .claims import claims_section
from .driver import CHOSEN_FILE, Study
from .figures import SHOWN_VARIANTS, metric_figure
from .rates_and_sizes import rates_and_passes_section, sizes_section
from .results import all_sections, differences, finished_runs, verdict
from .tasks import TASKS

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parents[2] / 'configs' / 'results'
HEADING = '### '
NOT_RUN = 'not run yet.'
BEGIN, END = '<!-- study -->\n', '<!-- end of study -->\n'
PICTURE_PANELS = (
  ('changed_rule', 'new_rule', '%', 'D1: right by the rule from 20 on', 100.0),
  ('many_solutions', 'distinct', '', 'D2: distinct solutions in 64', 1.0),
  ('many_solutions', 'accuracy', '%', 'D2: right (pass@1)', 100.0),
)
"""Task, metric, unit, title and scale of the picture's panels."""


def write_results(study: Study) -> None:
  """Writes tables of the finished tasks, and page and figure of all of them.

  Sections of README.md without finished runs in the study's directory stay as
  they are.
  """
  write_readme(headlines(study), sections_of(study))
  write_chosen(study)
  if all_tasks_run(study):
    write_page(study, RESULTS)
  else:
    print(
      'the page is not written: every task must have a finished run of GRPO'
    )
  figures = picture(study)
  if figures:
    (RESULTS / 'entropy_control.svg').write_text(panels_svg(figures))


def write_chosen(study: Study) -> None:
  """Writes the values that tuning chose."""
  chosen_values = {name: study.chosen_values(name) for name in TASKS}
  CHOSEN_FILE.write_text(f'{json.dumps(chosen_values, indent=2)}\n')


def write_page(study: Study, folder: pathlib.Path) -> pathlib.Path:
  """Writes the page; returns its path."""
  page = folder / 'entropy_control.html'
  write_sections(
    page,
    title='When does entropy control matter?',
    facts=['0.02 million parameters', 'exact measurements', 'make study'],
    headlines=headlines(study),
    sections=sections_of(study),
  )
  return page


def sections_of(study: Study) -> list[PageSection]:
  """Sections of all tasks, then the claims of the paper if every task is run."""
  sections = [
    *all_sections(study),
    rates_and_passes_section(study),
    sizes_section(study),
  ]
  return (
    [*sections, claims_section(study)] if all_tasks_run(study) else sections
  )


def all_tasks_run(study: Study) -> bool:
  """Whether every task has a finished run of GRPO."""
  return all(finished_runs(study, name)['grpo'] for name in TASKS)


def write_readme(headlines: list[str], sections: list[PageSection]) -> None:
  """Replaces the sections that have a table between the comments of README.md."""
  file = HERE / 'README.md'
  head, rest = file.read_text().split(BEGIN)
  previous, tail = rest.split(END)
  file.write_text(
    head + BEGIN + merge_results(previous, headlines, sections) + END + tail
  )


def merge_results(
  previous: str, headlines: list[str], sections: list[PageSection]
) -> str:
  """The results with new headlines and sections in the place of older ones.

  Args:
    previous: the results so far: a list of headlines, then titled sections.
    headlines: new headlines; one of a task without runs replaces nothing.
    sections: new sections; one without a table replaces nothing.
  """
  headline_lines, *previous_sections = previous.split(HEADING)
  merged_sections = {
    text.partition('\n')[0]: text for text in previous_sections
  }
  lines = {_subject(line): line for line in headline_lines.splitlines() if line}
  for headline in headlines:
    line = f'- {headline}'
    if not headline.endswith(NOT_RUN) or _subject(line) not in lines:
      lines[_subject(line)] = line
  for section in sections:
    if section.rows or section.title not in merged_sections:
      table = section.table_markdown() if section.rows else ''
      paragraphs = [section.title, *section.texts, table]
      merged_sections[section.title] = '\n\n'.join(
        filter(None, paragraphs)
      ).strip()
  texts = [
    '\n'.join(lines.values()),
    *(text.strip() for text in merged_sections.values()),
  ]
  return f'\n\n{HEADING}'.join(texts) + '\n\n'


def _subject(line: str) -> str:
  """The task that a headline is about."""
  return line.partition(' (')[0].partition(': ')[0]


def headlines(study: Study) -> list[str]:
  """One sentence per task: the variants that win and lose against GRPO."""
  sentences = []
  for name in TASKS:
    task, runs_by_variant = study.task(name), finished_runs(study, name)
    seeds = len(runs_by_variant['grpo'])
    if not seeds:
      sentences.append(f'{task.title}: {NOT_RUN}')
      continue
    verdicts = {
      variant: verdict(task, differences(task, runs_by_variant, variant))
      for variant in runs_by_variant
      if variant != 'grpo'
    }
    winners, losers = (
      [variant for variant, outcome in verdicts.items() if outcome == kind]
      for kind in ('wins', 'loses')
    )
    if seeds == 1:
      sentence = 'no verdict, which takes two seeds'
    else:
      better, worse = (
        _comparison_clause(winners, 'better'),
        _comparison_clause(losers, 'worse'),
      )
      sentence = f'{better} than grpo; {worse}'
    sentences.append(
      f'{task.title} ({seeds} seed{"s" * (seeds > 1)} of grpo): {sentence}.'
    )
  return sentences


def _comparison_clause(variants: list[str], comparison: str) -> str:
  """Clause that names the variants that are better or worse."""
  if not variants:
    return f'no variant is {comparison}'
  return f'{join_words(variants)} {"are" if len(variants) > 1 else "is"} {comparison}'


def picture(study: Study) -> list[Figure]:
  """The panels of the picture, without bands; empty if a variant has no runs."""
  panels = []
  for name, metric, unit, title, scale in PICTURE_PANELS:
    runs_by_variant = finished_runs(study, name)
    if not all(runs_by_variant[variant] for variant in SHOWN_VARIANTS):
      return []
    shared_seeds = set.intersection(
      *(set(runs_by_variant[variant]) for variant in SHOWN_VARIANTS)
    )
    runs_by_variant = {
      variant: {
        seed: lines for seed, lines in runs.items() if seed in shared_seeds
      }
      for variant, runs in runs_by_variant.items()
    }
    figure = metric_figure(
      study.task(name), runs_by_variant, metric, unit, title, scale
    )
    panels.append(_without_bands(figure))
  return panels


def _without_bands(figure: Figure) -> Figure:
  """A figure with its curves alone."""
  series = [
    dataclasses.replace(curve, low=None, high=None) for curve in figure.series
  ]
  return dataclasses.replace(figure, series=series)
