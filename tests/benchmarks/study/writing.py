# SPDX-License-Identifier: Apache-2.0
"""Writes the results: tables in README.md, a page and a picture."""

from __future__ import annotations

import dataclasses
import pathlib

from covrl.report.chart import Figure
from covrl.report.sections_page import (
  PageSection,
  panels_svg,
  write_sections,
)

from .claims import claims_section
from .driver import Study
from .figures import SHOWN, metric_figure
from .pushed import pushed_section, sizes_section
from .results import all_sections, differences, finished, verdict
from .tasks import TASKS

HERE = pathlib.Path(__file__).parent
RESULTS = HERE.parents[2] / 'configs' / 'results'
BEGIN, END = '<!-- study -->\n', '<!-- end of study -->\n'
PICTURE = (
  ('changed_rule', 'new_rule', '%', 'D1: right by the rule from 20 on', 100.0),
  ('many_solutions', 'distinct', '', 'D2: distinct solutions in 64', 1.0),
  ('many_solutions', 'accuracy', '%', 'D2: right (pass@1)', 100.0),
)
"""Task, metric, unit, title and scale of the picture's panels."""


def write_results(study: Study) -> None:
  """Writes what is finished: page, tables and picture."""
  write_page(study, RESULTS)
  write_readme(headline(study), sections_of(study))
  figures = picture(study)
  if figures:
    (RESULTS / 'entropy_control.svg').write_text(panels_svg(figures))


def write_page(study: Study, folder: pathlib.Path) -> pathlib.Path:
  """Writes the page; returns its path."""
  page = folder / 'entropy_control.html'
  write_sections(
    page,
    title='When does entropy control matter?',
    facts=['0.02 million parameters', 'exact measurements', 'make study'],
    headlines=headline(study),
    sections=sections_of(study),
  )
  return page


def sections_of(study: Study) -> list[PageSection]:
  """Sections of all tasks, then the claims of the paper."""
  sections = [*all_sections(study), pushed_section(study), sizes_section(study)]
  if any(finished(study, name)['grpo'] for name in TASKS):
    sections.append(claims_section(study))
  return sections


def write_readme(headlines: list[str], sections: list[PageSection]) -> None:
  """Replaces the tables between the marks of README.md."""
  parts = [*(f'- {sentence}\n' for sentence in headlines), '\n']
  for section in sections:
    parts += [f'### {section.title}\n\n', *(f'{t}\n\n' for t in section.texts)]
    if section.rows:
      parts.append(f'{section.markdown()}\n')
  file = HERE / 'README.md'
  head, rest = file.read_text().split(BEGIN)
  file.write_text(head + BEGIN + ''.join(parts) + END + rest.split(END)[1])


def headline(study: Study) -> list[str]:
  """One sentence per task: the arms that win and lose against GRPO."""
  sentences = []
  for name in TASKS:
    task, found = study.task(name), finished(study, name)
    seeds = len(found['grpo'])
    if not seeds:
      sentences.append(f'{task.title}: not run yet.')
      continue
    verdicts = {
      arm: verdict(task, differences(task, found, arm))
      for arm in found
      if arm != 'grpo'
    }
    winners, losers = (
      [arm for arm, each in verdicts.items() if each == kind]
      for kind in ('wins', 'loses')
    )
    sentences.append(
      f'{task.title} ({seeds} seed{"s" * (seeds > 1)} of grpo): better than grpo are'
      f' {_names(winners)}; worse are {_names(losers)}.'
    )
  return sentences


def _names(arms: list[str]) -> str:
  return ', '.join(arms) or 'none'


def picture(study: Study) -> list[Figure]:
  """The panels of the picture, without bands; empty while an arm lacks."""
  panels = []
  for name, metric, unit, title, scale in PICTURE:
    found = finished(study, name)
    if not all(found[arm] for arm in SHOWN):
      return []
    shared = set.intersection(*(set(found[arm]) for arm in SHOWN))
    found = {
      arm: {seed: lines for seed, lines in runs.items() if seed in shared}
      for arm, runs in found.items()
    }
    figure = metric_figure(study.task(name), found, metric, unit, title, scale)
    panels.append(_without_bands(figure))
  return panels


def _without_bands(figure: Figure) -> Figure:
  """A figure with its curves alone."""
  series = [
    dataclasses.replace(each, low=None, high=None) for each in figure.series
  ]
  return dataclasses.replace(figure, series=series)
