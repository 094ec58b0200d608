# SPDX-License-Identifier: Apache-2.0
"""Programs for the judge: attacks of three kinds, and honest ones."""

from rewards.battery import controls, forging, reaching, taking
from rewards.battery.rows import Row as Row

ROWS: list[Row] = [
  *forging.ROWS,
  *taking.ROWS,
  *reaching.ROWS,
  *controls.ROWS,
]
