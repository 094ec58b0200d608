# SPDX-License-Identifier: Apache-2.0
"""The recipes that covrl ships, as modules.

  from covrl.recipes import countdown

  recipe = countdown.grpo()

In a checkout they are the files of `configs/`; a wheel has copies of them in
this package.
"""

from typing import TYPE_CHECKING

from covrl.config.loading import SHIPPED_RECIPES

if TYPE_CHECKING:
  # Type checkers do not follow the change of `__path__` below.
  from configs import algorithms as algorithms
  from configs import countdown as countdown
  from configs import countdown_steps as countdown_steps
  from configs import mazes as mazes
  from configs import reasoning as reasoning
  from configs import reasoning_parts as reasoning_parts
  from configs import smollm as smollm

if str(SHIPPED_RECIPES) not in __path__:
  __path__.append(str(SHIPPED_RECIPES))
