# SPDX-License-Identifier: Apache-2.0
"""Tests of Countdown problems: reproducibility, held-out set, solutions."""

import ast
import collections
import dataclasses
import pickle

import pytest
import reasoning_gym

from covrl.data import (
  CountdownConfig,
  CountdownSource,
  SolvedCountdownSource,
  countdown_tokenizer,
  held_out,
)
from covrl.data.countdown import problem_key

# Few problems, so that most draws are held-out ones.
CROWDED = CountdownConfig(
  min_numbers=2, max_numbers=2, max_value=5, max_target=10, held_out=20
)
SMALL = CountdownConfig(held_out=24, size=1000)


@pytest.fixture(scope='module')
def generator():
  return reasoning_gym.create_dataset('countdown', seed=0, size=1)


def keys(problems):
  return {problem_key(problem) for problem in problems}


def in_bounds(problem, config):
  numbers, target = problem.reference['numbers'], problem.reference['target']
  return (
    config.min_numbers <= len(numbers) <= config.max_numbers
    and all(config.min_value <= n <= config.max_value for n in numbers)
    and config.min_target <= target <= config.max_target
  )


@pytest.mark.parametrize('kind', [CountdownSource, SolvedCountdownSource])
def test_problems_depend_on_seed_and_index_alone(kind):
  source, again = kind(SMALL), pickle.loads(pickle.dumps(kind(SMALL)))
  assert source[7] == again[7]
  assert [source[n] for n in (9, 3)] == [again[n] for n in (3, 9)][::-1]
  other = kind(dataclasses.replace(SMALL, seed=1))
  assert [source[n] for n in range(8)] != [other[n] for n in range(8)]


def test_prompts_hold_the_numbers_and_the_target():
  problem = CountdownSource(SMALL)[0]
  numbers, target = problem.reference['numbers'], problem.reference['target']
  assert problem.prompt == f'{" ".join(map(str, numbers))} = {target} :'
  assert problem.source == 'countdown'
  assert problem.solution is None
  assert in_bounds(problem, SMALL)


def test_held_out_problems_are_distinct_and_the_same_for_every_seed():
  problems = held_out(SMALL)
  assert len(problems) == len(keys(problems)) == 24
  assert problems == held_out(dataclasses.replace(SMALL, seed=5, size=7))
  assert all(in_bounds(problem, SMALL) for problem in problems)


@pytest.mark.parametrize('kind', [CountdownSource, SolvedCountdownSource])
def test_training_problems_exclude_held_out_ones(kind):
  source = kind(CROWDED)
  drawn = keys(source[n] for n in range(60))
  assert drawn
  assert not drawn & keys(held_out(CROWDED))
  # Without exclusion, some of the same draws are held-out problems.
  free = kind(dataclasses.replace(CROWDED, held_out=0))
  assert keys(free[n] for n in range(60)) & keys(held_out(CROWDED))


def test_problem_key_ignores_the_order_of_numbers():
  problem = held_out(SMALL)[0]
  reference = problem.reference
  reversed_numbers = dataclasses.replace(
    problem, reference={**reference, 'numbers': reference['numbers'][::-1]}
  )
  assert problem_key(reversed_numbers) == problem_key(problem)


def test_every_solution_is_correct(generator):
  source = SolvedCountdownSource(SMALL)
  for index in range(200):
    problem = source[index]
    assert in_bounds(problem, SMALL)
    score = generator.score_answer(
      problem.solution, {'metadata': problem.reference}
    )
    assert score == 1.0, problem


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
    ours, theirs = (
      sum(map(feature, each)) / 300 for each in (solved, generated)
    )
    assert abs(ours - theirs) < margin


def test_prompts_and_solutions_are_in_the_vocabulary():
  config = CountdownConfig(held_out=0, max_value=30, max_target=25)
  tokenizer = countdown_tokenizer(config)
  source = SolvedCountdownSource(config)
  for index in range(50):
    for text in (source[index].prompt, source[index].solution or ''):
      ids = tokenizer.encode(text)
      assert tokenizer.decode(ids) == text
      assert len(ids) == len(text.split())


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'max_value': 0}, '1 <= min_value <= max_value, got min_value=1 and'),
    ({'min_numbers': 5}, 'got min_numbers=5 and max_numbers=4'),
    ({'min_target': 0}, '1 <= min_target'),
    ({'min_numbers': 1}, 'min_numbers >= 2, got 1'),
    ({'size': 0}, r'0 < size < 2\*\*31, got size=0'),
  ],
)
def test_refuses_impossible_bounds(settings, message):
  with pytest.raises(ValueError, match=message):
    CountdownConfig(**settings)


def test_refuses_bounds_with_too_few_problems():
  tiny = CountdownConfig(
    min_numbers=2, max_numbers=2, max_value=1, max_target=2, held_out=9
  )
  with pytest.raises(ValueError, match='too few distinct problems'):
    held_out(tiny)
  all_held_out = dataclasses.replace(tiny, held_out=2)
  with pytest.raises(ValueError, match='too few distinct problems'):
    SolvedCountdownSource(all_held_out)[0]


def test_refuses_indices_out_of_range():
  source = CountdownSource(SMALL)
  for index in (-1, len(source)):
    with pytest.raises(IndexError, match='0 to 999'):
      source[index]
