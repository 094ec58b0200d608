# SPDX-License-Identifier: Apache-2.0
"""Comparison of printed output and of returned values."""

import json
import math
import random

import pytest

from covrl.rewards.sandbox.compare_outputs import (
  output_difference,
  read_json,
  same_value,
  value_difference,
)
from covrl.rewards.sandbox.session import compare_answer, compare_output
from covrl.rewards.sandbox.test_formats import CallTest, PrintTest, parse_tests


@pytest.mark.parametrize(
  ('printed', 'expected'),
  [
    ('1  2', '1 2'),
    ('1 2\n3', '1\n2 3'),
    ('1\r\n2\r\n', '1\n2'),
    ('\n\n1', '1'),
    ('1 2 \n\n', '1 2'),
    ('\ufeff1', '1'),
    ('[1, 2]', '[1,2]'),
    ('( 1,2 )', '(1, 2)'),
    ('2.0', '2'),
    ('2', '2.0'),
    ('-3.', '-3'),
    ('1e2', '100'),
    ('2.0000000000000004', '2'),
    ('0.333333333', '0.333333'),
    ('[2.0, 3]', '[2, 3]'),
    ('0.1', '.1'),
    ('', '\n'),
  ],
)
def test_output_matches(printed, expected):
  assert output_difference(printed.encode(), expected.encode()) is None


@pytest.mark.parametrize(
  ('printed', 'expected', 'reason'),
  [
    ('8', '7', "'7' was expected, got '8'"),
    ('', '7', "'7' was expected, got no output"),
    ('0 1 3', '0 1 2', "word 3 of 3: '2' was expected, got '3'"),
    ('0 1', '0 1 2', "word 3 of 3: '2' was expected, got the end of the output"),
    ('0 1 2 3', '0 1 2', "the end of the output was expected after 3 words, got '3'"),
    ('12', '1 2', "word 1 of 2: '1' was expected, got '12'"),
    ('2.5', '2', "'2' was expected, got '2.5'"),
    ('2.00001', '2', "'2' was expected, got '2.00001'"),
    ('7', '007', "'007' was expected, got '7'"),
    ('12345678901234567.0', '12345678901234568', "'12345678901234568' was expected"),
    ('yes', 'YES', "'YES' was expected, got 'yes'"),
    ('1e400', '1', "'1' was expected, got '1e400'"),
    ('nan', '1.0', "'1.0' was expected, got 'nan'"),
    ('x' * 500 + 'a', 'x' * 500 + 'b', "xxxb' was expected, got '...xxx"),
  ],
)  # fmt: skip
def test_output_differs(printed, expected, reason):
  assert reason in str(output_difference(printed.encode(), expected.encode()))


def test_outputs_are_compared_with_the_tolerance_of_their_test():
  tolerant = {'stdin': '', 'stdout': '100 2.5', 'tolerance': 1e-2}
  (test,) = parse_tests([tolerant])
  assert isinstance(test, PrintTest)
  assert compare_output(b'100.4 2.501', test).score == 1.0
  assert compare_output(b'100.4 2.6', test).score == 0.0
  assert output_difference(b'100.4 2.501', b'100 2.5')
  assert output_difference(b'2.5000001', b'2.5', 0.0)
  call = {'call': 'f', 'args': [], 'result': [2, 0.5], 'tolerance': 0.1}
  (test,) = parse_tests([call])
  assert isinstance(test, CallTest)
  answer = compare_answer(b'{"result": [2.1, 0.45]}', test)
  assert answer is not None
  assert answer.score == 1.0


@pytest.mark.parametrize('tolerance', [-1, math.nan, math.inf, '1', True])
def test_refuses_impossible_tolerances(tolerance):
  test = {'stdin': '', 'stdout': '', 'tolerance': tolerance}
  with pytest.raises(ValueError, match='test 0: tolerance must be a finite'):
    parse_tests([test])


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    (2.0, 2),
    (2, 2.0),
    (True, 1),
    (1, True),
    (0.0, False),
    (0.30000000000000004, 0.3),
    (2.0000000000000004, 2),
    (math.nan, math.nan),
    ([1.0, [True]], [1, [1]]),
    ({'a': 1.0}, {'a': 1}),
    (10**20, 1e20),
  ],
)
def test_value_matches(value, expected):
  assert same_value(value, expected)


@pytest.mark.parametrize(
  ('value', 'expected', 'reason'),
  [
    ('1', 1, "1 was expected, got '1'"),
    (None, 0, '0 was expected, got None'),
    (2, True, 'True was expected, got 2'),
    (2.1, 2, '2 was expected, got 2.1'),
    (10**16 + 1, 10**16, 'was expected'),
    (1e16, 10**16 + 1, 'was expected'),
    ([1, 2, 4], [1, 2, 3], 'at [2]: 3 was expected, got 4'),
    ([1, [2, 'x']], [1, [2, 'y']], "at [1][1]: 'y' was expected, got 'x'"),
    ([1], [1, 2], 'length 1 instead of 2'),
    ({'a': {'b': 1}}, {'a': {'b': 2}}, "at ['a']['b']: 2 was expected, got 1"),
    ({}, {'a': 2}, "at ['a']: 2 was expected, got no such key"),
    ({'a': 1, 'b': 2}, {'a': 1}, "additional key 'b'"),
    ([], {}, '{} was expected, got []'),
    (math.nan, 1.0, '1.0 was expected, got nan'),
  ],
)
def test_value_differs(value, expected, reason):
  assert reason in str(value_difference(value, expected))


def test_input_ends_with_a_line_end_and_has_no_byte_order_mark():
  tests = [
    {'stdin': text, 'stdout': ''} for text in ('', '1', '1\n', '\ufeff1\r\n2')
  ]
  inputs = [t.stdin for t in parse_tests(tests) if isinstance(t, PrintTest)]
  assert inputs == [b'', b'1\n', b'1\n', b'1\n2\n']


def test_any_bytes_give_an_outcome():
  """1,000 random outputs, replies and expected texts."""
  generator = random.Random(0)
  alphabet = b'0123456789.eE+-[](){},: \r\n\tnaif"\\u\x00\xff\xed\xa0\x80'
  for index in range(1000):
    size = generator.randrange(60)
    printed, expected = (
      bytes(generator.choices(alphabet, k=size))
      if index % 2
      else generator.randbytes(size)
      for _ in range(2)
    )
    outcome = compare_output(printed, PrintTest(b'', expected))
    assert outcome.has_score
    assert outcome.detail.isascii()
    assert compare_output(expected, PrintTest(b'', expected)).score == 1.0
    compare_answer(
      b'{"result": ' + printed + b'}', CallTest('f', b'', b'', [1], 3)
    )
    try:
      value = read_json(printed)
    except ValueError:
      continue
    text = json.dumps({'result': value}).encode()
    answer = compare_answer(text, CallTest('f', b'', b'', value, len(printed)))
    assert answer is not None
    assert answer.score == 1.0


def test_deeply_nested_values_score_zero():
  deep = b'{"result": ' + b'[' * 900 + b']' * 900 + b'}'
  outcome = compare_answer(deep, CallTest('f', b'', b'', [[1]], 5))
  assert outcome is None or outcome.score == 0.0
