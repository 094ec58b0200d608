# SPDX-License-Identifier: Apache-2.0
"""`covrl theory`: runs the claims and prints the table."""

from __future__ import annotations

import time
from collections.abc import Sequence
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
) -> Run:
  """Checks the claims and prints the table.

  Args:
    name: of the claims to check; all if `None`.
    quick: fewer trials, for continuous integration.
    claims: the table.

  Raises:
    ValueError: if no claim has that name.
  """
  chosen = claims if name is None else named(name)
  console = Console(width=max(120, Console().width), highlight=False)
  lab, started = Lab(quick=quick), time.monotonic()
  results = []
  for index, claim in enumerate(chosen):
    with console.status(f'{index + 1} of {len(chosen)}  {claim.name}'):
      results.append(claim.run(lab))
  console.print(table(results))
  done = Run(lab, results, time.monotonic() - started)
  agreeing = sum(result.agrees for result in results)
  console.print(
    f'{agreeing} of {len(results)} as recorded, in {done.seconds:.0f} s.'
  )
  return done


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
