# SPDX-License-Identifier: Apache-2.0
"""Tests of sums and differences: seeds, bounds, held-out problems."""

import dataclasses
import pickle

import pytest

from covrl.config import ArithmeticConfig, ConfigError
from covrl.data import (
  ArithmeticSource,
  SolvedArithmeticSource,
  held_out_arithmetic,
)
from covrl.data.generated.arithmetic import arithmetic_problem, problem_terms

CONFIG = ArithmeticConfig(max_value=30, held_out=50, size=1000)
# So few problems that most of the random ones are held out.
CROWDED = ArithmeticConfig(min_terms=2, max_terms=2, max_value=4, held_out=12)
EACH_SOURCE_CLASS = pytest.mark.parametrize(
  'source_class', [ArithmeticSource, SolvedArithmeticSource]
)


@EACH_SOURCE_CLASS
def test_problems_depend_on_seed_and_index_alone(source_class):
  source, unpickled = (
    source_class(CONFIG),
    pickle.loads(pickle.dumps(source_class(CONFIG))),
  )
  assert [source[n] for n in (9, 3)] == [unpickled[n] for n in (3, 9)][::-1]
  other = source_class(dataclasses.replace(CONFIG, seed=1))
  assert [source[n] for n in range(8)] != [other[n] for n in range(8)]
  assert source.fingerprint == unpickled.fingerprint != other.fingerprint


def test_problems_with_and_without_solutions_are_different_ones():
  bare, solved = ArithmeticSource(CONFIG), SolvedArithmeticSource(CONFIG)
  assert bare.fingerprint != solved.fingerprint
  assert bare[0].prompt != solved[0].prompt
  assert bare[0].solution is None


@EACH_SOURCE_CLASS
def test_references_are_the_values_of_the_prompts(source_class):
  source = source_class(CONFIG)
  counts = set()
  for index in range(300):
    problem = source[index]
    assert eval(problem.prompt) == problem.reference >= 0
    terms = problem_terms(problem)
    assert all(1 <= abs(term) <= 30 for term in terms)
    counts.add(len(terms))
    assert problem.solution in (None, f' {problem.reference}')
  assert counts == {2, 3}


def test_held_out_problems_are_distinct_and_the_same_for_every_seed():
  problems = held_out_arithmetic(CONFIG)
  assert len(set(map(problem_terms, problems))) == CONFIG.held_out
  other = dataclasses.replace(CONFIG, seed=5, size=7)
  assert problems == held_out_arithmetic(other)
  assert all(problem.solution is None for problem in problems)


@EACH_SOURCE_CLASS
def test_training_problems_exclude_held_out_ones_in_any_order(source_class):
  drawn = {problem_terms(source_class(CROWDED)[n]) for n in range(80)}
  held_out = set(map(problem_terms, held_out_arithmetic(CROWDED)))
  assert drawn
  assert not drawn & held_out
  without_held_out = source_class(dataclasses.replace(CROWDED, held_out=0))
  assert {problem_terms(without_held_out[n]) for n in range(80)} & held_out


def test_problems_of_the_same_terms_are_the_same():
  one, other = arithmetic_problem([7, 3, -2]), arithmetic_problem([3, -2, 7])
  assert one.prompt != other.prompt
  assert problem_terms(one) == problem_terms(other)
  assert problem_terms(one) != problem_terms(arithmetic_problem([7, -3, 2]))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'min_terms': 4}, 'got min_terms=4 and max_terms=3'),
    ({'min_terms': 1}, '2 <= min_terms <= max_terms, got min_terms=1'),
    ({'max_value': 0}, 'max_value >= 1, got 0'),
    ({'held_out': -1}, 'got held_out=-1'),
    ({'size': 0}, 'got held_out=1024 and size=0'),
  ],
)
def test_refuses_impossible_bounds(fields, message):
  with pytest.raises(ConfigError, match=message):
    ArithmeticConfig(**fields)


def test_refuses_bounds_with_too_few_problems():
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    held_out_arithmetic(dataclasses.replace(CROWDED, held_out=500))
  # Every sum of two numbers up to 1 is held out.
  tiny = dataclasses.replace(CROWDED, max_value=1, held_out=2)
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    ArithmeticSource(tiny)[0]


@EACH_SOURCE_CLASS
def test_refuses_indices_out_of_range(source_class):
  source = source_class(CONFIG)
  for index in (-1, len(source)):
    with pytest.raises(IndexError, match=r'must lie in \[0, 1000\), got'):
      source[index]
