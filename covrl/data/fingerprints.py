# SPDX-License-Identifier: Apache-2.0
"""Digests of problems, by which a resumed run recognises its data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from covrl.data.problems import Problem


def problems_fingerprint(problems: Iterable[Problem]) -> str:
  """Returns a digest of everything in problems that a run reads.

  Where the problems are stored does not matter: a moved or copied file, also
  one of another format, has the same digest.

  Args:
    problems: the problems, in order.

  Returns:
    SHA-256 in hexadecimal; an empty text, for unknown, if a reference cannot be
    written as JSON, such as an integer of 5,000 digits.

  >>> sums = Problem(prompt='1 + 1', reference=2, source='sums')
  >>> problems_fingerprint([sums])[:8]
  '67a5e112'
  """
  digest = hashlib.sha256()
  for problem in problems:
    content = (
      problem.prompt,
      problem.reference,
      problem.source,
      problem.solution,
      problem.messages,
      problem.kind,
      problem.pass_rate,
      problem.key,
    )
    try:
      text = json.dumps(content, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
      return ''
    digest.update(f'{text}\n'.encode())
  return digest.hexdigest()


def text_fingerprint(*parts: str) -> str:
  """Returns a digest of texts; empty if one of them is empty.

  A source made of several others has a fingerprint if all of them have one.

  >>> text_fingerprint('a', 'bc') == text_fingerprint('ab', 'c')
  False
  >>> text_fingerprint('a', '')
  ''
  """
  if not all(parts):
    return ''
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
