# SPDX-License-Identifier: Apache-2.0
"""Compilation of the scripts that run inside sandboxes."""

from __future__ import annotations

import functools
import marshal
import pathlib

_HERE = pathlib.Path(__file__).parent


@functools.cache
def compile_script(name: str) -> bytes:
  """Returns a script as marshalled bytecode of this Python version."""
  path = _HERE / name
  return marshal.dumps(compile(path.read_bytes(), name, 'exec'))
