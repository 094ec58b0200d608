# SPDX-License-Identifier: Apache-2.0
"""Battery of mathematical answers: pairs of reference and response with verdicts.

`python tests/rewards/math_battery.py` grades it and prints the table.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
from collections.abc import Iterator

FILE = pathlib.Path(__file__).with_suffix('.txt')


@dataclasses.dataclass(frozen=True)
class Pair:
  """A reference and a response to grade.

  Attributes:
    category: name of the tested feature.
    reference: the correct answer.
    response: a response that states the answer.
    score: the expected score.
    line: line number in the file.
  """

  category: str
  reference: str
  response: str
  score: float
  line: int


def pairs() -> Iterator[Pair]:
  """Returns every pair of the battery."""
  category = ''
  for line_number, text in enumerate(FILE.read_text().splitlines(), 1):
    if text.startswith('['):
      category = text.strip('[]')
    elif text and not text.startswith('#'):
      verdict, reference, answer = text.split(' || ')
      score = {'right': 1.0, 'wrong': 0.0}[verdict]
      if category.startswith('response'):
        response = answer.replace('\\n', '\n')
      else:
        response = f'Therefore the answer is $\\boxed{{{answer}}}$.'
      name = category.removeprefix('response: ')
      yield Pair(name, reference, response, score, line_number)


def main() -> int:
  """Prints a table, and every pair with an unexpected verdict."""
  from covrl.rewards import grade_math

  counts: dict[str, list[int]] = {}
  for pair in pairs():
    score = grade_math(pair.response, pair.reference).score
    row = counts.setdefault(pair.category, [0, 0, 0, 0])
    row[0 if pair.score else 1] += 1
    if score != pair.score:
      row[3 if pair.score else 2] += 1
      print(f'line {pair.line}: {pair.reference} || {pair.response}: {score}')
  rows = [
    *counts.items(),
    ('total', [*map(sum, zip(*counts.values(), strict=True))]),
  ]
  print('| category | right | wrong | wrongly accepted | wrongly refused |')
  print('|---|---|---|---|---|')
  for category, numbers in rows:
    print(f'| {category} | {" | ".join(map(str, numbers))} |')
  return int(any(rows[-1][1][2:]))


if __name__ == '__main__':
  sys.exit(main())
