# SPDX-License-Identifier: Apache-2.0
"""A claim, what was measured of it, and the table of all claims.

To add a claim, write one function in its section's module (a new module's
`SECTION` goes into `table`):

    @claim(
      'Lemma IV.1 (7)',
      printed='what the paper says',
      holds='what is true',
      verdict='holds if there is one state',
      formula=lambda pi, f: -pi * f,
    )
    def entropy_gradient(lab, formula):
      ...
      return Evidence(
        printed=[below('error', 2.6, 1e-12)],
        given=[below('error in a bandit', 1e-16, 1e-12)],
        holds=[below('error of the formula', error_of(formula), 1e-12)],
      )

That is all: it is in the table, the command, the page and the tests.

The verdict on the printed statement is measured, not declared: it holds if all
checks of `printed` pass, and holds under its condition if all of `given` do.
`verdict` is what was recorded when the claim was written; a run that measures
another one disagrees. The formula is the one that holds. It is an argument so
that a test may replace it by a wrong one and see the claim disagree: multiplied
by each factor of `wrong`, or by each of `slips`, formulas with an error within.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Float

EXACT = 1e-12  # what rounding may do to algebra in 64-bit floats

HOLDS, FAILS, HOLDS_IF = 'holds', 'fails', 'holds if '

Formula = Callable[..., Any]
Numbers = Float[np.ndarray, ' n']
Size = TypeVar('Size', int, float)


@dataclasses.dataclass(frozen=True)
class Lab:
  """How much to run, and from which seed.

  Attributes:
    quick: fewer trials, seeds and steps, for continuous integration.
    seed: of all randomness; each claim starts from it anew, so that running
      one claim gives what running all of them gives.
  """

  quick: bool = False
  seed: int = 0

  def size(self, full: Size, quick: Size) -> Size:
    """A number of trials, steps or seeds; or a tolerance that goes with it."""
    return quick if self.quick else full

  def random(self) -> np.random.Generator:
    """Fresh random numbers, the same for every call."""
    return np.random.default_rng(self.seed)

  def key(self) -> jax.Array:
    """A PRNG key, the same for every call."""
    return jax.random.key(self.seed)


class Check(NamedTuple):
  """A measured figure and where it must lie.

  Attributes:
    what: what was measured, in words.
    figure: the measurement.
    low: least value that passes.
    high: greatest value that passes.
  """

  what: str
  figure: float
  low: float = -math.inf
  high: float = math.inf

  @property
  def passes(self) -> bool:
    """Whether the figure lies where it must; NaN does not."""
    return self.low <= self.figure <= self.high

  @property
  def tolerance(self) -> str:
    """Where the figure must lie, in words.

    >>> below('error', 1e-17, 1e-12).tolerance, near('slope', 2, 2, 0.1).tolerance
    ('≤ 1e-12', '2 ± 0.1')
    """
    if self.low == -math.inf:
      return f'≤ {self.high:.3g}'
    if self.high == math.inf:
      return f'≥ {self.low:.3g}'
    middle, half = (self.low + self.high) / 2, (self.high - self.low) / 2
    return f'{middle:.3g} ± {half:.2g}'


def below(what: str, figure: Any, bound: float | int) -> Check:
  """A figure that must not exceed a bound."""
  return Check(what, float(figure), high=float(bound))


def above(what: str, figure: Any, bound: float | int) -> Check:
  """A figure that must reach a bound."""
  return Check(what, float(figure), low=float(bound))


def near(
  what: str, figure: Any, expected: Any, tolerance: float | int
) -> Check:
  """A figure that must equal another to a tolerance."""
  middle = float(expected)
  return Check(
    what, float(figure), float(middle - tolerance), float(middle + tolerance)
  )


class Curve(NamedTuple):
  """One curve of a picture.

  Attributes:
    name: as in the legend.
    x: ascending.
    y: of the same length.
    points: whether the points are marked.
    dashed: a curve of theory beside one that was measured.
    color: index of the palette; the next one if `None`.
  """

  name: str
  x: Numbers
  y: Numbers
  points: bool = False
  dashed: bool = False
  color: int | None = None


class Picture(NamedTuple):
  """What a claim shows; `page` draws it.

  Attributes:
    title: what the picture says.
    x_label: quantity with its unit.
    y_label: quantity with its unit.
    curves: drawn in order.
    caption: what a reader must know to read it.
    log_x: powers of ten along the x axis.
    log_y: powers of ten along the y axis.
    bars: curves are bars.
  """

  title: str
  x_label: str
  y_label: str
  curves: Sequence[Curve]
  caption: str = ''
  log_x: bool = False
  log_y: bool = False
  bars: bool = False


class Table(NamedTuple):
  """A table that a study prints: a header, and rows of as many cells."""

  title: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]
  caption: str = ''


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence:
  """What a claim's function measured.

  Attributes:
    printed: the statement as printed, tested as it stands; it holds if all
      pass.
    given: the printed statement again, under the condition that the verdict
      names.
    holds: the statement that holds; all must pass.
    pictures: to look at.
    tables: to read.
  """

  printed: Sequence[Check]
  given: Sequence[Check] = ()
  holds: Sequence[Check] = ()
  pictures: Sequence[Picture] = ()
  tables: Sequence[Table] = ()

  def checks(self) -> Iterator[tuple[str, Check]]:
    """All of them, each with what it is of."""
    for kind in ('printed', 'given', 'holds'):
      for check in getattr(self, kind):
        yield kind, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A numbered statement and the function that checks it.

  Attributes:
    name: where it stands in the paper.
    printed: the statement as printed.
    holds: the statement that holds.
    verdict: recorded, on the printed statement: 'holds', 'fails' or 'holds
      if …'.
    formula: what holds, as a function of arrays.
    check: `(lab, formula) -> Evidence`.
    wrong: factors by which the formula may be multiplied for the check to
      fail.
    slips: formulas that are wrong within, for which it must fail too.
    section: of the paper.
  """

  name: str
  printed: str
  holds: str
  verdict: str
  formula: Formula
  check: Callable[[Lab, Formula], Evidence]
  wrong: tuple[float, ...]
  slips: tuple[Formula, ...]
  section: str

  def __post_init__(self) -> None:
    if not self.verdict.startswith((HOLDS, FAILS)):
      raise ValueError(
        f"a verdict is 'holds', 'fails' or 'holds if …', got {self.verdict!r}"
      )

  def run(self, lab: Lab) -> Result:
    """Checks the claim, in 64-bit floats."""
    with jax.enable_x64(True):
      return Result(self, self.check(lab, self.formula))

  def mistaken(self) -> Iterator[Claim]:
    """The claim with each of its wrong formulas: all must disagree."""
    for factor in self.wrong:
      yield self.times(factor)
    for slip in self.slips:
      yield dataclasses.replace(self, formula=slip)

  def times(self, factor: float) -> Claim:
    """The claim with a formula that is wrong by a factor."""

    def wrong(*arguments: Any) -> Any:
      return factor * self.formula(*arguments)

    return dataclasses.replace(self, formula=wrong)

  def is_called(self, name: str) -> bool:
    """Whether a reader who types `name` means this claim.

    Numbers match whole ('VII.4', '33', '(33)'), words anywhere ('margin').
    """
    words = re.findall(r'[\w.–]+', self.name)
    wanted = name.strip('()')
    return wanted in words or name.lower() == self.name.lower()


