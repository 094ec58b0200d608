# SPDX-License-Identifier: Apache-2.0
"""Tests of Countdown problems whose solution is one expression."""

import ast
import collections
import dataclasses

import pytest
import reasoning_gym

from covrl.data import (
  CountdownConfig,
  CountdownSource,
  SolvedCountdownSource,
  held_out_countdown,
)

SMALL = CountdownConfig(held_out=24, size=1000)


@pytest.fixture(scope='module')
def generator():
  """reasoning-gym's Countdown, for its scorer."""
  return reasoning_gym.create_dataset('countdown', seed=0, size=1)


def test_every_solution_is_correct(generator):
  source = SolvedCountdownSource(SMALL)
  for index in range(200):
    problem = source[index]
    score = generator.score_answer(
      problem.solution, {'metadata': problem.reference}
    )
    assert score == 1.0, problem


def test_narrow_bounds_are_redrawn_where_the_generator_fails(monkeypatch):
  """A hundred random expressions of the default numbers often miss the value 24."""
  config = CountdownConfig(min_target=24, max_target=24, held_out=4, size=8)
  source = CountdownSource(config)
  problems = [*held_out_countdown(config), *(source[n] for n in range(8))]
  assert {problem.reference['target'] for problem in problems} == {24}
  monkeypatch.setattr('covrl.data.generated.countdown.MAX_REDRAWS', 2)
  impossible = dataclasses.replace(config, min_target=10**5, max_target=10**5)
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    held_out_countdown(impossible)


def test_solutions_have_no_redundant_parentheses():
  source = SolvedCountdownSource(dataclasses.replace(SMALL, held_out=0))
  for index in range(200):
    solution = source[index].solution or ''
    minimal = ast.unparse(ast.parse(solution))
    assert solution.replace('( ', '(').replace(' )', ')') == minimal


def test_solutions_use_all_operators_and_shuffle_the_numbers():
  source = SolvedCountdownSource(dataclasses.replace(SMALL, held_out=0))
  problems = [source[n] for n in range(400)]
  counts = collections.Counter(''.join(p.solution or '' for p in problems))
  assert all(counts[operator] > 60 for operator in '+-*/')
  assert counts['('] == counts[')'] > 40
  in_order = 0
  for problem in problems:
    words = (problem.solution or '').split()
    numbers = [int(word) for word in words if word.isdigit()]
    assert sorted(numbers) == sorted(problem.reference['numbers'])
    in_order += numbers == problem.reference['numbers']
  assert in_order < 120


def test_solved_problems_resemble_generated_ones():
  config = dataclasses.replace(SMALL, held_out=0)
  generated, solved = (
    [source[n].reference for n in range(300)]
    for source in (CountdownSource(config), SolvedCountdownSource(config))
  )
  for feature, margin in (
    (lambda reference: reference['target'], 8.0),
    (lambda reference: len(reference['numbers']), 0.15),
    (lambda reference: max(reference['numbers']), 1.5),
  ):
    solved_mean, generated_mean = (
      sum(map(feature, references)) / 300 for references in (solved, generated)
    )
    assert abs(solved_mean - generated_mean) < margin
