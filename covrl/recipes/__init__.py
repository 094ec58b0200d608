# SPDX-License-Identifier: Apache-2.0
"""The recipes that covrl ships, as modules.

  from covrl.recipes import countdown

  recipe = countdown.grpo()

In a checkout they are the files of `configs/`; a wheel has copies of them in
this package.
"""

import pathlib

DIRECTORY = pathlib.Path(__file__).parent
"""Directory of the recipe files."""

if not (DIRECTORY / 'countdown.py').is_file():
  DIRECTORY = DIRECTORY.parents[1] / 'configs'
  __path__.append(str(DIRECTORY))
