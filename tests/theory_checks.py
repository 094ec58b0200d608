# SPDX-License-Identifier: Apache-2.0
"""What the two files of claims have in common."""

from covrl.theory import command
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
  """As recorded; and the command fails once the formula is wrong."""
  result = claim.run(QUICK)
  assert not [check for check in result.evidence.holds if not check.passes]
  assert result.agrees, result.evidence
  assert claim.wrong
  for mistaken in claim.mistaken():
    assert not command.run(quick=True, claims=[mistaken]).agrees
