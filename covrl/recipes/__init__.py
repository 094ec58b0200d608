# SPDX-License-Identifier: Apache-2.0
"""The recipes that covrl ships, as modules.

  from covrl.recipes import countdown

  recipe = countdown.grpo()

In a checkout they are the files of `configs/`; a wheel has copies of them in
this package.
"""

import pathlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  # Type checkers do not follow the change of `__path__` below.
  from configs import algorithms as algorithms
  from configs import countdown as countdown
  from configs import countdown_steps as countdown_steps
  from configs import mazes as mazes
  from configs import reasoning as reasoning
  from configs import reasoning_parts as reasoning_parts
  from configs import smollm as smollm

DIRECTORY = pathlib.Path(__file__).parent
"""Directory of the recipe files."""

if not (DIRECTORY / 'countdown.py').is_file():
  DIRECTORY = DIRECTORY.parents[1] / 'configs'
  __path__.append(str(DIRECTORY))
