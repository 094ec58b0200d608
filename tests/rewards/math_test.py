# SPDX-License-Identifier: Apache-2.0
"""Grading of mathematical answers: verdicts, extraction and parsing."""

import collections
import math
import os
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rewards import math_battery

from covrl.rewards import RewardPool, Status, grade_math, score_math
from covrl.rewards.math import grading
from covrl.rewards.math.ast import ParseError
from covrl.rewards.math.evaluate import OutOfBounds, Undefined, evaluate
from covrl.rewards.math.extraction import RULES, extract, reference_answer
from covrl.rewards.math.grading import compare
from covrl.rewards.math.math_verify import MathVerifyResult, check_equivalence
from covrl.rewards.math.normalize import normalize_tex, without_spaces
from covrl.rewards.math.numeric import equal
from covrl.rewards.math.parser import parse
from covrl.rewards.math.units import unit

pytestmark = pytest.mark.usefixtures('no_math_verify')

BATTERY = list(math_battery.pairs())


@pytest.fixture(scope='module', name='pool')
def make_pool():
  """A worker pool as in a run, with ample time limits."""
  with RewardPool(
    score_math, workers=1, timeout=60.0, example=grading.EXAMPLE
  ) as pool:
    yield pool


def test_battery_covers_all_categories():
  counts = collections.Counter(pair.category for pair in BATTERY)
  assert len(BATTERY) >= 120
  assert counts.keys() >= {
    *('fractions', 'decimals', 'percentages', 'tuples', 'sets and lists'),
    *('intervals and inequalities', 'matrices', 'units', 'text', 'radicals'),
    *('complex', 'nested braces and typography', 'boxes', 'injections'),
    'hangs',
  }
  assert min(counts.values()) >= 10


def test_every_pair_of_the_battery_gets_its_verdict(pool):
  outcomes = pool.submit(
    [pair.response for pair in BATTERY], [pair.reference for pair in BATTERY]
  ).result()
  wrong_verdicts = [
    f'line {pair.line}: {pair.reference} || {pair.response}: {outcome}'
    for pair, outcome in zip(BATTERY, outcomes, strict=True)
    # A machine too busy to run math-verify gives no score.
    if outcome.score != pair.score
    and not (pair.category == 'hangs' and math.isnan(outcome.score))
  ]
  assert not wrong_verdicts, '\n'.join(wrong_verdicts)


@pytest.mark.parametrize(
  ('response', 'status'),
  [
    (r'\boxed{7}', Status.SCORED),
    (r'\boxed{8}', Status.WRONG),
    ('7', Status.UNPARSABLE),
    (r'\boxed{ }', Status.UNPARSABLE),
    (r'\boxed{\,}', Status.UNPARSABLE),
    (r'\boxed{x = 8}', Status.WRONG),
  ],
)
def test_answers_have_the_status_of_their_verdict(response, status):
  outcome = grade_math(response, '7')
  assert outcome.status is status
  assert outcome.score == (1.0 if status is Status.SCORED else 0.0)


def test_refuses_invalid_references():
  no_text: Any = None
  for reference in (' ', no_text, True, math.nan):
    with pytest.raises(ValueError, match='must be a text or a finite number'):
      grade_math(r'\boxed{7}', reference)
  with pytest.raises(TypeError, match='response must be a text, got NoneType'):
    grade_math(no_text, '7')
  with pytest.raises(ValueError, match="boxed, gsm8k, dapo, number, got 'box'"):
    grade_math(r'\boxed{7}', '7', rule='box')


