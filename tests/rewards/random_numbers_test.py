# SPDX-License-Identifier: Apache-2.0
"""Random numbers that programs draw: the same each time a program is judged."""

import pytest

from covrl.rewards import Judge

# Expressions that draw a number, by where its generator is imported.
DRAWS = {
  'random': "__import__('random').random()",
  'numpy': "float(__import__('numpy').random.random())",
  'random, imported late': "__import__('ran' + 'dom').random()",
  'numpy, imported late': "float(__import__('num' + 'py').random.random())",
  'another module': (
    "__import__('statis' + 'tics').NormalDist(0, 1).samples(1)[0]"
  ),
}
STAYS_RANDOM = {
  'system': 'import random\nprint(random.SystemRandom().random())',
  'own generator': 'import random\nprint(random.Random().random())',
  'own seed': 'import random\nrandom.seed()\nprint(random.random())',
  'numpy': 'import numpy\nprint(numpy.random.default_rng().random())',
}
PRINTS = {'stdin': '1', 'stdout': 'none'}
CALLS = {'call': 'f', 'args': [1], 'result': 'none'}
ASSERTS = {'asserts': 'x = f(1)\nassert x is None, x'}


def _draws(judge: Judge, program: str, test: dict, times: int) -> set[str]:
  """Returns the different numbers of a program that is judged several times."""
  details = []
  for _ in range(times):
    outcome = judge.judge(program, [test])
    assert outcome.score == 0.0, outcome
    details.append(outcome.detail)
  numbers = {detail.split()[-1].strip("'") for detail in details}
  assert all(-10.0 < float(number) < 10.0 for number in numbers)
  return numbers


@pytest.mark.parametrize('name', DRAWS)
@pytest.mark.parametrize(
  'test', [PRINTS, CALLS, ASSERTS], ids=['print', 'call', 'suite']
)
def test_a_program_draws_the_same_numbers_each_time(judge, name, test):
  programs = [
    f'def f(x):\n  return {draw}\n'
    for draw in (DRAWS[name], f'0 + {DRAWS[name]}')
  ]
  if test is PRINTS:
    programs = [f'{program}print(f(input()))\n' for program in programs]
  first, second = (_draws(judge, program, test, 5) for program in programs)
  assert len(first) == len(second) == 1
  assert first != second


def test_a_program_that_guesses_has_one_score(judge):
  scores = set()
  for number in range(8):
    program = f'import random\n# {number}\nprint(random.randrange(2))'
    test = {'stdin': '', 'stdout': '1'}
    outcomes = {judge.judge(program, [test]).score for _ in range(5)}
    assert len(outcomes) == 1
    scores |= outcomes
  assert scores == {0.0, 1.0}


def test_draws_depend_on_the_input_and_not_on_the_expected_result(judge):
  # A program could otherwise test its guesses of the result by what it draws.
  program = 'import random\ndef f(*args):\n  return random.random()\n'
  script = f'{program}print(f())'
  cases = [
    (script, PRINTS, {'stdout': 'other'}, {'stdin': '2'}),
    (program, CALLS, {'result': 'other'}, {'args': [2]}),
  ]
  for source, test, other_result, other_input in cases:
    draws = _draws(judge, source, test, 1)
    assert _draws(judge, source, {**test, **other_result}, 1) == draws
    assert _draws(judge, source, {**test, **other_input}, 1) != draws
  draws = _draws(judge, program, ASSERTS, 1)
  other_suite = {'asserts': f'{ASSERTS["asserts"]}\n# other'}
  assert _draws(judge, program, other_suite, 1) == draws


def test_suites_draw_other_numbers_for_other_programs(judge):
  suite = (
    'import random\nimport numpy\n'
    'x = random.random() + numpy.random.random()\nassert f(x) is None, x'
  )
  first, second = (
    _draws(judge, f'def f(x): return {value}', {'asserts': suite}, 5)
    for value in (1, 2)
  )
  assert len(first) == len(second) == 1
  assert first != second


@pytest.mark.parametrize('name', STAYS_RANDOM)
def test_generators_without_a_seed_stay_random(judge, name):
  assert len(_draws(judge, STAYS_RANDOM[name], PRINTS, 3)) == 3


def test_modules_of_generators_keep_their_loader(judge):
  program = """
import inspect, random
assert random.__loader__ is random.__spec__.loader
assert type(random.__loader__) is type(inspect.__loader__)
assert 'class Random' in inspect.getsource(random)
print(1)
"""
  tests = [{'stdin': '', 'stdout': '1'}]
  assert judge.judge(program, tests).score == 1.0
  late = "random = __import__('ran' + 'dom')"
  program = program.replace('import inspect, random', f'import inspect\n{late}')
  assert judge.judge(program, tests).score == 1.0
