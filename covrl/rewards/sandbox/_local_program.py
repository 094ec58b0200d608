# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that executes a program in the process of its suite.

Executed after `_proxies.py` and before `_suite_runner.py`; never imported.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
  from typing import Any

  from covrl.rewards.sandbox._program import Program


class LocalProgram:
  """A program whose names are the objects themselves; see `ProgramClient`.

  Args:
    source: source code, which is valid Python.

  Attributes:
    requests, uses: 1, as imports and calls cannot be counted; the run apart does.
  """

  def __init__(self, source: bytes) -> None:
    self.requests = self.uses = 1
    program = Program(source)
    program.compile()
    self._namespace = program.execute('solution')

  def fetch(self, name: str) -> Any:
    """Returns a global of the program.

    Raises:
      KeyError: if the program does not define the name.
    """
    return self._namespace[name]
