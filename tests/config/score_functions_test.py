# SPDX-License-Identifier: Apache-2.0
"""Score functions in and beside recipe files: found, scored with, and copied."""

import colorsys
import dataclasses
import shutil
import subprocess
import sys
import textwrap

import pytest
from train.process import ENVIRONMENT, TESTS, metric_lines
from train.runs import SMALL

from covrl.config import ConfigError, load, restore
from covrl.data import ListSource, Problem
from covrl.rewards import Scoring
from covrl.tasks.verify import check_scores

RECIPE = """
  import dataclasses
  import functools
  from train import toy
  from covrl.rewards import Outcome, Reward, Status
  {imports}
  FULL = 1.0

  def is_largest(response, largest):
    return response.split()[:1] == [str(largest)]

  def score_largest(response, reference):
    return FULL if is_largest(response, max(reference)) else 0

  def named_outcome(response, reference, *, name):
    return Outcome(score_largest(response, reference), Status.SCORED, name)

  def make_task(config):
    {imports_of_task}
    def nested(response, reference):
      return score_largest(response, reference)
    task = toy.make_task(config)
    return dataclasses.replace(
      task, rewards=[Reward(name='mine', score={score})])

  def mine():
    return toy.recipe(task=make_task)
"""
SCORER_FILE = """
  import beside_helper

  def score(response, reference):
    return beside_helper.share(response, reference)
"""
HELPER_FILE = """
  def share(response, reference):
    return float(response.split()[:1] == [str(max(reference))])
"""


def write(directory, name, text):
  """Writes a Python file with dedented text."""
  file = directory / f'{name}.py'
  file.write_text(textwrap.dedent(text))
  return file


@pytest.fixture
def recipe_file(tmp_path, monkeypatch):
  """Writes a recipe into a directory with two other modules."""
  monkeypatch.syspath_prepend(str(TESTS))
  # The working directory is not that of the recipe.
  (tmp_path / 'elsewhere').mkdir()
  (tmp_path / 'mine').mkdir()
  monkeypatch.chdir(tmp_path / 'elsewhere')
  write(tmp_path / 'mine', 'beside', SCORER_FILE)
  write(tmp_path / 'mine', 'beside_helper', HELPER_FILE)

  def make(score, imports='', imports_of_task='', **files):
    for name, text in files.items():
      write(tmp_path / 'mine', name, text)
    text = RECIPE.format(
      score=score, imports=imports, imports_of_task=imports_of_task
    )
    return write(tmp_path / 'mine', 'sorting', text)

  return make


def scores_of(recipe):
  """Returns the scores of a right and a wrong response."""
  task = recipe.task(recipe.config)
  with Scoring(
    task.rewards, sources=task.sources, workers=1, timeout=60.0
  ) as scoring:
    check_scores(task, scoring)
    pending = scoring.submit(
      ['7 2', '2 7'], [[2, 7]] * 2, sources=['toy'] * 2, lengths=[2, 2]
    )
    return pending.result().totals()


@pytest.mark.parametrize(
  ('score', 'imports', 'imports_of_task', 'copied'),
  [
    ('score_largest', '', '', set()),
    ("functools.partial(named_outcome, name='x')", '', '', set()),
    ('nested', '', '', set()),
    ('lambda r, reference: score_largest(r, reference)', '', '', set()),
    ("'sorting:score_largest'", '', '', set()),
    ('score', 'from beside import score', '', {'beside', 'beside_helper'}),
    ('beside.score', 'import beside', '', {'beside', 'beside_helper'}),
    ('score', '', 'from beside import score', {'beside', 'beside_helper'}),
    ("'beside:score'", '', '', {'beside', 'beside_helper'}),
    # The file has the name of an installed module.
    ("'colorsys:score'", '', '', {'colorsys', 'beside_helper'}),
  ],
)
def test_functions_are_found_and_kept_with_the_run(
  score, imports, imports_of_task, copied, recipe_file, tmp_path
):
  files = {'colorsys': SCORER_FILE} if 'colorsys' in score else {}
  file = recipe_file(score, imports, imports_of_task, **files)
  recipe = load(f'{file}:mine')
  assert scores_of(recipe) == [1.0, 0.0]
  assert {name.removesuffix('.py') for name in recipe.sources} == {
    'sorting',
    *copied,
  }
  run = tmp_path / 'run'
  run.mkdir()
  for name, text in recipe.sources.items():
    (run / name).write_text(text)
  for path in file.parent.iterdir():
    if path.is_file():
      path.unlink()
  restored = restore(run, recipe.as_json())
  assert scores_of(restored) == [1.0, 0.0]
  assert restored.identity == recipe.identity
  # Nothing of a recipe remains importable.
  assert sys.modules['colorsys'] is colorsys
  assert not {'beside', 'beside_helper', 'recipe_sorting'} & sys.modules.keys()


