# SPDX-License-Identifier: Apache-2.0
"""Pages of a study: sections of text, a table and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from etils import epath

from covrl import storage
from covrl.report.figures.chart import Figure, FigureLayout
from covrl.report.figures.comparison import legend_entries
from covrl.report.figures.series import lay_out_all
from covrl.report.pages.rendering import render, write_page

_SVG_WIDTH = 880


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageSection:
  """One section of a page.

  Attributes:
    title: heading.
    texts: paragraphs.
    columns: titles of the table's columns.
    rows: cells of the table.
    is_numeric: whether all columns but the first hold numbers.
    all_figures: figures; those without points are left out.
  """

  title: str
  texts: Sequence[str] = ()
  columns: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()
  is_numeric: bool = True
  all_figures: Sequence[Figure] = ()

  @property
  def figures(self) -> list[FigureLayout]:
    """The figures that have points, laid out."""
    return lay_out_all(self.all_figures)

  def table_markdown(self) -> str:
    """The table as Markdown."""
    rule = '---:' if self.is_numeric else '---'
    lines = [self.columns, ['---', *[rule] * (len(self.columns) - 1)]]
    return ''.join(f'| {" | ".join(row)} |\n' for row in [*lines, *self.rows])


def write_sections(
  output: epath.PathLike,
  *,
  title: str,
  facts: Sequence[str],
  headlines: Sequence[str],
  sections: Sequence[PageSection],
) -> epath.Path:
  """Writes a page of sections.

  Args:
    output: path of the page.
    title: title of the page.
    facts: short facts below the title.
    headlines: sentences of the summary.
    sections: the sections in order.

  Returns:
    Path of the page.
  """
  page = render(
    'sections.html.j2',
    title=title,
    facts=facts,
    headlines=headlines,
    sections=sections,
  )
  return write_page(storage.as_path(output), page)


def panels_svg(figures: Sequence[Figure]) -> str:
  """A standalone SVG of figures side by side, with one legend for all.

  All figures must have the same series.

  Raises:
    ValueError: a figure has no points, or there are no figures.
  """
  pitch = _SVG_WIDTH // max(1, len(figures))
  panels = lay_out_all(figures, (pitch - 10, 290))
  if not panels or len(panels) != len(figures):
    raise ValueError(
      'a picture must have one figure or more, each with points, got'
      f' {len(figures)}, {len(panels)} with points'
    )
  names = [series.name for series in panels[0].figure.series]
  return render(
    'comparison.svg.j2',
    panels=panels,
    pitch=pitch,
    legend=legend_entries(names, _SVG_WIDTH - 20),
  )
