# SPDX-License-Identifier: Apache-2.0
"""What the two files of claims have in common."""

from covrl.theory.claims import Claim, Lab

QUICK = Lab(quick=True)

# Claims that train policies: in a file of their own, which is run beside.
STUDIES = (
  'VIII.',
  'Questions',
  'Derived',
)


def is_study(claim: Claim) -> bool:
  """Whether a claim reads the long runs."""
  return claim.section.startswith(STUDIES) or claim.name == 'Cor. V.1'


def check(claim: Claim) -> None:
  """As recorded; and disagreeing once the formula is off by a factor."""
  result = claim.run(QUICK)
  assert not [check for check in result.evidence.holds if not check.passes]
  assert result.agrees, result.evidence.printed
  assert claim.wrong
  for factor in claim.wrong:
    assert not claim.times(factor).run(QUICK).agrees, factor
