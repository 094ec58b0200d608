# SPDX-License-Identifier: Apache-2.0
"""Fallback grading by the math-verify library, in a killable child process.

math-verify supports sums, integrals and limits, but it can compute for ever or
accept wrong answers. It is therefore only used for single expressions without
huge powers or factorials, and each time in a forked child that is killed at its
time limit: the library's own time limits are unreliable, and the child's memory
is returned.

Only a process without threads may call this: a worker, never the trainer.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import logging
import os
import re
import select
import signal
import sys
from typing import Any, NoReturn

MAX_LENGTH = 400  # characters of an answer that is given to math-verify
MEMORY_BYTES = 1 << 29  # bytes that a child may use beyond those of its parent

_NO_ALARM = 0  # turns off math-verify's time limit, which sets a signal handler

_RELATION = re.compile(
  r'[=<>,;:]|\\(?:le|ge|ne|in|approx|equiv|to|pm|mp|cup|cap|begin|text)\b'
)
# Operators that math-verify supports and covrl does not.
_OPERATOR = re.compile(r'\\(?:sum|prod|i*int|oint|lim|frac\s*\{\s*d|det|hom)')
# Bounds of sums and limits, whose relation signs do not count.
_BOUND = re.compile(r'_\s*\{[^{}]*\}')
# Upper bounds, which are not powers, and what must not be in them.
_UPPER_BOUND = re.compile(
  r'(\\(?:sum|prod|i*int|oint)\s*(?:_\s*(?:\{[^{}]*\}|\w)\s*)?)'
  r'\^\s*(\\infty|\w|\{[^{}^]*\})'
)
_LARGE_BOUND = re.compile(r'\d{5}|!')
# Numbers of 40 digits, powers of 5 digits, towers of powers, large factorials.
_LARGE = re.compile(
  r'\d{40}'
  r'|\^\s*\{?\s*[-+(]*\s*\d{5}'
  r'|\^[^+\-=,]{0,40}\^'
  r'|\d{4}[\s)}]*!|[!})\]]\s*!'
)


class MathVerifyResult(enum.Enum):
  """Result of a comparison by math-verify."""

  SAME = 0
  DIFFERENT = 1
  TIMEOUT = 2
  CRASH = 3
  STARVED = 4


def check_equivalence(
  reference: str, answer: str, cpu_seconds: float, wall_seconds: float
) -> MathVerifyResult:
  """Compares two expressions with math-verify.

  Args:
    reference: the reference as normalized TeX.
    answer: the answer as normalized TeX.
    cpu_seconds: CPU time limit of the child.
    wall_seconds: wall-clock seconds after which the child is killed.

  Returns:
    The result; `DIFFERENT` without a comparison if covrl supports all operators
    itself or an expression is unsafe. `TIMEOUT` and `CRASH` (mostly out of
    memory) are caused by the expressions; `STARVED` means that the child got too
    little CPU time or was killed, as by the system when memory runs out.
  """
  texts = reference, answer
  if not any(map(_OPERATOR.search, texts)) or not all(map(_is_safe, texts)):
    return MathVerifyResult.DIFFERENT
  # Imported once before forking instead of in every child.
  warm_up()
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    os.close(reader)
    _run_child(reference, answer, writer, cpu_seconds, wall_seconds)
  os.close(writer)
  try:
    ready, _, _ = select.select([reader], [], [], wall_seconds)
    reply = os.read(reader, 1) if ready else b''
  finally:
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
  if reply:
    return MathVerifyResult(reply[0])
  if os.WTERMSIG(status) == signal.SIGPROF:
    return MathVerifyResult.TIMEOUT
  if ready:
    # Not by this process, which kills a child only without a reply in time.
    was_killed = os.WTERMSIG(status) == signal.SIGKILL
    return MathVerifyResult.STARVED if was_killed else MathVerifyResult.CRASH
  used_seconds = usage.ru_utime + usage.ru_stime
  return (
    MathVerifyResult.TIMEOUT
    if used_seconds > cpu_seconds / 2
    else MathVerifyResult.STARVED
  )


@functools.cache
def warm_up() -> None:
  """Imports math-verify and makes it build its tables."""
  import math_verify

  logging.getLogger('math_verify').setLevel(logging.CRITICAL)
  math_verify.verify(_parse('2'), _parse('x+1'), timeout_seconds=_NO_ALARM)


def _is_safe(text: str) -> bool:
  """Returns whether an answer is a short expression without large numbers."""
  bounds = [bound for _, bound in _UPPER_BOUND.findall(text)]
  return (
    len(text) <= MAX_LENGTH
    and not _RELATION.search(_BOUND.sub('', text))
    and not _LARGE.search(_UPPER_BOUND.sub(r'\1', text))
    and not any(map(_LARGE_BOUND.search, bounds))
  )


def _run_child(
  reference: str,
  answer: str,
  writer: int,
  cpu_seconds: float,
  wall_seconds: float,
) -> NoReturn:
  """Runs the comparison in the child, writes the result, and exits."""
  reply = MathVerifyResult.CRASH
  with contextlib.suppress(BaseException):
    # These signals end the process even inside C code; the second one in case
    # the parent has died.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
    signal.setitimer(signal.ITIMER_REAL, 2 * wall_seconds)
    _limit_memory()
    same = _is_same(reference, answer)
    reply = MathVerifyResult.SAME if same else MathVerifyResult.DIFFERENT
  os.write(writer, bytes([reply.value]))
  os._exit(0)


def _is_same(reference: str, answer: str) -> bool:
  """Returns whether math-verify accepts the answer, in both directions."""
  import math_verify

  # With more digits than by default, or 0.333333 would equal 1/3.
  reference_terms, answer_terms = _parse(reference), _parse(answer)
  return bool(reference_terms and answer_terms) and all(
    math_verify.verify(
      left,
      right,
      float_rounding=15,
      numeric_precision=30,
      timeout_seconds=_NO_ALARM,
    )
    for left, right in (
      (reference_terms, answer_terms),
      (answer_terms, reference_terms),
    )
  )


def _parse(text: str) -> list[Any]:
  """Parses TeX with math-verify."""
  import math_verify

  return math_verify.parse(
    f'${text}$',
    extraction_config=[math_verify.LatexExtractionConfig()],
    fallback_mode='no_fallback',
    parsing_timeout=_NO_ALARM,
  )


def _limit_memory() -> None:
  """Limits further allocations to `MEMORY_BYTES` (on Linux)."""
  if sys.platform == 'linux':
    import resource

    with open('/proc/self/statm') as file:
      pages = int(file.read().split()[0])
    max_bytes = pages * resource.getpagesize() + MEMORY_BYTES
    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit != resource.RLIM_INFINITY:
      max_bytes = min(max_bytes, hard_limit)
    resource.setrlimit(resource.RLIMIT_AS, (max_bytes, max_bytes))