@pytest.mark.parametrize(
  ('rule', 'response', 'answer'),
  [
    ('boxed', r'\boxed{1} then \boxed{\frac{2}{3}}', r'\frac{2}{3}'),
    ('boxed', r'\boxed{1} then \boxed{2', '1'),
    ('boxed', r'\boxed{a \boxed{2} b}', r'a \boxed{2} b'),
    ('boxed', r'\boxed{\{1\}}', r'\{1\}'),
    ('boxed', r'}}{ \boxed{5}', '5'),
    ('boxed', r'\boxed 12$', '12'),
    ('boxed', '#### 5', None),
    ('gsm8k', '3 + 4 = 7\n#### 7\n', '7'),
    ('gsm8k', '#### 6\n#### 1,007 apples', '1,007 apples'),
    ('gsm8k', r'\boxed{7}', None),
    ('dapo', 'answer: 3\nAnswer: $7$', '$7$'),
    ('dapo', '**Answer:**\n7', '7'),
    ('dapo', 'The result is 7', None),
    # An answer on lines of its own.
    ('dapo', 'Thus.\nAnswer:\n\\[\n\\boxed{34}\n\\]', '34'),
    ('dapo', 'Answer:\n$$\n34\n$$\nThat is all.', '34'),
    ('dapo', 'Answer: \\[\n34\n\\]', '34'),
    ('dapo', 'Answer:\n\\begin{equation*}\n34\n\\end{equation*}', '34'),
    ('dapo', 'Answer:\n```\n34\n```', '34'),
    ('dapo', 'Answer:\n\\[34', '34'),
    ('dapo', 'Answer: $x=3$ or $x=4$', '$x=3$ or $x=4$'),
    ('dapo', 'Answer: It is \\boxed{34}.', '34'),
    ('dapo', '\\textbf{Answer:} 34', '34'),
    ('dapo', 'Answer：34', '34'),
    ('gsm8k', '####\n7', '7'),
    ('gsm8k', '#### Answer: 7', '7'),
    ('gsm8k', '#### **Final Answer:**\n7', '7'),
    ('gsm8k', '#### The final answer is 7', '7'),
    # Boxes without braces, and other boxes.
    ('boxed', r'\boxed\frac12.', r'\frac12'),
    ('boxed', r'\boxed\dfrac{\sqrt{2}}{2}x', r'\dfrac{\sqrt{2}}{2}'),
    ('boxed', r'\boxed\frac\pi2.', r'\frac\pi2'),
    ('boxed', r'\boxed\sqrt[3]{2}$', r'\sqrt[3]{2}'),
    ('boxed', r'\boxed-\frac12', r'-\frac12'),
    ('boxed', r'\boxed\text{(A)}', r'\text{(A)}'),
    ('boxed', r'\boxed\{1,2\}$', r'\{1,2\}'),
    ('boxed', r'\boxed\left(1,2\right)$', r'\left(1,2\right)'),
    ('boxed', r'\fbox{2}', '2'),
    ('boxed', r'\framebox[2cm][c]{2}', '2'),
    ('boxed', r'\boxedanswer{2}', None),
    ('boxed', r'\boxed $', None),
    # The last number, whatever is around it.
    ('number', ' 86', '86'),
    ('number', '37 + 49 = 86.', '86'),
    ('number', ' 86\n\nThis is a', '86'),
    ('number', ' 86\n\nThis is 1', '1'),
    ('number', '12 - 50 = -38', '-38'),
    ('number', '39 + 49 - 50 =', '50'),
    ('number', '50-12', '12'),
    ('number', '(-3)', '-3'),
    ('number', r'12 - 50 = \boxed{-38}', '-38'),
    ('number', 'The result is **-38**.', '-38'),
    ('number', '**Result:** `-38`', '-38'),
    ('number', '[-3', '-3'),
    ('number', '(50)-12', '12'),
    ('number', 'x-12', '12'),
    ('number', 'about 1,234.50, then', '1,234.50'),
    ('number', 'no number', None),
    ('number', '', None),
  ],
)
def test_extracts_the_answer(rule, response, answer):
  assert extract(response, rule) == answer


@pytest.mark.parametrize(
  'character',
  ['\u200b', '\ufeff', '\u2060', '\u00ad', '\u200e', '\u2069', '\ufe0f'],
)
def test_characters_that_are_displayed_as_nothing_change_no_verdict(character):
  for response, reference, rule in (
    (f'\\boxed{{42{character}}}', '42', 'boxed'),
    (f'\\boxed{{4{character}2}}', '42', 'boxed'),
    (f'\\boxed{{x{character}+1}}', 'x+1', 'boxed'),
    ('\\boxed{42}', f'42{character}', 'boxed'),
    (f'Answer{character}: 42', '42', 'dapo'),
    (f'3{character}4', '34', 'number'),
  ):
    assert score_math(response, reference, rule=rule).score == 1


def test_extracts_from_long_responses_quickly():
  responses = {
    'open boxes': r'\boxed{' * 400_000,
    'nested boxes': r'\boxed{' * 200_000 + '}' * 200_000,
    'bare boxes': r'\boxed 7 ' * 300_000,
    'bare fractions': r'\boxed\frac{' * 200_000,
    'bare brackets': r'\boxed\left(' * 200_000,
    'displays': 'answer: \\[\n' * 200_000,
    'hashes': '#### ' * 500_000,
    'numbers': '1,' * 100_000 + '- ' * 100_000,
    'colons': 'answer:' * 400_000,
    'spaces': r'\boxed{' + ' ' * 2_000_000 + '7}',
  }
  for name, response in responses.items():
    for rule in RULES:
      start = time.process_time()
      extract(response, rule)
      assert time.process_time() - start < 1.0, (name, rule)


@pytest.mark.parametrize(
  ('text', 'kind'),
  [
    (r'\frac12', 'quotient'),
    ('1,000', 'number'),
    ('10, 20', 'list'),
    ('(1,000)', 'tuple'),
    (r'x = 5', 'relation'),
    (r'[1,2)\cup(3,4]', 'union'),
    (r'\{x \mid x > 3\}', 'builder'),
    ('1:2', 'ratio'),
    ('1011_2', 'based'),
  ],
)
def test_parses_kinds_of_answers(text, kind):
  assert parse(normalize_tex(text)).kind == kind


@pytest.mark.parametrize(
  'text', [r'\sum_{k=1}^n k', '1 2', '(1', r'\frac{1}', r'\unknown', '1 +', '?']
)
def test_refuses_unsupported_answers(text):
  with pytest.raises(ParseError):
    parse(normalize_tex(text))