@pytest.mark.parametrize('directory', ['mine', 'elsewhere'])
def test_function_of_a_field_is_kept_with_the_run(
  directory, recipe_file, tmp_path
):
  file = recipe_file('score_largest', extra_module=HELPER_FILE)
  if directory == 'elsewhere':
    (tmp_path / 'mine' / 'extra_module.py').rename(
      tmp_path / 'elsewhere' / 'extra_module.py'
    )
  recipe = load(
    f'{file}:mine', ['--config.rewards.function=extra_module:share']
  )
  assert recipe.sources['extra_module.py'] == textwrap.dedent(HELPER_FILE)
  assert recipe.identity != load(f'{file}:mine').identity
  copies = tmp_path / 'run'
  copies.mkdir()
  for name, text in recipe.sources.items():
    (copies / name).write_text(text)
  assert restore(copies, recipe.as_json()).identity == recipe.identity
  (copies / 'extra_module.py').unlink()
  if directory == 'mine':
    with pytest.raises(
      ConfigError, match=r'must be in a file extra_module\.py'
    ):
      restore(copies, recipe.as_json())


ADVICE = (
  'write module:function for a function (response, reference) -> number in'
)


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('absent:score', 'must be in a file absent.py beside the recipe, in '),
    ('__main__:score', 'must be in a file __main__.py beside the recipe'),
    ('beside', "must have the form module:function, got 'beside'"),
    ('beside.score', "must have the form module:function, got 'beside.score'"),
    (
      'beside:scores',
      "have the score function 'scores', got none; did you mean 'score'?",
    ),
    ('beside:xyz', "the score function 'xyz', got none; write module:function"),
    ('broken:score', 'cannot be imported: SyntaxError: '),
    (
      'failing:score',
      'cannot be imported: ZeroDivisionError: division by zero',
    ),
    ('failing:score', ' (line 2); write module:function'),
    ('needs:score', "ModuleNotFoundError: No module named 'absent_module'"),
  ],
)
def test_unusable_names_of_functions_are_refused(name, message, recipe_file):
  file = recipe_file(
    'score_largest',
    broken='def score(:\n',
    failing='\n1 / 0\n',
    needs='import absent_module\n',
  )
  with pytest.raises(ConfigError) as caught:
    load(f'{file}:mine', [f'--config.rewards.function={name}'])
  error = str(caught.value)
  assert message in error
  assert '\n' not in error
  assert ADVICE in error or 'did you mean' in error


@pytest.mark.parametrize(
  ('score', 'message'),
  [
    (
      'lambda response: 1.0',
      r'must take a response and a reference, \(response,',
    ),
    ('3', 'must be one that workers can import, at the top of the recipe'),
    ("'score_largest'", 'must have the form module:function'),
    ('lambda *, response: 1.0', 'must take a response and a reference'),
    (
      'functools.partial(score_largest, key=(n for n in []))',
      'must be one that workers can import',
    ),
  ],
)
def test_unusable_functions_are_refused(score, message, recipe_file):
  recipe = load(f'{recipe_file(score)}:mine')
  with pytest.raises(ValueError, match=message) as caught:
    scores_of(recipe)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  ('score', 'has_solution', 'message'),
  [
    ("'good'", True, r"the scorer returned 'good'$"),
    ('None', True, r'the scorer returned None$'),
    ("reference['answer']", True, r'TypeError: .*$'),
    ('1e39', True, r'a score must be a number of magnitude'),
    ('len(response) / 0', False, r'ZeroDivisionError: .*$'),
    # Not every function takes every response.
    ("{'7': 1.0}[response]", False, None),
    ("float(response == '7 2')", True, None),
  ],
)
def test_functions_are_tried_on_a_real_problem(
  score, has_solution, message, recipe_file
):
  recipe = load(f'{recipe_file(f"lambda response, reference: {score}")}:mine')
  problem = Problem(
    prompt='2 7 :',
    reference='7',
    source='toy',
    solution='7 2' if has_solution else None,
  )
  task = dataclasses.replace(
    recipe.task(recipe.config), train=ListSource([problem])
  )
  with Scoring(task.rewards, sources=['toy'], workers=1) as scoring:
    if message is None:
      check_scores(task, scoring)
      return
    with pytest.raises(ConfigError, match=message) as caught:
      check_scores(task, scoring)
  response = '7 2' if has_solution else '7'
  assert str(caught.value).startswith(
    "the reward 'mine' must be a function (response, reference) -> number or"
    f" Outcome, got for the response {response!r} and the reference '7': "
  )


