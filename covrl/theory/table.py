# SPDX-License-Identifier: Apache-2.0
"""All claims, in the paper's order."""

from __future__ import annotations

from covrl.theory import (
  derived,
  review,
  section_3,
  section_4,
  section_5a,
  section_5b,
  section_6a,
  section_6b,
  section_7a,
  section_7b,
  section_7c,
  section_8,
)
from covrl.theory.claims import Claim

SECTIONS = tuple(
  module.SECTION
  for module in (
    section_3,
    section_4,
    section_5a,
    section_5b,
    section_6a,
    section_6b,
    section_7a,
    section_7b,
    section_7c,
    section_8,
    review,
    derived,
  )
)

CLAIMS: tuple[Claim, ...] = tuple(
  claim for section in SECTIONS for claim in section.claims
)


def named(name: str) -> tuple[Claim, ...]:
  """The claims that a name means, in the paper's order.

  Args:
    name: such as 'VII.4', '(33)' or 'Lemma IV.1'.

  Raises:
    ValueError: if there is none.

  >>> [claim.name for claim in named('IV.1')]
  ['Lemma IV.1 (7)', 'Prop. IV.1 (9)', 'Thm IV.1 (10)', 'Remark IV.1']
  """
  found = tuple(claim for claim in CLAIMS if claim.is_called(name))
  if not found:
    names = ', '.join(claim.name for claim in CLAIMS)
    raise ValueError(f'there is no claim {name!r}; there are: {names}')
  return found
