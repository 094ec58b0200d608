# SPDX-License-Identifier: Apache-2.0
"""The lab's page: every claim, its verdict and figures, and the pictures.

Pictures are drawn and styled by `covrl.report`; powers of ten along an x axis
are drawn in logarithms and labelled as powers.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import jinja2
import markupsafe
import numpy as np
from etils import epath

from covrl.report import words
from covrl.report.axes import Axis, nice_ticks
from covrl.report.chart import Drawing, Figure, Series, draw
from covrl.report.page import replace
from covrl.report.series import (
  BLUE,
  GREEN,
  GREY,
  INK,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
)
from covrl.theory.claims import FAILS, HOLDS, Check, Curve, Lab, Picture, Result

PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK, GREY)

# What a reader in a hurry should see: the consequences for practice.
HIGHLIGHTS = (
  'Thm V.1 (14)',
  'Thm VI.2, size of βδ',
  'Thm VII.3 (31)',
  'Thm VII.4 (33)',
  'Score of a token',
)


def write_page(
  workdir: str | os.PathLike[str],
  results: Sequence[Result],
  lab: Lab,
  seconds: float,
) -> epath.Path:
  """Writes `report.html` about the claims that were run.

  Args:
    workdir: where; made if it is not there.
    results: in the paper's order.
    lab: that ran them.
    seconds: that took.

  Returns:
    Where the page is.
  """
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  page = (
    _environment()
    .get_template('theory.html.j2')
    .render(
      counts=_counts(results),
      sections=_sections(results),
      highlights=[r for r in results if r.claim.name in HIGHLIGHTS],
      facts=_facts(results, lab, seconds),
      disagreeing=[r for r in results if not r.agrees],
    )
  )
  return replace(folder / 'report.html', page)


def _environment() -> jinja2.Environment:
  """Templates of this room and of the reports'."""
  here = pathlib.Path(__file__).parent
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader([here, here.parent / 'report']),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters |= {
    'anchor': anchor,
    'figure': figure_of,
    'kind': kind_of,
    'prose': prose,
  }
  return environment


def anchor(name: str) -> str:
  """A name fit for a link.

  >>> anchor('Thm VII.4 (33)')
  'thm-vii-4-33'
  """
  return re.sub(r'\W+', '-', name.lower()).strip('-')


def prose(text: str) -> markupsafe.Markup:
  """Text with subscripts: symbols of one letter before an underscore.

  >>> str(prose('π*_reg and z_{s,a}, but covrl.clip_cov'))
  'π*<sub>reg</sub> and z<sub>s,a</sub>, but covrl.clip_cov'
  """
  pattern = r'(?<![A-Za-z.])([^\W_]\*?|‖)_(\{[^}]*\}|[^\W_]+)'
  escaped = str(markupsafe.escape(text))
  lowered = re.sub(
    pattern, lambda m: f'{m[1]}<sub>{m[2].strip("{}")}</sub>', escaped
  )
  return markupsafe.Markup(lowered)


def kind_of(result: Result) -> str:
  """The CSS class of a verdict on the printed statement."""
  return {HOLDS: 'holds', FAILS: 'fails'}.get(result.measured, 'partly')


def figure_of(check: Check) -> str:
  """A measured figure as a reader wants it."""
  size = abs(check.figure)
  return words.number(check.figure) if size < 1e5 else f'{check.figure:.2g}'


def _counts(results: Sequence[Result]) -> dict[str, int]:
  kinds = [kind_of(result) for result in results]
  return {kind: kinds.count(kind) for kind in ('holds', 'partly', 'fails')}


def _facts(results: Sequence[Result], lab: Lab, seconds: float) -> list[str]:
  checks = sum(len(r.evidence.printed) + len(r.evidence.holds) for r in results)
  return [
    f'{len(results)} claims',
    f'{checks} checks',
    'quick' if lab.quick else 'in full',
    f'seed {lab.seed}',
    words.duration(seconds),
  ]


def _sections(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Results by section, with the drawings and tables of each."""
  titles = dict.fromkeys(result.claim.section for result in results)
  sections = []
  for title in titles:
    chosen = [r for r in results if r.claim.section == title]
    pictures = [
      (f'{anchor(r.claim.name)}-{place}', picture)
      for r in chosen
      for place, picture in enumerate(r.evidence.pictures)
    ]
    sections.append(
      {
        'title': title,
        'results': chosen,
        'drawings': [drawing(picture, key) for key, picture in pictures],
        'tables': [table for r in chosen for table in r.evidence.tables],
      }
    )
  return sections


def drawing(picture: Picture, key: str) -> Drawing:
  """A picture, laid out."""
  figure = Figure(
    key=f'picture-{key}',
    title=picture.title,
    caption=picture.caption,
    y_label=picture.y_label,
    x_label=picture.x_label,
    series=[
      _series(curve, place, picture)
      for place, curve in enumerate(picture.curves)
    ],
    log=picture.log_y,
    zero=picture.bars,
  )
  drawn = draw(figure)
  hover = drawn.hover
  if picture.log_x:
    hover = {**hover, 'label': f'log₁₀ of {picture.x_label}:'}
  return dataclasses.replace(
    drawn, x=_labelled(drawn.x, picture.log_x), hover=hover
  )


def _series(curve: Curve, place: int, picture: Picture) -> Series:
  color = PALETTE[place % len(PALETTE)] if curve.color is None else curve.color
  if curve.dashed and curve.color is None:
    color = GREY
  kind = 'points' if curve.points else 'line'
  return Series(
    name=curve.name,
    x=np.log10(curve.x) if picture.log_x else curve.x,
    y=curve.y,
    color=color,
    kind='bars' if picture.bars else kind,
    dashed=curve.dashed,
  )


def _labelled(axis: Axis, log: bool) -> Axis:
  """An x axis with ticks at round numbers, or at powers of ten."""
  if log:
    whole = np.arange(np.ceil(axis.low - 1e-9), np.floor(axis.high + 1e-9) + 1)
    names = [_power(round(exponent)) for exponent in whole]
    return _ticked(axis, whole, names)
  ticks = nice_ticks(axis.low, axis.high)
  step = float(np.diff(ticks).min()) if ticks.size > 1 else 1.0
  digits = max(0, -int(np.floor(np.log10(step) + 1e-9)))
  digits += not np.isclose(step * 10**digits, round(step * 10**digits))
  return _ticked(axis, ticks, [words.fixed(tick, digits) for tick in ticks])


def _power(exponent: int) -> str:
  small = 0 <= exponent <= 4
  return f'{10**exponent:,}' if small else words.power(exponent)


def _ticked(axis: Axis, ticks: np.ndarray, names: list[str]) -> Axis:
  pixels = axis.place(np.asarray(ticks, float))
  pairs = zip(pixels, names, strict=True)
  return dataclasses.replace(axis, ticks=[(float(p), n) for p, n in pairs])
