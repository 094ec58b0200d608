# SPDX-License-Identifier: Apache-2.0
"""Grading of mathematical answers, and the reward based on it.

Steps by increasing cost: comparison as text, as plain numbers, as parsed
expressions, by math-verify. The first two run in the calling process, the others
in worker processes, which can be killed.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from fractions import Fraction

from covrl.rewards.math.ast import ParseError
from covrl.rewards.math.compare_answers import normalized_words
from covrl.rewards.math.equivalence import Verdict, equivalent
from covrl.rewards.math.evaluate import Undefined
from covrl.rewards.math.extraction import extract, reference_answer
from covrl.rewards.math.math_verify import MathVerifyResult, check_equivalence
from covrl.rewards.math.normalize import normalize_tex, without_spaces
from covrl.rewards.math.parser import parse
from covrl.rewards.math.time_limit import TimeLimit, TimeLimitExceeded
from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.pool import RewardPool
from covrl.rewards.reward import Reward

# Longer answers are only compared as text.
MAX_LENGTH = 2000

# CPU seconds for comparing parsed answers, and for math-verify.
COMPARE_CPU_SECONDS = 0.6
MATH_VERIFY_CPU_SECONDS = 0.8
# Seconds until math-verify is killed, and until an unresponsive worker is killed:
# together with everything else below three seconds.
MATH_VERIFY_WALL_SECONDS = 2.0
WORKER_SECONDS = 2.7

_INTEGRAL = r'\int_0^1 x \, dx'
EXAMPLE = (
  f'Answer: {_INTEGRAL}\n#### {_INTEGRAL}\n\\boxed{{{_INTEGRAL}}}',
  '1/2',
)
"""A response, valid for every rule, and its reference, to warm workers up."""

_NUMBER = re.compile(r'-?(?:\d{1,300}\.?\d{0,300}|\.\d{1,300})')
_PROSE_WITH_NUMBERS = re.compile(r'[a-zA-Z0-9 ,]*[a-zA-Z]{3}[a-zA-Z0-9 ,]*')
_PROSE = re.compile(r"\(?[^\W\d_]+(?:[ .,;:'!?()-]+[^\W\d_]+)*[).!?]*")
_NAME_PREFIX = re.compile(r'\A\s*[a-zA-Z](?:_\w|\([a-z]\))?\s*=')

_CORRECT = Outcome(1.0, Status.SCORED)
_WRONG = Outcome(0.0, Status.WRONG)


def grade_math(
  response: str, reference: str | int | float, *, rule: str = 'boxed'
) -> Outcome:
  r"""Grades the answer of a response against a reference.

  Can be called from any thread of any program. Answers that text and plain numbers
  do not decide go to worker processes, which start at the first such call (one or
  two seconds) and end with the program. Every call returns within three seconds.

  >>> grade_math(r'Hence \boxed{\dfrac12}.', '0.5').score
  1.0

  Args:
    response: any text.
    reference: the correct answer, in TeX or plain text; or a solution that marks
      it by a box or `####`.
    rule: extraction rule, one of `RULES`.

  Returns:
    Score 1 with `SCORED`, or 0 with `WRONG`, `UNPARSABLE` (without an answer),
    `TIMEOUT` or `CRASH` (the comparison takes too much time or memory). If
    grading itself failed, NaN with `INFRASTRUCTURE`.

  Raises:
    ValueError: if the reference is empty or the rule is unknown.
  """
  answer, expected = extract(response, rule), reference_answer(reference)
  outcome = _quick_outcome(answer, expected)
  if outcome is not None or answer is None:
    return outcome or _WRONG
  try:
    (outcome,) = _Workers.pool().submit([answer], [expected]).result()
  except RuntimeError as error:
    return Outcome(float('nan'), Status.INFRASTRUCTURE, str(error))
  if outcome.has_score or outcome.status is Status.INFRASTRUCTURE:
    return outcome
  detail = f'a worker ended with {outcome.status.value}: {outcome.detail}'
  return Outcome(float('nan'), Status.INFRASTRUCTURE, detail)


def math_reward(
  *,
  rule: str = 'boxed',
  name: str = 'maths',
  weight: float = 1.0,
  sources: tuple[str, ...] = (),
) -> Reward:
  """Returns a reward of 1 for a correct answer, else 0; see `grade_math`.

  Args:
    rule: extraction rule, one of `RULES`.
    name: name in the metrics, see `Reward`.
    weight: weight in the total, see `Reward`.
    sources: data sources that it grades, see `Reward`.

  Raises:
    ValueError: if the rule is unknown.
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
  """Grades like `grade_math`, within the calling process (a worker)."""
  answer, expected = extract(response, rule), reference_answer(reference)
  outcome = _quick_outcome(answer, expected)
  if outcome is not None or answer is None:
    return outcome or _WRONG
  # Twice the limit of `grade_math`: in training, processors are busier.
  return compare(answer, expected, wall_seconds=2 * MATH_VERIFY_WALL_SECONDS)


