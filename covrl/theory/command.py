# SPDX-License-Identifier: Apache-2.0
"""`covrl theory`: checks the claims and prints their table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from covrl.theory.claims import Claim, Lab, Result
from covrl.theory.table import CLAIMS, named

# What each figure is of, before its words.
KINDS = {'printed': 'as printed: ', 'given': 'if so: ', 'holds': ''}


class Run(NamedTuple):
  """Claims that were checked.

  Attributes:
    lab: that checked them.
    results: in the paper's order.
    seconds: that took.
  """

  lab: Lab
  results: Sequence[Result]
  seconds: float

  @property
  def agrees(self) -> bool:
    """Whether every check agrees with its recorded verdict."""
    return all(result.agrees for result in self.results)


def run(
  *,
  name: str | None = None,
  quick: bool = False,
  claims: Sequence[Claim] = CLAIMS,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> Run:
  """Checks the claims.

  Args:
    name: of the claims to check; all if `None`.
    quick: fewer trials, for continuous integration.
    claims: the table.
    on_progress: called with the numbers of claims checked and in all.

  Raises:
    ValueError: if no claim has that name.
  """
  chosen = claims if name is None else named(name)
  lab, started = Lab(quick=quick), time.monotonic()
  results = []
  on_progress(0, len(chosen))
  for claim in chosen:
    results.append(claim.run(lab))
    on_progress(len(results), len(chosen))
  return Run(lab, results, time.monotonic() - started)


def print_results(done: Run) -> None:
  """Prints the table of the checked claims on standard output."""
  console = Console(width=max(120, Console().width), highlight=False)
  console.print(table(done.results))
  agreeing = sum(result.agrees for result in done.results)
  console.print(
    f'{agreeing} of {len(done.results)} as recorded, in {done.seconds:.0f} s.'
  )


def table(results: Sequence[Result]) -> Table:
  """Claim → verdict on the printed statement → figures → tolerances."""
  made = Table(box=None, header_style='bold', pad_edge=False)
  for header in ('', 'claim', 'as printed', 'measured', 'figure', 'tolerance'):
    made.add_column(header, justify='right' if header == 'figure' else 'left')
  for result in results:
    for place, (kind, check) in enumerate(result.evidence.checks()):
      mark = '' if check.passes else '·' if kind == 'printed' else '✗'
      first = place == 0
      made.add_row(
        ('✓' if result.agrees else '✗') if first else '',
        result.claim.name if first else '',
        result.measured if first else '',
        f'{KINDS[kind]}{check.what}',
        f'{check.figure:.3g} {mark}'.strip(),
        check.tolerance,
      )
  return made
