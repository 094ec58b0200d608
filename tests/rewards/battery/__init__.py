# SPDX-License-Identifier: Apache-2.0
"""Battery of programs for the judge: attacks of three kinds, and controls."""

from rewards.battery import controls, forging, reaching, taking
from rewards.battery.rows import Row as Row

ROWS: list[Row] = [
  *forging.ROWS,
  *taking.ROWS,
  *reaching.ROWS,
  *controls.ROWS,
]
