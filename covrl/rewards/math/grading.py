# SPDX-License-Identifier: Apache-2.0
"""Grades of answers to mathematical problems, and the reward made of them.

From cheap to dear: the spelling, the numbers, the meaning as far as it can be
read here, math-verify. The first two run where they are called; the rest is for
worker processes, which can be killed.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from fractions import Fraction

from covrl.rewards.math.ast import Unreadable
from covrl.rewards.math.compare_answers import words
from covrl.rewards.math.equivalence import Verdict, same
from covrl.rewards.math.evaluate import Undefined
from covrl.rewards.math.extraction import extract, reference_answer
from covrl.rewards.math.math_verify import Opinion, ask
from covrl.rewards.math.normalize import clean, key
from covrl.rewards.math.numeric import OutOfTime, TimeLimit
from covrl.rewards.math.parser import read
from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.pool import RewardPool
from covrl.rewards.reward import Reward

# Longer answers are compared as strings alone.
MAX_LENGTH = 2000

# Of computing, for what is read here and for what math-verify is asked.
READING_SECONDS = 0.6
ASKING_SECONDS = 0.8
# Until math-verify is given up, and until a worker that does not answer is
# killed: with all else below three.
PATIENCE = 2.0
WORKER_SECONDS = 2.7

_INTEGRAL = r'\int_0^1 x \, dx'
EXAMPLE = (
  f'Answer: {_INTEGRAL}\n#### {_INTEGRAL}\n\\boxed{{{_INTEGRAL}}}',
  '1/2',
)
"""A response, by every rule, and its reference, with which workers warm up."""

_PLAIN = re.compile(r'-?(?:\d{1,300}\.?\d{0,300}|\.\d{1,300})')
_DATED = re.compile(r'[a-zA-Z0-9 ,]*[a-zA-Z]{3}[a-zA-Z0-9 ,]*')
_PROSE = re.compile(r"\(?[^\W\d_]+(?:[ .,;:'!?()-]+[^\W\d_]+)*[).!?]*")
_NAME = re.compile(r'\A\s*[a-zA-Z](?:_\w|\([a-z]\))?\s*=')

_RIGHT = Outcome(1.0, Status.SCORED)
_WRONG = Outcome(0.0, Status.WRONG)


def grade_math(
  response: str, reference: str | int | float, *, rule: str = 'boxed'
) -> Outcome:
  r"""Whether the answer that a response states is the reference.

  It may be called from any thread of any program. What the spelling does not
  decide goes to worker processes, which start at the first such call (a second
  or two) and end with the program. Every call returns within three seconds.

  >>> grade_math(r'Hence \boxed{\dfrac12}.', '0.5').score
  1.0

  Args:
    response: any text.
    reference: the right answer, in TeX or plain; of a solution with a box or
      `####`, what is marked.
    rule: where the answer is; one of `RULES`.

  Returns:
    1 and `SCORED`, or 0 and `WRONG`, `UNPARSABLE` (there is no answer),
    `TIMEOUT` or `CRASH` (comparing it takes too long, or too much memory).
    Where the judging itself failed, NaN and `INFRASTRUCTURE`.

  Raises:
    ValueError: there is no reference, or no such rule.
  """
  answer, wanted = extract(response, rule), reference_answer(reference)
  known = _glance(answer, wanted)
  if known is not None or answer is None:
    return known or _WRONG
  try:
    (outcome,) = _Workers.pool().submit([answer], [wanted]).result()
  except RuntimeError as error:
    return Outcome(float('nan'), Status.INFRASTRUCTURE, str(error))
  if outcome.is_judged or outcome.status is Status.INFRASTRUCTURE:
    return outcome
  detail = f'a worker ended with {outcome.status.value}: {outcome.detail}'
  return Outcome(float('nan'), Status.INFRASTRUCTURE, detail)


def maths_reward(
  *,
  rule: str = 'boxed',
  name: str = 'maths',
  weight: float = 1.0,
  sources: tuple[str, ...] = (),
) -> Reward:
  """A part that is 1 where the answer is right, else 0; see `grade_math`.

  Args:
    rule: where the answer is; one of `RULES`.
    name: see `Reward`.
    weight: likewise.
    sources: likewise.

  Raises:
    ValueError: there is no such rule.
  """
  extract('', rule)
  return Reward(
    name=name,
    score=functools.partial(score_math, rule=rule),
    weight=weight,
    sources=sources,
    example=EXAMPLE,
  )


def score_math(
  response: str, reference: str | int | float, *, rule: str = 'boxed'
) -> Outcome:
  """What `grade_math` gives, in the process that calls it: for workers."""
  answer, wanted = extract(response, rule), reference_answer(reference)
  known = _glance(answer, wanted)
  if known is not None or answer is None:
    return known or _WRONG
  # There is no hurry in training, and others want the processor, too.
  return compare(answer, wanted, patience=2 * PATIENCE)


def compare(
  answer: str, reference: str, *, patience: float = PATIENCE
) -> Outcome:
  """Whether two answers say the same, for workers.

  Args:
    answer: as it is written.
    reference: likewise.
    patience: seconds for math-verify to get its share of the processor.
  """
  wanted, given = '', ''
  try:
    with TimeLimit(READING_SECONDS):
      wanted, given = clean(reference), clean(answer)
      verdict = _read_and_compared(wanted, given)
  except OutOfTime:
    return Outcome(0.0, Status.TIMEOUT, f'not compared in {READING_SECONDS} s')
  except MemoryError:
    return Outcome(0.0, Status.CRASH, 'comparing took too much memory')
  if verdict is not None:
    return _RIGHT if verdict else _WRONG
  wanted, given = _NAME.sub('', wanted, 1), _NAME.sub('', given, 1)
  match ask(wanted, given, ASKING_SECONDS, patience):
    case Opinion.SAME:
      return _RIGHT
    case Opinion.DIFFERENT:
      return _WRONG
    case Opinion.TIMEOUT:
      detail = 'math-verify did not come to an end'
      return Outcome(0.0, Status.TIMEOUT, detail)
    case Opinion.CRASH:
      return Outcome(0.0, Status.CRASH, 'math-verify ended without a verdict')
    case Opinion.STARVED:
      detail = 'math-verify got too little of the processor'
      return Outcome(float('nan'), Status.INFRASTRUCTURE, detail)


def _glance(answer: str | None, reference: str) -> Outcome | None:
  """The outcome where the spelling or plain numbers decide it."""
  if answer is None:
    return Outcome(0.0, Status.UNPARSABLE, 'there is no answer')
  if answer == reference:
    return _RIGHT
  if max(len(answer), len(reference)) > MAX_LENGTH:
    return _WRONG
  if _PLAIN.fullmatch(answer) and _PLAIN.fullmatch(reference):
    same_number = Fraction(answer) == Fraction(reference)
    return _RIGHT if same_number else _WRONG
  wanted, given = clean(reference), clean(answer)
  if not given:
    return Outcome(0.0, Status.UNPARSABLE, 'the answer is empty')
  if key(wanted) == key(given) or _is_same_prose(wanted, given):
    return _RIGHT
  return None


def _is_same_prose(wanted: str, given: str) -> bool:
  """Whether two texts are the same words, whatever their case and marks."""
  one, other = (
    text.replace('\\text', '').replace('{', '').replace('}', '').strip()
    for text in (wanted, given)
  )
  if not any(
    pattern.fullmatch(one) and pattern.fullmatch(other)
    for pattern in (_PROSE, _DATED)
  ):
    return False
  if words(one) != words(other):
    return False
  # Some letters beside each other may be symbols, whose case counts.
  is_text = '\\text' in wanted + given or '(' in wanted + given
  return is_text or len(words(one)) > 3 or one == other


def _read_and_compared(wanted: str, given: str) -> Verdict:
  """Whether two clean answers agree; `None` where that is beyond us."""
  try:
    reference, answer = read(wanted), read(given)
    verdict = same(reference, answer)
    # A list such as 100,200 looks like a number unless the reference says.
    if not verdict and read(wanted, merge=False) == reference:
      loose = read(given, merge=False)
      verdict = verdict if loose == answer else same(reference, loose)
    return verdict
  except (Unreadable, Undefined, RecursionError):
    return None


class _Workers:
  """The processes behind `grade_math`, one pool for the whole program."""

  _lock = threading.Lock()
  _pool: RewardPool | None = None

  @classmethod
  def pool(cls) -> RewardPool:
    """The pool; made when it is first needed."""
    with cls._lock:
      if cls._pool is None:
        cls._pool = RewardPool(
          compare, timeout=WORKER_SECONDS, example=(_INTEGRAL, '1/2')
        )
      return cls._pool

  @classmethod
  def forget(cls) -> None:
    """A forked process has the pool's memory, but none of its threads."""
    cls._lock = threading.Lock()
    cls._pool = None


os.register_at_fork(after_in_child=_Workers.forget)
