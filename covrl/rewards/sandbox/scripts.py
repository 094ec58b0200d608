# SPDX-License-Identifier: Apache-2.0
"""The scripts that run inside of sandboxes, as what an interpreter takes."""

from __future__ import annotations

import functools
import marshal
import pathlib

_HERE = pathlib.Path(__file__).parent


@functools.cache
def compile_script(name: str) -> bytes:
  """A script's code, for an interpreter of the kind that this one is."""
  path = _HERE / name
  return marshal.dumps(compile(path.read_bytes(), name, 'exec'))
