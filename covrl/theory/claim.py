# SPDX-License-Identifier: Apache-2.0
"""Claims: statements of the paper, each with a function that checks it.

To add a claim, write one function in the module of its section. (List a new
module in `covrl.theory.sections`.)

    @claim(
      'Lemma IV.1 (7)',
      printed='the statement as the paper prints it',
      corrected='the statement that is true',
      verdict='holds if there is one state',
      formula=lambda pi, f: -pi * f,
    )
    def entropy_gradient(settings, formula):
      ...
      return Evidence(
        printed=[at_most('error', 2.6, 1e-12)],
        conditional=[at_most('error in a bandit', 1e-16, 1e-12)],
        corrected=[at_most('error of the formula', error_of(formula), 1e-12)],
      )

The claim then appears in the table, the command, the report and the tests.

The verdict on the printed statement is measured: it holds if all checks of
`printed` pass, and holds under its condition if all of `conditional` pass.
`verdict` is the recorded result; a run that measures another verdict disagrees
with the record. `formula` is the corrected formula. It is an argument so that
tests can replace it with a wrong one, multiplied by a factor from
`wrong_factors` or taken from `wrong_formulas`, and verify that the checks fail.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np

from covrl.array_checks import check_integer
from covrl.theory.evidence import Evidence

HOLDS, FAILS, HOLDS_IF = 'holds', 'fails', 'holds if '

Formula = Callable[..., Any]
Size = TypeVar('Size', int, float)


@dataclasses.dataclass(frozen=True)
class Settings:
  """Size and seed of the numerical experiments.

  Attributes:
    quick: fewer trials, seeds and steps, for continuous integration.
    seed: seed of all random numbers, in [0, 2³¹). Every claim makes its own generators
      from it, so that its values do not depend on which claims run before it.
  """

  quick: bool = False
  seed: int = 0

  def __post_init__(self) -> None:
    if not isinstance(self.quick, bool):
      raise TypeError(f'quick must be True or False, got {self.quick!r}')
    check_integer('seed', self.seed, 0, 2**31 - 1)

  def choose(self, full: Size, quick: Size) -> Size:
    """Returns `quick` for a quick run and `full` otherwise."""
    return quick if self.quick else full

  def rng(self) -> np.random.Generator:
    """A fresh generator with the same stream on every call."""
    return np.random.default_rng(self.seed)

  def key(self) -> jax.Array:
    """The PRNG key of the seed."""
    return jax.random.key(self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """A numbered statement and the function that checks it.

  Attributes:
    name: number of the statement in the paper, or a title.
    printed: the statement as printed.
    corrected: the statement that is true.
    verdict: recorded verdict on the printed statement: 'holds', 'fails' or
      'holds if …'.
    formula: the corrected formula, as a function of arrays.
    check: `(settings, formula) -> Evidence`.
    wrong_factors: factors; the check must fail for each multiple of the
      formula.
    wrong_formulas: formulas with an error; the check must fail for each.
    section: title of the paper's section.
  """

  name: str
  printed: str
  corrected: str
  verdict: str
  formula: Formula
  check: Callable[[Settings, Formula], Evidence]
  wrong_factors: tuple[float, ...]
  wrong_formulas: tuple[Formula, ...]
  section: str

  def __post_init__(self) -> None:
    holds_if = self.verdict.removeprefix(HOLDS_IF) not in ('', self.verdict)
    if self.verdict not in (HOLDS, FAILS) and not holds_if:
      raise ValueError(
        f"verdict must be 'holds', 'fails' or 'holds if …', got {self.verdict!r}"
      )

  def run(self, settings: Settings) -> Result:
    """Checks the claim in 64-bit floats."""
    with jax.enable_x64(True):
      return Result(self, self.check(settings, self.formula))

  def perturbations(self) -> Iterator[Claim]:
    """Yields the claim with each of its wrong formulas; all must disagree."""
    for factor in self.wrong_factors:
      yield self.scaled(factor)
    for formula in self.wrong_formulas:
      yield dataclasses.replace(self, formula=formula)

  def scaled(self, factor: float) -> Claim:
    """The claim with its formula multiplied by a factor."""

    def formula(*arguments: Any) -> Any:
      return factor * self.formula(*arguments)

    return dataclasses.replace(self, formula=formula)

  def matches(self, name: str) -> bool:
    """Whether `name` is the claim's name or one of the words in it.

    Args:
      name: such as 'VII.4', '33', '(33)' or 'Thm VII.4 (33)'.
    """
    words = re.findall(r'[\w.–]+', self.name)
    return name.strip('()') in words or name.lower() == self.name.lower()


@dataclasses.dataclass(frozen=True)
class Result:
  """A claim and its evidence.

  Raises:
    ValueError: the verdict is 'holds if …' and there are no checks under the
      condition.
  """

  claim: Claim
  evidence: Evidence

  def __post_init__(self) -> None:
    conditional = self.claim.verdict.startswith(HOLDS_IF)
    if conditional and not self.evidence.conditional:
      raise ValueError(
        f"{self.claim.name}: conditional must have checks with a verdict 'holds"
        " if …', got none"
      )

  @property
  def agrees(self) -> bool:
    """Whether the measured verdict is the recorded one and all checks of the
    corrected statement pass.
    """
    if self.measured_verdict != self.claim.verdict:
      return False
    return all(check.passes for check in self.evidence.corrected)

  @property
  def measured_verdict(self) -> str:
    """The verdict on the printed statement according to the checks."""
    if all(check.passes for check in self.evidence.printed):
      return HOLDS
    conditional = self.claim.verdict.startswith(HOLDS_IF)
    if conditional and all(c.passes for c in self.evidence.conditional):
      return self.claim.verdict
    return FAILS


class Section:
  """A section's title and its claims in the order of their definition."""

  def __init__(self, title: str) -> None:
    self.title = title
    self.claims: list[Claim] = []

  def claim(
    self,
    name: str,
    *,
    printed: str,
    corrected: str,
    verdict: str,
    formula: Formula,
    wrong_factors: tuple[float, ...] = (1.05, -1.0),
    wrong_formulas: tuple[Formula, ...] = (),
  ) -> Callable[[Callable[[Settings, Formula], Evidence]], Claim]:
    """Decorator that turns a check into a claim; for arguments see `Claim`."""

    def register(check: Callable[[Settings, Formula], Evidence]) -> Claim:
      result = Claim(
        name=name,
        printed=printed,
        corrected=corrected,
        verdict=verdict,
        formula=formula,
        check=check,
        wrong_factors=wrong_factors,
        wrong_formulas=wrong_formulas,
        section=self.title,
      )
      self.claims.append(result)
      return result

    return register