@dataclasses.dataclass(frozen=True)
class Result:
  """A claim and its evidence.

  Raises:
    ValueError: if a claim that holds under a condition was not checked there.
  """

  claim: Claim
  evidence: Evidence

  def __post_init__(self) -> None:
    if self.claim.verdict.startswith(HOLDS_IF) and not self.evidence.given:
      raise ValueError(
        f"{self.claim.name}: a verdict 'holds if …' needs checks under its "
        'condition, given=[…], got none'
      )

  @property
  def agrees(self) -> bool:
    """Whether what was measured is what was recorded."""
    if self.measured != self.claim.verdict:
      return False
    return all(check.passes for check in self.evidence.holds)

  @property
  def measured(self) -> str:
    """The verdict on the printed statement that this run found."""
    if all(check.passes for check in self.evidence.printed):
      return HOLDS
    conditional = self.claim.verdict.startswith(HOLDS_IF)
    if conditional and all(check.passes for check in self.evidence.given):
      return self.claim.verdict
    return FAILS


class Section:
  """Collects a section's claims in the order in which they are written."""

  def __init__(self, title: str) -> None:
    self.title = title
    self.claims: list[Claim] = []

  def claim(
    self,
    name: str,
    *,
    printed: str,
    holds: str,
    verdict: str,
    formula: Formula,
    wrong: tuple[float, ...] = (-1.0, 1.05),
    slips: tuple[Formula, ...] = (),
  ) -> Callable[[Callable[[Lab, Formula], Evidence]], Claim]:
    """Makes a claim of the function that checks it; see `Claim`."""

    def register(check: Callable[[Lab, Formula], Evidence]) -> Claim:
      made = Claim(
        name=name,
        printed=printed,
        holds=holds,
        verdict=verdict,
        formula=formula,
        check=check,
        wrong=wrong,
        slips=slips,
        section=self.title,
      )
      self.claims.append(made)
      return made

    return register
