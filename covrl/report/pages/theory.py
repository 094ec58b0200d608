# SPDX-License-Identifier: Apache-2.0
"""HTML page of the theory claims: verdicts, measured values and plots."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from typing import Any

import markupsafe
import numpy as np
from etils import epath

from covrl import storage
from covrl.report import formats
from covrl.report.figures.chart import Figure, FigureLayout, Series, lay_out
from covrl.report.figures.series import (
  BLUE,
  GREEN,
  GREY,
  INK,
  ORANGE,
  PURPLE,
  SKY,
  VERMILION,
)
from covrl.report.pages.rendering import render, write_page
from covrl.theory.claim import FAILS, HOLDS, Result
from covrl.theory.evidence import Check, Curve, Plot
from covrl.theory.runner import GROUP_PREFIXES, CheckedClaims

PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK, GREY)

HIGHLIGHTS = {
  'Thm V.1 (14)': 'As a policy collapses, the effect of an entropy bonus '
  'vanishes quadratically and not linearly as in the theorem, so it cannot '
  'restore the entropy of a collapsed token.',
  'Thm VI.2, size of βδ': 'The full KL in KL-Cov is a second-order effect; '
  '|log r|, the published penalty, is a first-order effect.',
  'Remark VII.1': 'Annealing makes an entropy bonus as unbiased as KL-Cov; the '
  'full KL to the policy of the rollout needs no annealing.',
  'Thm VII.4 (33)': 'An entropy bonus widens the stability margin in most cases '
  'of entropy collapse. The printed upper bound is the lower bound.',
  'VIII.D, guideline 2': 'With the same policies and samples, a bonus of 0.3 has '
  'a smaller reward gap than every covariance method.',
  'Score of a token': 'Ranking tokens by c*, their exact effect on entropy, '
  'saves more entropy than ranking by the covariance in the batch.',
}
"""Consequences for practice, by claim; listed at the top of the page."""


def write_theory_page(
  workdir: str | os.PathLike[str], checked: CheckedClaims
) -> epath.Path:
  """Writes `report.html` with the results of checked claims.

  Args:
    workdir: directory of the page; created if it does not exist.
    checked: the results.

  Returns:
    Path of the page.
  """
  folder = storage.as_path(workdir)
  by_name = {result.claim.name: result for result in checked.results}
  page = render(
    'theory.html.j2',
    counts=_counts(checked.results),
    sections=_sections(checked.results),
    highlights=[
      (by_name[name], text)
      for name, text in HIGHLIGHTS.items()
      if name in by_name
    ],
    facts=_facts(checked),
    disagreeing=[r for r in checked.results if not r.agrees],
    anchor=anchor,
    mathematics=format_math,
    verdict_class=verdict_class,
    value=lambda check: _number(check.value),
    tolerance=format_tolerance,
    prefixes=GROUP_PREFIXES,
  )
  return write_page(folder / 'report.html', page)


def anchor(name: str) -> str:
  """HTML anchor of a claim.

  >>> anchor('Thm VII.4 (33)')
  'thm-vii-4-33'
  """
  return re.sub(r'\W+', '-', name.lower()).strip('-')


_SUBSCRIPT = re.compile(r'((?<![A-Za-z.])[^\W_]\*?|[‖⟩)])_(\{[^}]*\}|[^\W_]+)')
_SUPERSCRIPT = re.compile(r'\^(\{[^}]*\}|[−-]?\w+)')


def format_math(text: str) -> markupsafe.Markup:
  """Marks up subscripts, after symbols of one letter, and superscripts.

  >>> str(format_math('π*_reg and z_{s,a}, but covrl.clip_cov'))
  'π*<sub>reg</sub> and z<sub>s,a</sub>, but covrl.clip_cov'
  >>> str(format_math('e^{−Δ/α} ‖g‖²_F A^H'))
  'e<sup>−Δ/α</sup> ‖g‖²<sub>F</sub> A<sup>H</sup>'
  """
  escaped = str(markupsafe.escape(text))
  for pattern, tag in ((_SUBSCRIPT, 'sub'), (_SUPERSCRIPT, 'sup')):
    escaped = pattern.sub(
      lambda m, tag=tag: (
        f'{"".join(m.groups()[:-1])}<{tag}>{m.groups()[-1].strip("{}")}</{tag}>'
      ),
      escaped,
    )
  return markupsafe.Markup(escaped)


def verdict_class(result: Result) -> str:
  """CSS class of the verdict on the printed statement."""
  classes = {HOLDS: 'holds', FAILS: 'fails'}
  return classes.get(result.measured_verdict, 'conditional')


def format_tolerance(check: Check) -> str:
  """The interval in which a value must lie, with powers of ten.

  >>> from covrl.theory.evidence import at_most, close_to
  >>> format_tolerance(at_most('', 0, 1e-12))
  '≤ 10⁻¹²'
  >>> format_tolerance(close_to('', 2, 2, 0.05))
  '2 ± 0.05'
  """
  if check.low == -math.inf:
    return f'≤ {_number(check.high)}'
  if check.high == math.inf:
    return f'≥ {_number(check.low)}'
  middle, half = (check.low + check.high) / 2, (check.high - check.low) / 2
  return f'{_number(middle)} ± {_number(half)}' if half else _number(middle)


def _number(value: float) -> str:
  """At most three significant digits, without trailing zeros."""
  if abs(value) >= 1e5:
    return f'{value:.2g}'
  text = formats.number(value)
  if '.' in text and '×' not in text:
    text = text.rstrip('0').rstrip('.')
  return text.replace('1×10', '10') if text.startswith('1×') else text


def _counts(results: Sequence[Result]) -> dict[str, int]:
  """Number of claims by the CSS class of their verdict."""
  classes = [verdict_class(result) for result in results]
  return {
    name: classes.count(name) for name in ('holds', 'conditional', 'fails')
  }


def _facts(checked: CheckedClaims) -> list[str]:
  """Facts below the title of the page."""
  checks = sum(len(list(r.evidence.checks())) for r in checked.results)
  return [
    f'{len(checked.results)} claims',
    f'{checks} checks',
    'quick run' if checked.settings.quick else 'full run',
    f'seed {checked.settings.seed}',
    formats.duration(checked.seconds),
  ]


def _sections(results: Sequence[Result]) -> list[dict[str, Any]]:
  """Results, figures and tables of each section."""
  titles = dict.fromkeys(result.claim.section for result in results)
  sections = []
  for title in titles:
    section_results = [r for r in results if r.claim.section == title]
    sections.append(
      {
        'title': title,
        'results': section_results,
        'figures': [
          lay_out_plot(plot, f'{anchor(r.claim.name)}-{index}')
          for r in section_results
          for index, plot in enumerate(r.evidence.plots)
        ],
        'tables': [
          table for r in section_results for table in r.evidence.tables
        ],
      }
    )
  return sections


def lay_out_plot(plot: Plot, key: str) -> FigureLayout:
  """Lays out the plot of a claim.

  Args:
    plot: the plot.
    key: identifier, unique on the page.
  """
  return lay_out(
    Figure(
      key=f'plot-{key}',
      title=plot.title,
      caption=format_math(plot.caption),
      y_label=plot.y_label,
      x_label=plot.x_label,
      x_ticks='exponent' if plot.log_x else 'linear',
      series=[
        _series(curve, index, plot) for index, curve in enumerate(plot.curves)
      ],
      log=plot.log_y,
      includes_zero=plot.bars,
    )
  )


def _series(curve: Curve, index: int, plot: Plot) -> Series:
  """Series of a curve, with log₁₀ x on a logarithmic axis."""
  color = PALETTE[index % len(PALETTE)] if curve.color is None else curve.color
  if curve.dashed and curve.color is None:
    color = GREY
  kind = 'points' if curve.points else 'line'
  return Series(
    name=curve.name,
    x=np.log10(curve.x) if plot.log_x else curve.x,
    y=curve.y,
    color=color,
    kind='bars' if plot.bars else kind,
    dashed=curve.dashed,
  )
