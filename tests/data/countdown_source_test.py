# SPDX-License-Identifier: Apache-2.0
"""Tests of all variants of Countdown: seeds, bounds, held-out problems."""

import dataclasses
import pickle

import pytest

from covrl.data import (
  CountdownConfig,
  CountdownSource,
  CountdownStepsSource,
  SolvedCountdownSource,
  SolvedCountdownStepsSource,
  countdown_tokenizer,
  held_out_countdown,
  held_out_steps,
  steps_tokenizer,
)
from covrl.data.generated.countdown_problem import problem_key

SMALL = CountdownConfig(held_out=24, size=1000)
STEPS = CountdownConfig(
  min_numbers=4, max_numbers=5, max_value=15, max_target=60, held_out=50
)
# Few problems, so that most draws are held-out ones.
CROWDED = CountdownConfig(
  min_numbers=2, max_numbers=2, max_value=5, max_target=10, held_out=20
)

# Each source with its config and the function that makes its held-out problems.
EACH_SOURCE_CLASS = pytest.mark.parametrize(
  ('source_class', 'config', 'make_held_out'),
  [
    pytest.param(source_class, config, make_held_out, id=source_class.__name__)
    for source_class, config, make_held_out in (
      (CountdownSource, SMALL, held_out_countdown),
      (SolvedCountdownSource, SMALL, held_out_countdown),
      (CountdownStepsSource, STEPS, held_out_steps),
      (SolvedCountdownStepsSource, STEPS, held_out_steps),
    )
  ],
)
EACH_HELD_OUT = pytest.mark.parametrize(
  ('make_held_out', 'config'),
  [(held_out_countdown, SMALL), (held_out_steps, STEPS)],
)


def keys(problems):
  """Keys of problems, equal for the same numbers and target."""
  return {problem_key(problem) for problem in problems}


def in_bounds(problem, config):
  """Whether numbers and target are within the bounds of a config."""
  numbers, target = problem.reference['numbers'], problem.reference['target']
  return (
    config.min_numbers <= len(numbers) <= config.max_numbers
    and all(config.min_value <= n <= config.max_value for n in numbers)
    and config.min_target <= target <= config.max_target
  )


@EACH_SOURCE_CLASS
def test_problems_depend_on_seed_and_index_alone(
  source_class, config, make_held_out
):
  del make_held_out
  source, unpickled = (
    source_class(config),
    pickle.loads(pickle.dumps(source_class(config))),
  )
  assert source[7] == unpickled[7]
  assert [source[n] for n in (9, 3)] == [unpickled[n] for n in (3, 9)][::-1]
  other = source_class(dataclasses.replace(config, seed=1))
  assert [source[n] for n in range(8)] != [other[n] for n in range(8)]
  assert source.fingerprint == unpickled.fingerprint != other.fingerprint


@EACH_SOURCE_CLASS
def test_prompts_hold_the_numbers_and_the_target(
  source_class, config, make_held_out
):
  del make_held_out
  problem = source_class(config)[0]
  numbers, target = problem.reference['numbers'], problem.reference['target']
  assert problem.prompt == f'{" ".join(map(str, numbers))} = {target} :'
  assert (problem.source,) == source_class.names
  assert (problem.solution is not None) == source_class.__name__.startswith(
    'Solved'
  )
  assert in_bounds(problem, config)


@pytest.mark.parametrize(
  ('source_class', 'config'),
  [(SolvedCountdownSource, SMALL), (SolvedCountdownStepsSource, STEPS)],
)
def test_solved_problems_are_within_the_bounds(source_class, config):
  source = source_class(config)
  assert all(in_bounds(source[n], config) for n in range(400))


@pytest.mark.parametrize(
  ('source_class', 'solved_class', 'config'),
  [
    (CountdownSource, SolvedCountdownSource, SMALL),
    (CountdownStepsSource, SolvedCountdownStepsSource, STEPS),
  ],
)
def test_problems_without_and_with_solutions_are_different_ones(
  source_class, solved_class, config
):
  problems, solved = source_class(config), solved_class(config)
  assert problems.fingerprint != solved.fingerprint
  assert problems[0].reference != solved[0].reference


@EACH_HELD_OUT
def test_held_out_problems_are_distinct_and_the_same_for_every_seed(
  make_held_out, config
):
  problems = make_held_out(config)
  assert len(problems) == len(keys(problems)) == config.held_out
  assert problems == make_held_out(dataclasses.replace(config, seed=5, size=7))
  assert all(in_bounds(problem, config) for problem in problems)
  assert all(problem.solution is None for problem in problems)


@EACH_SOURCE_CLASS
def test_training_problems_exclude_held_out_ones(
  source_class, config, make_held_out
):
  del config
  source = source_class(CROWDED)
  drawn = keys(source[n] for n in range(60))
  assert drawn
  assert not drawn & keys(make_held_out(CROWDED))
  # Without exclusion, some of the same draws are held-out problems.
  without_exclusion = source_class(dataclasses.replace(CROWDED, held_out=0))
  assert keys(without_exclusion[n] for n in range(60)) & keys(
    make_held_out(CROWDED)
  )


@EACH_HELD_OUT
def test_problem_key_ignores_the_order_of_numbers(make_held_out, config):
  problem = make_held_out(config)[0]
  reference = problem.reference
  reversed_numbers = dataclasses.replace(
    problem, reference={**reference, 'numbers': reference['numbers'][::-1]}
  )
  assert problem_key(reversed_numbers) == problem_key(problem)


@pytest.mark.parametrize(
  ('tokenizer_of', 'source_class', 'config'),
  [
    (
      countdown_tokenizer,
      SolvedCountdownSource,
      CountdownConfig(held_out=0, max_value=30, max_target=25),
    ),
    (steps_tokenizer, SolvedCountdownStepsSource, STEPS),
  ],
)
def test_prompts_and_solutions_are_in_the_vocabulary(
  tokenizer_of, source_class, config
):
  tokenizer, source = tokenizer_of(config), source_class(config)
  for index in range(100):
    for text in (source[index].prompt, source[index].solution or ''):
      ids = tokenizer.encode(text)
      assert tokenizer.decode(ids) == text
      assert len(ids) == len(text.split()) <= 23


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


@pytest.mark.parametrize(
  ('make_held_out', 'source_class'),
  [
    (held_out_countdown, SolvedCountdownSource),
    (held_out_steps, SolvedCountdownStepsSource),
  ],
)
def test_refuses_bounds_with_too_few_problems(make_held_out, source_class):
  tiny = CountdownConfig(
    min_numbers=2, max_numbers=2, max_value=1, max_target=2, held_out=9
  )
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    make_held_out(tiny)
  all_held_out = dataclasses.replace(tiny, held_out=2)
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    source_class(all_held_out)[0]


@EACH_SOURCE_CLASS
def test_refuses_indices_out_of_range(source_class, config, make_held_out):
  del make_held_out
  source = source_class(dataclasses.replace(config, size=1000))
  for index in (-1, len(source)):
    with pytest.raises(IndexError, match=r'must lie in \[0, 1000\), got'):
      source[index]