@pytest.mark.slow
def test_a_run_is_evaluated_without_its_recipe_file(recipe_file, tmp_path):
  file = recipe_file("'beside:score'")
  settings = [
    f'--config.{name.replace("__", ".")}={value}'
    for name, value in SMALL.items()
  ]
  command = [sys.executable, '-m', 'covrl.cli']
  run = tmp_path / 'run'
  subprocess.run(
    [*command, 'train', f'--config={file}:mine', f'--workdir={run}', *settings],
    env=ENVIRONMENT,
    check=True,
    capture_output=True,
  )
  shutil.rmtree(tmp_path / 'mine')
  evaluated = subprocess.run(
    [*command, 'evaluate', str(run)],
    env=ENVIRONMENT,
    check=True,
    capture_output=True,
    text=True,
  )
  last = [line for line in metric_lines(run) if line['phase'] == 'eval'][-1]
  assert f'{last["mean@4"]:.4f}' in evaluated.stdout
  assert last['unscored'] == 0


def test_a_task_that_draws_random_numbers_is_the_same_each_time(
  recipe_file, monkeypatch
):
  """A run is resumed, evaluated and served with the problems of its start."""
  file = recipe_file(
    'score', 'from beside import score', 'import numpy, random'
  )
  text = file.read_text()
  statement = 'print(random.random(), numpy.random.uniform())'
  file.write_text(
    text.replace(
      '  import numpy, random', f'  import numpy, random; {statement}'
    )
  )
  assert statement in file.read_text()
  recipe, printed = load(f'{file}:mine'), []
  monkeypatch.setattr('builtins.print', lambda *values: printed.append(values))
  for seed in (1, 1, 2):
    recipe.config.seed = seed
    recipe.task(recipe.config)
  assert printed[0] == printed[1] != printed[2]


def test_modules_of_one_name_beside_score_function_and_recipe_are_refused(
  recipe_file, tmp_path
):
  # The one beside the recipe would be executed, the other one kept with the run.
  here, recipe = tmp_path / 'elsewhere', recipe_file('score_largest')
  score = """
    import gains
    def score(response, reference):
      return gains.GAIN
  """
  write(here, 'scores_here', score)
  field = '--config.rewards.function=scores_here:score'
  for folder in (here, recipe.parent):
    write(folder, 'gains', 'GAIN = 1.0')
  assert 'gains.py' in load(str(recipe), [field]).sources
  write(here, 'gains', 'GAIN = 0.5')
  with pytest.raises(
    ConfigError, match=r'got .*elsewhere/gains.py and .*mine/gains.py'
  ):
    load(str(recipe), [field])


def test_workers_import_the_kept_text_of_a_module_beside_the_recipe(
  recipe_file, tmp_path
):
  score = """
    def score(response, reference):
      import lazy_gain
      return lazy_gain.GAIN
  """
  files = {'lazy': score, 'lazy_gain': 'GAIN = 0.25'}
  recipe = load(str(recipe_file('lazy.score', 'import lazy', **files)))
  assert recipe.sources['lazy_gain.py'].strip() == 'GAIN = 0.25'
  # Another one in the working directory, and a later text beside the recipe.
  write(tmp_path / 'elsewhere', 'lazy_gain', 'GAIN = 0.5')
  write(tmp_path / 'mine', 'lazy_gain', 'GAIN = 0.75')
  task = recipe.task(recipe.config)
  sources, modules = task.sources, recipe.modules
  with Scoring(task.rewards, sources=sources, modules=modules) as scoring:
    pending = scoring.submit(['7'], [[7]], sources=['toy'], lengths=[1])
    assert pending.result().totals() == [0.25]


def test_a_copy_of_a_recipe_executes_no_file_of_the_working_directory(
  recipe_file, tmp_path
):
  recipe = load(str(recipe_file('score_largest')))
  write(tmp_path / 'elsewhere', 'deploy', 'print("executed")')
  saved = recipe.as_json()
  saved['config']['rewards']['function'] = 'deploy:go'
  with pytest.raises(ConfigError, match='deploy:go'):
    restore(tmp_path / 'mine', saved)


def test_scores_that_depend_on_a_file_have_another_digest(
  recipe_file, tmp_path
):
  table = tmp_path / 'table.txt'
  score = f"""
    import pathlib
    def score(response, reference):
      return float(pathlib.Path({str(table)!r}).read_text())
  """
  file = recipe_file('reading.score', 'import reading', reading=score)
  recipe = load(str(file))
  task = recipe.task(recipe.config)
  digests = []
  for text in ('0.5', '0.5', '0.25'):
    table.write_text(text)
    with Scoring(task.rewards, sources=task.sources, workers=1) as scoring:
      digests.append(check_scores(task, scoring))
  assert digests[0] == digests[1] != digests[2]
