# SPDX-License-Identifier: Apache-2.0
"""Tests of Countdown problems with written steps."""

import collections
import dataclasses
import pickle
import random

import pytest

from covrl.data import (
  CountdownConfig,
  CountdownStepsSource,
  SolvedCountdownStepsSource,
  held_out_steps,
  steps_tokenizer,
)
from covrl.data.countdown import problem_key
from covrl.data.countdown_steps import random_steps

CONFIG = CountdownConfig(
  min_numbers=4, max_numbers=5, max_value=15, max_target=60, held_out=50
)
# Few problems, so that most draws are held-out ones.
CROWDED = CountdownConfig(
  min_numbers=2, max_numbers=2, max_value=5, max_target=10, held_out=20
)
SOURCES = (CountdownStepsSource, SolvedCountdownStepsSource)


def keys(problems):
  return {problem_key(problem) for problem in problems}


def in_bounds(problem, config):
  numbers, target = problem.reference['numbers'], problem.reference['target']
  return (
    config.min_numbers <= len(numbers) <= config.max_numbers
    and all(config.min_value <= n <= config.max_value for n in numbers)
    and config.min_target <= target <= config.max_target
  )


@pytest.mark.parametrize('kind', SOURCES)
def test_problems_depend_on_seed_and_index_alone(kind):
  source, again = kind(CONFIG), pickle.loads(pickle.dumps(kind(CONFIG)))
  assert [source[n] for n in (9, 3)] == [again[n] for n in (3, 9)][::-1]
  other = kind(dataclasses.replace(CONFIG, seed=1))
  assert [source[n] for n in range(8)] != [other[n] for n in range(8)]
  assert source.fingerprint == again.fingerprint != other.fingerprint


def test_problems_without_and_with_solutions_are_different_ones():
  problems, solved = (kind(CONFIG) for kind in SOURCES)
  assert problems.fingerprint != solved.fingerprint
  assert problems[0].reference != solved[0].reference
  assert problems[0].solution is None
  assert solved[0].solution


@pytest.mark.parametrize('kind', SOURCES)
def test_training_problems_exclude_held_out_ones(kind):
  drawn = keys(kind(CROWDED)[n] for n in range(60))
  assert drawn
  assert not drawn & keys(held_out_steps(CROWDED))
  free = kind(dataclasses.replace(CROWDED, held_out=0))
  assert keys(free[n] for n in range(60)) & keys(held_out_steps(CROWDED))


def test_held_out_problems_are_distinct_and_the_same_for_every_seed():
  problems = held_out_steps(CONFIG)
  assert len(problems) == len(keys(problems)) == 50
  assert problems == held_out_steps(dataclasses.replace(CONFIG, seed=5, size=7))
  assert all(in_bounds(problem, CONFIG) for problem in problems)
  assert all(problem.solution is None for problem in problems)


def test_solutions_use_all_operators_and_shuffle_the_numbers():
  source = SolvedCountdownStepsSource(CONFIG)
  problems = [source[n] for n in range(400)]
  assert all(in_bounds(problem, CONFIG) for problem in problems)
  solutions = [problem.solution or '' for problem in problems]
  counts = collections.Counter(''.join(solutions))
  assert all(counts[symbol] > 100 for symbol in '+-*/')
  first = [solution.split()[:3:2] for solution in solutions]
  in_front = sum(
    set(map(int, pair)) == set(problem.reference['numbers'][:2])
    for pair, problem in zip(first, problems, strict=True)
  )
  assert in_front < 120


def test_prompts_and_solutions_are_in_the_vocabulary():
  tokenizer = steps_tokenizer(CONFIG)
  source = SolvedCountdownStepsSource(CONFIG)
  for index in range(100):
    for text in (source[index].prompt, source[index].solution or ''):
      ids = tokenizer.encode(text)
      assert tokenizer.decode(ids) == text
      assert len(ids) == len(text.split()) <= 23


def test_steps_without_an_operator_are_given_up():
  # Neither 9 + 8 nor 9 * 8 is at most 9, and 9 - 8 = 1.
  assert random_steps(random.Random(0), [9, 8], 9) == (1, '9 - 8 = 1')
  assert random_steps(random.Random(0), [9, 8, 9, 9, 9, 9], 0) is None


def test_refuses_bounds_with_too_few_problems():
  tiny = CountdownConfig(
    min_numbers=2, max_numbers=2, max_value=1, max_target=2, held_out=9
  )
  with pytest.raises(ValueError, match='too few distinct problems'):
    held_out_steps(tiny)
  everything = dataclasses.replace(tiny, held_out=2)
  with pytest.raises(ValueError, match='too few distinct problems'):
    SolvedCountdownStepsSource(everything)[0]
  unreachable = CountdownConfig(
    max_value=2, min_target=99, max_target=99, held_out=1
  )
  with pytest.raises(ValueError, match='too few distinct problems'):
    held_out_steps(unreachable)


@pytest.mark.parametrize('kind', SOURCES)
def test_refuses_indices_out_of_range(kind):
  source = kind(dataclasses.replace(CONFIG, size=1000))
  for index in (-1, 1000):
    with pytest.raises(IndexError, match='0 to 999'):
      source[index]
