# SPDX-License-Identifier: Apache-2.0
"""Recipes that end the process, and `TypeError`s that covrl raises itself."""

from typing import Any

import pytest

from covrl.cli import main
from covrl.cli.errors import is_refusal, refuse_exit
from covrl.data import check_suite_names
from covrl.entropy.base import check_token_chain

RECIPE = """
import dataclasses, sys
from covrl.recipes import countdown

def exits(config):
  sys.exit({code})

def recipe():
  return dataclasses.replace(countdown.grpo(), task=exits)
"""


@pytest.mark.parametrize('code', ['', '0', 'None'])
@pytest.mark.parametrize('arguments', [['plan'], ['train', '--workdir=unused']])
def test_a_recipe_does_not_end_a_command_as_finished(
  tmp_path, monkeypatch, capsys, arguments, code
):
  monkeypatch.chdir(tmp_path)
  file = tmp_path / 'mine.py'
  file.write_text(RECIPE.format(code=code))
  with pytest.raises(SystemExit) as ended:
    main([*arguments, f'--config={file}:recipe'])
  assert ended.value.code == 2
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.startswith(
    'covrl: recipes must not end the command, got sys.exit'
  )
  assert last.endswith('mine.py, line 6')


@pytest.mark.parametrize('options', [[], ['--help']])
def test_the_file_of_a_recipe_does_not_end_a_command(tmp_path, capsys, options):
  file = tmp_path / 'mine.py'
  file.write_text('import sys\nsys.exit()\n')
  with pytest.raises(SystemExit) as ended:
    main(['plan', f'--config={file}:recipe', *options])
  assert ended.value.code == 2
  assert 'recipes must not end the command' in capsys.readouterr().err


@pytest.mark.parametrize('code', [1, 42, 'a sentence'])
def test_other_statuses_of_a_recipe_remain(code):
  with pytest.raises(SystemExit) as ended, refuse_exit():
    raise SystemExit(code)
  assert ended.value.code == code


def test_type_errors_are_refusals_where_covrl_raises_them():
  with pytest.raises(TypeError) as raised:
    check_token_chain(None, 'explain')
  assert is_refusal(raised.value)
  not_iterable: Any = 5
  with pytest.raises(TypeError) as by_chance:
    check_suite_names(not_iterable)
  assert not is_refusal(by_chance.value)
