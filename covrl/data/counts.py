# SPDX-License-Identifier: Apache-2.0
"""`NamedCounts`, numbers of problems by name, each with its first problem."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable


@dataclasses.dataclass
class Count:
  """A number of problems and the location of the first one."""

  number: int = 0
  first: str = ''

  def add(self, location: str) -> None:
    """Counts a problem."""
    self.number += 1
    self.first = self.first or location


class NamedCounts:
  """Numbers of problems with any of several properties, and with each of them.

  Args:
    max_names: properties that the text names, at most.

  Attributes:
    number: number of problems with any property.

  >>> counts = NamedCounts()
  >>> counts.add('row 1', ['user'])
  >>> counts.add('row 2', [])
  >>> counts.add('row 3', ['user', 'system', 'tool'])
  >>> f'{counts.number} in all: {counts}'
  '2 in all: user in 2 (first: row 1), system, tool in 1 (first: row 3)'
  """

  def __init__(self, max_names: int = 3) -> None:
    self.number = 0
    self._max_names = max_names
    self._by_name: dict[str, Count] = {}

  def add(self, location: str, names: Iterable[str]) -> None:
    """Counts a problem.

    Args:
      location: file and row; empty if unknown.
      names: the problem's properties; it does not count without any.
    """
    different_names = set(names)
    self.number += bool(different_names)
    for name in different_names:
      self._by_name.setdefault(name, Count()).add(location)

  def __str__(self) -> str:
    """The most frequent names, with number and first problem."""

    def order(name: str) -> tuple[int, str]:
      count = self._by_name[name]
      return -count.number, count.first

    names = sorted(sorted(self._by_name), key=order)
    parts = []
    # Names of the same problems, as far as the counts tell, are one part.
    groups = itertools.groupby(names[: self._max_names], key=order)
    for (negative_number, location), group in groups:
      first = f' (first: {location})' if location else ''
      parts.append(f'{", ".join(group)} in {-negative_number:,}{first}')
    if len(names) > self._max_names:
      parts.append(f'{len(names) - self._max_names:,} others')
    return ', '.join(parts)
