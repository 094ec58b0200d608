# SPDX-License-Identifier: Apache-2.0
"""math-verify, for expressions that cannot be read here, where it does no harm.

It knows sums, integrals and limits, and it can be made to compute for ever or to
accept what is wrong. So it is asked about single expressions alone, none of
which is a tower or a large factorial, and each time in a child process that is
killed when its time is over: its own alarms do not always ring, and whatever
memory it takes is given back.

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

MAX_LENGTH = 400
MEMORY = 1 << 29

_NO_ALARM = 0

_RELATION = re.compile(
  r'[=<>,;:]|\\(?:le|ge|ne|in|approx|equiv|to|pm|mp|cup|cap|begin|text)\b'
)
# What math-verify reads, and covrl does not.
_OPERATOR = re.compile(r'\\(?:sum|prod|i*int|oint|lim|frac\s*\{\s*d|det|hom)')
# Where sums begin and limits go is no relation of the whole.
_BOUND = re.compile(r'_\s*\{[^{}]*\}')
_LARGE = re.compile(
  r'\d{40}'
  r'|\^\s*\{?\s*[-+(]*\s*\d{5}'
  r'|\^[^+\-=,]{0,40}\^'
  r'|\d{4}[\s)}]*!|[!})\]]\s*!'
)


class Opinion(enum.Enum):
  """What came of asking."""

  SAME = 0
  DIFFERENT = 1
  TIMEOUT = 2
  CRASH = 3
  STARVED = 4


def ask(
  reference: str, answer: str, seconds: float, patience: float
) -> Opinion:
  """Whether math-verify takes two expressions for the same.

  Args:
    reference: clean TeX.
    answer: likewise.
    seconds: of computing, after which the child ends.
    patience: seconds after which it is killed in any case.

  Returns:
    `TIMEOUT` and `CRASH` (of memory, mostly) are the doing of the expressions;
    `STARVED` is not: the child got too little of the processor to say.
  """
  texts = reference, answer
  if not any(map(_OPERATOR.search, texts)) or not all(map(_is_harmless, texts)):
    return Opinion.DIFFERENT
  # What is imported before the fork need not be imported after each.
  warm_up()
  reader, writer = os.pipe()
  child = os.fork()
  if not child:
    os.close(reader)
    _answer(reference, answer, writer, seconds, patience)
  os.close(writer)
  try:
    ready, _, _ = select.select([reader], [], [], patience)
    said = os.read(reader, 1) if ready else b''
  finally:
    os.close(reader)
    os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
  if said:
    return Opinion(said[0])
  if os.WTERMSIG(status) == signal.SIGPROF:
    return Opinion.TIMEOUT
  if ready:
    return Opinion.CRASH
  computed = used.ru_utime + used.ru_stime
  return Opinion.TIMEOUT if computed > seconds / 2 else Opinion.STARVED


@functools.cache
def warm_up() -> None:
  """Imports math-verify, and has it make its tables."""
  import math_verify

  logging.getLogger('math_verify').setLevel(logging.CRITICAL)
  math_verify.verify(_parse('2'), _parse('x+1'), timeout_seconds=_NO_ALARM)


def _is_harmless(text: str) -> bool:
  return (
    len(text) <= MAX_LENGTH
    and not _RELATION.search(_BOUND.sub('', text))
    and not _LARGE.search(text)
  )


def _answer(
  reference: str, answer: str, writer: int, seconds: float, patience: float
) -> NoReturn:
  """The child: says what math-verify says, and ends."""
  said = Opinion.CRASH
  with contextlib.suppress(BaseException):
    # Signals that end the process whatever it is at, in C code, too; the second
    # where the parent is gone.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, 2 * patience)
    _limit_memory()
    same = _is_same(reference, answer)
    said = Opinion.SAME if same else Opinion.DIFFERENT
  os.write(writer, bytes([said.value]))
  os._exit(0)


def _is_same(reference: str, answer: str) -> bool:
  import math_verify

  # To more digits than by default, or 0.333333 would be a third.
  gold, given = _parse(reference), _parse(answer)
  return bool(gold and given) and all(
    math_verify.verify(
      one,
      other,
      float_rounding=15,
      numeric_precision=30,
      timeout_seconds=_NO_ALARM,
    )
    for one, other in ((gold, given), (given, gold))
  )


def _parse(text: str) -> list[Any]:
  import math_verify

  return math_verify.parse(
    f'${text}$',
    extraction_config=[math_verify.LatexExtractionConfig()],
    fallback_mode='no_fallback',
    parsing_timeout=_NO_ALARM,
  )


def _limit_memory() -> None:
  if sys.platform == 'linux':
    import resource

    with open('/proc/self/statm') as file:
      pages = int(file.read().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
      most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
