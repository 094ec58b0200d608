# SPDX-License-Identifier: Apache-2.0
"""Tolerances in the tests of programming problems are read from data files."""

import json

import pytest

from covrl.data.columns import Row
from covrl.data.parsers import code_tests
from covrl.rewards.sandbox.test_formats import parse_tests


def _row(**fields) -> Row:
  """A row whose answer is JSON with these fields."""
  return Row({'answer': json.dumps(fields)}, 'row 1')


@pytest.mark.parametrize('function', [{}, {'fn_name': 'f'}])
def test_tests_of_programs_may_have_a_tolerance(function):
  inputs = [[1]] if function else ['1']
  row = _row(inputs=inputs, outputs=[2.5], tolerance=1e-3, **function)
  (test,) = parse_tests(code_tests(row, 'answer'))
  assert getattr(test, 'tolerance', None) == 1e-3


@pytest.mark.parametrize('tolerance', [-1, '1', True, float('nan')])
def test_refuses_impossible_tolerances(tolerance):
  row = _row(inputs=['1'], outputs=['2'], tolerance=tolerance)
  with pytest.raises(ValueError, match="a number of at least 0 as 'tolerance'"):
    code_tests(row, 'answer')
