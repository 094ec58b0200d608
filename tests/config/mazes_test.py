# SPDX-License-Identifier: Apache-2.0
"""Tests of the recipes for mazes."""

import inspect
import pathlib
import re

import pytest

from configs import mazes
from covrl.config import ConfigError, MazeConfig, flatten, load, recipes
from covrl.data import ExploredMazeSource
from covrl.models import Policy
from covrl.rewards import score_maze
from covrl.tasks import maze_task

SPECS = [spec for spec, _ in recipes() if spec.startswith('mazes:')]
CHANGED_FIELDS = {'mazes:entropy_bonus': {'entropy.coefficient'}}


def test_recipes_are_listed():
  names = {spec.partition(':')[2] for spec in SPECS}
  assert names == {'grpo', 'grpo_no_clip', 'kl_cov', 'entropy_bonus'}


@pytest.mark.parametrize('spec', SPECS)
def test_recipes_differ_only_in_the_named_fields(spec):
  ours, theirs = (flatten(load(each).config) for each in (spec, 'mazes:grpo'))
  different = {name for name in ours if ours[name] != theirs[name]}
  assert different == CHANGED_FIELDS.get(spec, set())


@pytest.mark.parametrize('spec', SPECS)
def test_functions_build_with_overrides_applied(spec):
  recipe = load(spec, ['--config.train.learning_rate=1e-3'])
  for name in ('advantages', 'loss', 'token_tx', 'tx', 'warm_start_tx'):
    assert getattr(recipe, name)(recipe.config) is not None
  name = spec.partition(':')[2]
  doc = inspect.getdoc(getattr(mazes, name)) or ''
  assert f'--config={spec} --workdir=runs/mazes_{name}' in doc
  assert 'Hardware:' in doc
  assert 'Expect:' in doc


def test_prompts_and_walks_fit_into_the_length_limits():
  config = load('mazes:grpo').config
  task = maze_task(config.maze)
  source = ExploredMazeSource(config.maze)
  longest_prompt = longest_response = 0
  for index in range(200):
    problem = source[index]
    prompt = task.tokenizer.encode(problem.prompt)
    response = task.tokenizer.encode(problem.solution or '')
    # The beginning of a prompt and the end of a response are tokens, too.
    longest_prompt = max(longest_prompt, 1 + len(prompt))
    longest_response = max(longest_response, 1 + len(response))
  assert longest_prompt <= config.rollout.max_prompt_length
  assert longest_response == config.rollout.max_response_length


def test_the_policy_has_about_200_000_parameters():
  recipe = load('mazes:grpo')
  vocab_size = maze_task(recipe.config.maze).tokenizer.vocab_size
  policy = Policy(recipe.model(recipe.config, vocab_size))
  assert 150_000 < policy.num_params < 250_000


def test_references_are_shortest_paths():
  task = maze_task(load('mazes:grpo').config.maze)
  for problem in task.held_out[:50]:
    assert problem.solution is None
    response = task.reference_response(problem) or ''
    assert score_maze(response, problem.reference) == 1.0


def test_refuses_more_evaluations_than_held_out_mazes():
  config = load(
    'mazes:grpo',
    ['--config.maze.held_out=8', '--config.evaluate.problems=9'],
  ).config
  message = (
    'evaluate.problems must be at most 8, the held-out problems of the task, '
    'got 9'
  )
  with pytest.raises(ConfigError, match=message):
    maze_task(config.maze).check_evaluation(config.evaluate)


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('maze.side=1', r'maze.side must lie in \[2, 26\], got 1'),
    ('maze.max_steps=4', 'got min_distance=5 and max_steps=4'),
    ('maze.max_walls=3', 'got min_walls=4 and max_walls=3'),
  ],
)
def test_refuses_impossible_mazes(override, message):
  with pytest.raises(ConfigError, match=message):
    load('mazes:grpo', [f'--config.{override}'])


def test_the_description_states_the_bounds():
  description = maze_task(MazeConfig(side=6, max_steps=11)).description
  assert '6 × 6 cells, columns a to f and rows 1 to 6' in description
  assert 'at most 11 steps' in description


@pytest.mark.parametrize('name', ['grpo', 'kl_cov'])
def test_docstrings_agree_with_the_table_of_results(name):
  doc = inspect.getdoc(getattr(mazes, name)) or ''
  stated_numbers = re.findall(
    r'\d\.\d{3}|\d{2}\.\d', doc.partition('Expect')[2]
  )
  configs = pathlib.Path(mazes.__file__).parent
  table = (configs / 'results' / 'mazes.md').read_text()
  rows = [
    row
    for row in table.splitlines()
    if row.startswith(('| warm start', f'| `{name}`'))
  ]
  assert len(rows) == 2
  assert len(stated_numbers) == 8
  assert all(number in ' '.join(rows) for number in stated_numbers)
  assert table in (configs.parent / 'README.md').read_text()
