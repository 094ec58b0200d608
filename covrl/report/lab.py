# SPDX-License-Identifier: Apache-2.0
"""The theory lab's page: every claim, its verdict and figures, and pictures.

Powers of ten along an x axis are drawn in logarithms and labelled as powers.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import markupsafe
import numpy as np
from etils import epath

from covrl.report import words
from covrl.report.axes import Axis, nice_ticks
from covrl.report.chart import Drawing, Figure, Series, draw
from covrl.report.page import render, replace
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
from covrl.theory.claims import FAILS, HOLDS, Check, Curve, Picture, Result
from covrl.theory.command import KINDS, Run

PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK, GREY)

# What a reader in a hurry should see: the consequences for practice.
HIGHLIGHTS = {
  'Thm V.1 (14)': 'The restoring force of an entropy bonus dies quadratically '
  'as a policy collapses, where the theorem has it dying linearly: a collapsed '
  'token is beyond its rescue.',
  'Thm VI.2, size of βδ': 'KL-Cov with the full KL is a second-order effect; '
  'with |log r|, as published, a first-order one.',
  'Remark VII.1': 'Annealing makes an entropy bonus as unbiased as it makes '
  'KL-Cov; the full KL to the rollout’s policy needs no annealing.',
  'Thm VII.4 (33)': 'An entropy bonus widens the stability margin in most cases '
  'of entropy collapse. What is printed as an upper bound is the lower one.',
  'VIII.D, guideline 2': 'Given the same policies and samples, a bonus of 0.3 '
  'loses less reward than every covariance method.',
  'Score of a token': 'Ranking tokens by c*, what each really does to entropy, '
  'saves more of it than ranking by the batch’s covariance.',
}


def write_lab_page(workdir: str | os.PathLike[str], run: Run) -> epath.Path:
  """Writes `report.html` about the claims that were run.

  Args:
    workdir: where; made if it is not there.
    run: the claims that were checked.

  Returns:
    Where the page is.
  """
  folder = epath.Path(workdir)
  folder.mkdir(parents=True, exist_ok=True)
  named = {result.claim.name: result for result in run.results}
  page = render(
    'lab.html.j2',
    counts=_counts(run.results),
    sections=_sections(run.results),
    highlights=[
      (named[name], text) for name, text in HIGHLIGHTS.items() if name in named
    ],
    facts=_facts(run),
    disagreeing=[r for r in run.results if not r.agrees],
    anchor=anchor,
    prose=prose,
    kind=kind_of,
    figure=figure_of,
    tolerance=tolerance_of,
    of=KINDS,
  )
  return replace(folder / 'report.html', page)


def anchor(name: str) -> str:
  """A name fit for a link.

  >>> anchor('Thm VII.4 (33)')
  'thm-vii-4-33'
  """
  return re.sub(r'\W+', '-', name.lower()).strip('-')


_BELOW = re.compile(r'((?<![A-Za-z.])[^\W_]\*?|[‖⟩)])_(\{[^}]*\}|[^\W_]+)')
_ABOVE = re.compile(r'\^(\{[^}]*\}|[−-]?\w+)')


def prose(text: str) -> markupsafe.Markup:
  """Text with subscripts, after symbols of one letter, and superscripts.

  >>> str(prose('π*_reg and z_{s,a}, but covrl.clip_cov'))
  'π*<sub>reg</sub> and z<sub>s,a</sub>, but covrl.clip_cov'
  >>> str(prose('e^{−Δ/α} ‖g‖²_F A^H'))
  'e<sup>−Δ/α</sup> ‖g‖²<sub>F</sub> A<sup>H</sup>'
  """
  escaped = str(markupsafe.escape(text))
  for pattern, mark in ((_BELOW, 'sub'), (_ABOVE, 'sup')):
    escaped = pattern.sub(
      lambda m, mark=mark: (
        f'{"".join(m.groups()[:-1])}<{mark}>{m.groups()[-1].strip("{}")}</{mark}>'
      ),
      escaped,
    )
  return markupsafe.Markup(escaped)


def kind_of(result: Result) -> str:
  """The CSS class of a verdict on the printed statement."""
  return {HOLDS: 'holds', FAILS: 'fails'}.get(result.measured, 'partly')


def figure_of(check: Check) -> str:
  """A measured figure as a reader wants it."""
  return _number(check.figure)


def tolerance_of(check: Check) -> str:
  """Where the figure must lie.

  >>> from covrl.theory.claims import below, near
  >>> tolerance_of(below('', 0, 1e-12)), tolerance_of(near('', 2, 2, 0.05))
  ('≤ 10⁻¹²', '2 ± 0.05')
  """
  if check.low == -math.inf:
    return f'≤ {_number(check.high)}'
  if check.high == math.inf:
    return f'≥ {_number(check.low)}'
  middle, half = (check.low + check.high) / 2, (check.high - check.low) / 2
  return f'{_number(middle)} ± {_number(half)}' if half else _number(middle)


def _number(value: float) -> str:
  """At most three digits, without zeros that say nothing."""
  if abs(value) >= 1e5:
    return f'{value:.2g}'
  text = words.number(value)
  if '.' in text and '×' not in text:
    text = text.rstrip('0').rstrip('.')
  return text.replace('1×10', '10') if text.startswith('1×') else text


def _counts(results: Sequence[Result]) -> dict[str, int]:
  kinds = [kind_of(result) for result in results]
  return {kind: kinds.count(kind) for kind in ('holds', 'partly', 'fails')}


def _facts(run: Run) -> list[str]:
  checks = sum(len(list(r.evidence.checks())) for r in run.results)
  return [
    f'{len(run.results)} claims',
    f'{checks} checks',
    'quick' if run.lab.quick else 'in full',
    f'seed {run.lab.seed}',
    words.duration(run.seconds),
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
    caption=prose(picture.caption),
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
