# SPDX-License-Identifier: Apache-2.0
"""Battery of programs for the judge: attacks of three kinds, and control programs."""

from rewards.battery import (
  control_functions,
  control_scripts,
  forged_output,
  forged_results,
  harness_attacks,
  resource_exhaustion,
  sandbox_escapes,
  suite_attacks,
)
from rewards.battery.cases import Case as Case

CASES: list[Case] = [
  *forged_output.CASES,
  *forged_results.CASES,
  *harness_attacks.CASES,
  *suite_attacks.CASES,
  *resource_exhaustion.CASES,
  *sandbox_escapes.CASES,
  *control_scripts.CASES,
  *control_functions.CASES,
]