def test_evaluation_is_exact_and_bounded():
  assert evaluate(parse('0.1 + 0.2'), {}, 60) == evaluate(parse('0.3'), {}, 60)
  for tower in ('9^{9^{9^9}}', '10^{10^{10}}', '2000!', r'\exp(10^6)'):
    with pytest.raises(OutOfBounds):
      evaluate(parse(tower), {}, 60)
  for undefined in ('1/0', r'\ln 0', '0^{-1}', r'\text{cm}'):
    with pytest.raises(Undefined):
      evaluate(parse(normalize_tex(undefined)), {}, 60)


@pytest.mark.parametrize(
  ('first', 'second', 'verdict'),
  [
    (r'\sqrt{2}', '1.' + '41421356237309504880168872420969807856967', False),
    (r'\sqrt{2}\cdot\sqrt{2}', '2', True),
    (r'\sqrt{2}\cdot\sqrt{2} - 2', '0', True),
    ('10^{-30}', '0', False),
    (r'\sqrt{2} \cdot 10^{-20}', r'\sqrt{3} \cdot 10^{-20}', False),
    ('(x+1)^5', 'x^5+5x^4+10x^3+10x^2+5x+1', True),
    ('(x+1)^5', 'x^5+5x^4+10x^3+10x^2+5x+2', False),
    (r'\sqrt{x^2}', 'x', False),
    (r'\sqrt{x^2}', '|x|', True),
    ('n!', 'n(n-1)!', True),
    ('n!', '(n+1)!', False),
    (r'\log 100', '2', True),
    (r'\log 2', r'\ln 2', True),
    ('1/0', '1/0', None),
  ],
)
def test_expressions_are_equal_if_they_have_equal_values(
  first, second, verdict
):
  assert (
    equal(parse(normalize_tex(first)), parse(normalize_tex(second))) is verdict
  )


def test_equivalent_units_have_one_normal_form():
  assert unit('m/s') == unit('meters per second')
  assert unit('km') == (1000, (('metre', 1),))
  assert unit('square feet') == unit('ft^2')
  assert unit('ignore all of what was said before') is None


@pytest.mark.parametrize(
  'text',
  ['8 = 7', '1,2', r'\sum_{k=1}^{9} 9^{9^{9}}', r'\sum_k (k^2)!', 'word'],
)
def test_math_verify_is_not_used_where_it_errs(text, monkeypatch):
  def fork():
    raise AssertionError('math-verify was called')

  monkeypatch.setattr(os, 'fork', fork)
  assert check_equivalence('7', text, 1.0, 1.0) is MathVerifyResult.DIFFERENT


def test_verdicts_are_symmetric():
  for pair in BATTERY:
    if pair.category in ('thousands', 'hangs', 'injections', 'boxes'):
      continue  # the reference decides whether a comma separates thousands
    given_answer = extract(pair.response)
    if given_answer is None:
      assert pair.score == 0.0, pair
      continue
    forwards = compare(given_answer, pair.reference)
    backwards = compare(pair.reference, given_answer)
    assert forwards == backwards, pair


_TEX = st.lists(
  st.sampled_from(
    [
      *('1', '2', '1,000', '0.5', 'x', 'i', 'e', ' ', '+', '-', '/', '^', '_'),
      *('{', '}', '(', ')', '[', ']', '|', ',', '=', '<', '!', "'", '\\{'),
      *('\\}', '\\frac', '\\sqrt', '\\pm', '\\cup', '\\in', '\\infty', '\\%'),
      *('\\text{cm}', '\\text{or}', '\\le', '\\sin', '\\log', '\\\\', '&', ':'),
      *('\\begin{pmatrix}', '\\end{pmatrix}', '\\mathbb{R}', '\\pi', '^\\circ'),
      *('\\overline', '.', '\\binom', '\\over', '\\mid', '\\ldots', '\\$', '½'),
    ]
  ),
  max_size=12,
).map(''.join)


@settings(max_examples=300, deadline=None)
@given(_TEX, st.sampled_from([pair.reference for pair in BATTERY]))
def test_grading_never_raises(answer, reference):
  outcome = score_math(rf'\boxed{{{answer}}}', reference)
  assert outcome.has_score


@settings(max_examples=300, deadline=None)
@given(_TEX | st.text(max_size=20))
def test_normalization_is_idempotent_and_any_answer_is_graded(text):
  cleaned = normalize_tex(text)
  assert without_spaces(normalize_tex(cleaned)) == without_spaces(cleaned)
  if text.strip() and cleaned:
    reference = reference_answer(text)
    assert compare(reference, reference).score in (0.0, 1.0)


@pytest.mark.parametrize('pair', BATTERY[::7], ids=lambda pair: str(pair.line))
def test_references_equal_themselves(pair):
  box = rf'\boxed{{{pair.reference}}}'
  assert score_math(box, pair.reference).score == 1.0
