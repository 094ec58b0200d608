# SPDX-License-Identifier: Apache-2.0
"""Seeds of the random numbers that programs draw."""

from __future__ import annotations

import hashlib

from covrl.rewards.sandbox.test_formats import CallTest


def derive_seed(*parts: bytes) -> int:
  """Returns a seed of 32 bits that depends on all parts.

  A program's seed must depend on nothing that is hidden from it: guesses of an
  expected result could be tested by the seed.
  """
  digest = hashlib.sha256()
  for part in parts:
    # With the length, so that a part cannot continue in the next one.
    digest.update(b'%d ' % len(part))
    digest.update(part)
  return int.from_bytes(digest.digest()[:4], 'big')


def call_seed(program: bytes, test: CallTest) -> int:
  """Returns the seed of a call: of the program, and of name and arguments."""
  # Not from the marshalled arguments, which depend on what else refers to them.
  name = test.name.encode('utf-8', 'surrogatepass')
  return derive_seed(program, name, test.arguments_json)