def compare(
  answer: str, reference: str, *, wall_seconds: float = MATH_VERIFY_WALL_SECONDS
) -> Outcome:
  """Compares two answers, within the calling process (a worker).

  Args:
    answer: the answer as written.
    reference: the reference as written.
    wall_seconds: wall-clock seconds that math-verify may take.
  """
  reference_text, answer_text = '', ''
  try:
    with TimeLimit(COMPARE_CPU_SECONDS):
      reference_text, answer_text = (
        normalize_tex(reference),
        normalize_tex(answer),
      )
      verdict = _parse_and_compare(reference_text, answer_text)
  except TimeLimitExceeded:
    return Outcome(
      0.0, Status.TIMEOUT, f'not compared in {COMPARE_CPU_SECONDS} s'
    )
  except MemoryError:
    return Outcome(0.0, Status.CRASH, 'comparing took too much memory')
  if verdict is not None:
    return _CORRECT if verdict else _WRONG
  reference_text, answer_text = (
    _NAME_PREFIX.sub('', reference_text, 1),
    _NAME_PREFIX.sub('', answer_text, 1),
  )
  match check_equivalence(
    reference_text, answer_text, MATH_VERIFY_CPU_SECONDS, wall_seconds
  ):
    case MathVerifyResult.SAME:
      return _CORRECT
    case MathVerifyResult.DIFFERENT:
      return _WRONG
    case MathVerifyResult.TIMEOUT:
      detail = 'math-verify took too long'
      return Outcome(0.0, Status.TIMEOUT, detail)
    case MathVerifyResult.CRASH:
      return Outcome(0.0, Status.CRASH, 'math-verify exited without a result')
    case MathVerifyResult.STARVED:
      detail = 'math-verify got too little CPU time, or was killed'
      return Outcome(float('nan'), Status.INFRASTRUCTURE, detail)


def _quick_outcome(answer: str | None, reference: str) -> Outcome | None:
  """Returns the outcome if text or plain numbers decide it, else `None`."""
  if answer is None:
    return Outcome(0.0, Status.UNPARSABLE, 'the response contains no answer')
  if answer == reference:
    return _CORRECT
  if max(len(answer), len(reference)) > MAX_LENGTH:
    return _WRONG
  if _NUMBER.fullmatch(answer) and _NUMBER.fullmatch(reference):
    same_number = Fraction(answer) == Fraction(reference)
    return _CORRECT if same_number else _WRONG
  reference_text, answer_text = normalize_tex(reference), normalize_tex(answer)
  if not answer_text:
    return Outcome(0.0, Status.UNPARSABLE, 'the answer is empty')
  if without_spaces(reference_text) == without_spaces(
    answer_text
  ) or _is_same_prose(reference_text, answer_text):
    return _CORRECT
  return None


def _is_same_prose(reference_text: str, answer_text: str) -> bool:
  """Returns whether two texts have the same words, ignoring case and punctuation."""
  one, other = (
    text.replace('\\text', '').replace('{', '').replace('}', '').strip()
    for text in (reference_text, answer_text)
  )
  if not any(
    pattern.fullmatch(one) and pattern.fullmatch(other)
    for pattern in (_PROSE, _PROSE_WITH_NUMBERS)
  ):
    return False
  if normalized_words(one) != normalized_words(other):
    return False
  # Short letter sequences may be symbols, whose case matters.
  is_text = (
    '\\text' in reference_text + answer_text
    or '(' in reference_text + answer_text
  )
  return is_text or len(normalized_words(one)) > 3 or one == other


def _parse_and_compare(reference_text: str, answer_text: str) -> Verdict:
  """Compares two normalized answers; `None` if they cannot be parsed."""
  try:
    reference, answer = parse(reference_text), parse(answer_text)
    verdict = equivalent(reference, answer)
    # A list such as 100,200 is read as a number. If the reference is the same without
    # merging digits, the answer is also read as a list.
    if (
      not verdict and parse(reference_text, merge_thousands=False) == reference
    ):
      unmerged = parse(answer_text, merge_thousands=False)
      if unmerged != answer:
        verdict = equivalent(reference, unmerged)
    return verdict
  except (ParseError, Undefined, RecursionError):
    return None


class _Workers:
  """The worker pool of `grade_math`, one per process."""

  _lock = threading.Lock()
  _pool: RewardPool | None = None

  @classmethod
  def pool(cls) -> RewardPool:
    """Returns the pool, which is started at first use."""
    with cls._lock:
      if cls._pool is None:
        cls._pool = RewardPool(
          compare, timeout=WORKER_SECONDS, example=(_INTEGRAL, '1/2')
        )
      return cls._pool

  @classmethod
  def reset_after_fork(cls) -> None:
    """Drops the pool in a forked process, where its threads do not exist."""
    cls._lock = threading.Lock()
    cls._pool = None


os.register_at_fork(after_in_child=_Workers.reset_after_fork)
