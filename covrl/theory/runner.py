# SPDX-License-Identifier: Apache-2.0
"""Runs claims and prints their results as a table."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from covrl.theory.claim import Claim, Result, Settings
from covrl.theory.sections import CLAIMS, find_claims

# Text before the label of a check, by the check's group.
GROUP_PREFIXES = {
  'printed': 'as printed: ',
  'conditional': 'under the condition: ',
  'corrected': '',
}


class CheckedClaims(NamedTuple):
  """Results of a run of the claims.

  Attributes:
    settings: settings of the run.
    results: one result per claim, in the paper's order.
    seconds: wall time of the run.
  """

  settings: Settings
  results: Sequence[Result]
  seconds: float

  @property
  def agrees(self) -> bool:
    """Whether every result agrees with the recorded verdict."""
    return all(result.agrees for result in self.results)


def run_claims(
  *,
  name: str | None = None,
  quick: bool = False,
  claims: Sequence[Claim] = CLAIMS,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> CheckedClaims:
  """Checks claims.

  Args:
    name: name of the claims to check; all of `claims` if `None`.
    quick: fewer trials, for continuous integration.
    claims: claims to check if there is no name.
    on_progress: called with the number of checked claims and the total.

  Raises:
    ValueError: no claim has the name, or there are no claims.
  """
  chosen = claims if name is None else find_claims(name)
  if not chosen:
    raise ValueError('claims must have at least one claim, got none')
  settings, started = Settings(quick=quick), time.monotonic()
  results = []
  on_progress(0, len(chosen))
  for claim in chosen:
    results.append(claim.run(settings))
    on_progress(len(results), len(chosen))
  return CheckedClaims(settings, results, time.monotonic() - started)


def print_results(checked: CheckedClaims) -> None:
  """Prints the table of results on standard output."""
  console = Console(width=max(120, Console().width), highlight=False)
  console.print(_results_table(checked.results))
  agreeing = sum(result.agrees for result in checked.results)
  console.print(
    f'{agreeing} of {len(checked.results)} as recorded, in '
    f'{checked.seconds:.0f} s.'
  )


def _results_table(results: Sequence[Result]) -> Table:
  """One row per check; the first row of a claim has its name and verdict."""
  table = Table(box=None, header_style='bold', pad_edge=False)
  for header in ('', 'claim', 'as printed', 'check', 'value', 'tolerance'):
    table.add_column(header, justify='right' if header == 'value' else 'left')
  for result in results:
    mark = '✓' if result.agrees else '✗'
    columns = (mark, result.claim.name, result.measured_verdict)
    for group, check in result.evidence.checks():
      failed = '·' if group == 'printed' else '✗'
      table.add_row(
        *columns,
        f'{GROUP_PREFIXES[group]}{check.label}',
        f'{check.value:.3g} {"" if check.passes else failed}'.strip(),
        check.tolerance,
      )
      columns = ('', '', '')
  return table
