# SPDX-License-Identifier: Apache-2.0
"""`covrl theory`: runs the claims, prints the table, writes the page."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from covrl.theory.claims import Claim, Lab, Result
from covrl.theory.table import CLAIMS, named


def run(
  *,
  workdir: str | os.PathLike[str] | None = None,
  name: str | None = None,
  quick: bool = False,
  claims: Sequence[Claim] = CLAIMS,
) -> bool:
  """Checks the claims and tells.

  Args:
    workdir: where `report.html` shall be; nowhere if `None`.
    name: of the claims to check; all if `None`.
    quick: fewer trials, for continuous integration.
    claims: the table.

  Returns:
    Whether every check agrees with its recorded verdict.

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
  seconds = time.monotonic() - started
  if workdir is not None:
    from covrl.theory.page import write_page

    console.print(str(write_page(workdir, results, lab, seconds)))
  agreeing = sum(result.agrees for result in results)
  console.print(
    f'{agreeing} of {len(results)} as recorded, in {seconds:.0f} s.'
  )
  return agreeing == len(results)


# What each figure is of, before its words.
KINDS = {'printed': 'as printed: ', 'given': 'if so: ', 'holds': ''}


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
