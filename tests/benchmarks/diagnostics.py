# SPDX-License-Identifier: Apache-2.0
"""Cost of an update with diagnostics at intervals, relative to diagnostics in each.

  python tests/benchmarks/diagnostics.py [--rounds=9] [--vocabulary=32000]

Both updates take turns; a ratio is of the times of one round, below 1 where an
update takes less time than one with diagnostics at every update. Medians and
quartiles are printed, of wall-clock and of CPU seconds (`CPU ratio`). An interval of 0
means no diagnostics. At an interval of 10, `between` is an update without diagnostics
and `due` one with them, which computes moments in a separate pass.
"""

from __future__ import annotations

import argparse

from gathered_head import SHAPES, batch, compiled_update, measure, report

# (label, updates made before, logging.diagnostics_every)
UPDATES = (('never', 0, 0), ('between', 1, 10), ('due', 10, 10))


def main() -> None:
  """Prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument(
    '--vocabulary', nargs='+', type=int, choices=SHAPES, default=[*SHAPES]
  )
  options = parser.parse_args()
  print(f'{"":32}{"seconds":>9}{"ratio":>8} {"quartiles":13}{"CPU ratio":>10}')
  for vocabulary in options.vocabulary:
    shape = SHAPES[vocabulary]
    every_update = compiled_update(shape, reads_moments=False)
    for label, step, interval in UPDATES:
      update = compiled_update(
        shape, step, reads_moments=False, diagnostics_every=interval
      )
      for lengths in ('full', 'geometric'):
        seconds = measure(
          (update, every_update), batch(shape, lengths), options.rounds
        )
        report(f'{vocabulary}, {label}, {lengths}', seconds)


if __name__ == '__main__':
  main()
