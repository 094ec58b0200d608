# SPDX-License-Identifier: Apache-2.0
"""The API reference builds; links and commands of the documentation exist."""

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from covrl import config
from covrl.cli import compile as compile_command
from covrl.cli import main
from covrl.compile import compile_recipe
from covrl.parallel import topologies

ROOT = pathlib.Path(__file__).parents[1]
SCRIPT = pathlib.Path(__file__).with_name('make_docs.py')
PAGES = sorted(
  page
  for pattern in (
    '*.md',
    'configs/*.md',
    'launch/*.md',
    'covrl/**/*.md',
    'tests/*.md',
    'tests/benchmarks/**/*.md',
  )
  for page in ROOT.glob(pattern)
)


@pytest.mark.slow
def test_pages_are_built_without_a_warning(tmp_path):
  completed = subprocess.run(
    [sys.executable, str(SCRIPT), str(tmp_path)],
    # These sources, also where another checkout is installed.
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (completed.returncode, completed.stdout, completed.stderr) == (
    0,
    '',
    '',
  )
  top = (tmp_path / 'covrl.html').read_text()
  assert 'id="kl_cov"' in top
  assert 'id="TokenStats"' in top
  assert 'id="cispo"' in (tmp_path / 'covrl' / 'losses.html').read_text()


def anchors(page: pathlib.Path) -> set[str]:
  """Returns the anchors of a page's headings, as GitHub makes them."""
  text = re.sub(r'^```.*?^```', '', page.read_text(), flags=re.M | re.S)
  titles = re.findall(r'^#+ (.*)', text, re.MULTILINE)
  return {re.sub(r'[^\w\- ]', '', t.lower()).replace(' ', '-') for t in titles}


@pytest.mark.parametrize(
  'page', PAGES, ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_to_files_and_headings(page):
  links = re.findall(r'\]\(([^)\s]+)\)', page.read_text())
  for link in links:
    if link.startswith(('http://', 'https://')):
      continue
    name, _, anchor = link.partition('#')
    target = page.parent / name if name else page
    assert target.exists(), link
    assert not anchor or anchor in anchors(target), link


def commands(page: pathlib.Path) -> Iterator[list[str]]:
  """Yields the words of the commands in a page: in fenced blocks and inline."""
  text = page.read_text().replace('\\\n', ' ')
  fence = re.compile(r'^```\w*\n(.*?)^```', re.MULTILINE | re.DOTALL)
  blocks: list[str] = fence.findall(text)
  shell = '\n'.join(blocks).splitlines()
  inline: list[str] = re.findall(r'`([^`\n]+)`', fence.sub('', text))
  for line in (*shell, *inline):
    words = line.partition(' #')[0].split()
    if len(words) > 1 and words[0] in ('covrl', 'make', 'python'):
      yield words


COMMANDS = [command for page in PAGES for command in commands(page)]
SHIPPED_PREFIXES = tuple(
  {f'{name.partition(":")[0]}:' for name, _ in config.recipes()}
)


def test_make_targets_exist():
  makefile = (ROOT / 'Makefile').read_text()
  targets = set(re.findall(r'^([\w-]+):', makefile, re.MULTILINE))
  used = {words[1] for words in COMMANDS if words[0] == 'make'}
  assert used
  assert used <= targets


def test_scripts_exist():
  scripts = [
    word
    for command in COMMANDS
    for word in command
    if word.endswith('.py') and word.startswith(('tests/', 'covrl/'))
  ]
  assert scripts
  assert not [name for name in scripts if not (ROOT / name).is_file()]


def test_recipes_and_config_fields_exist(monkeypatch):
  monkeypatch.chdir(ROOT)
  checked = 0
  for command in COMMANDS:
    specs = [w for w in command if w.startswith('--config=')]
    overrides = [w for w in command if w.startswith('--config.')]
    for spec in specs:
      name = spec.removeprefix('--config=')
      if name.startswith(('configs/', *SHIPPED_PREFIXES)):
        config.load(name, overrides)
        checked += 1
  assert checked


def test_recipes_suit_the_chips_that_they_are_compiled_for():
  """Batches and model can be sharded; nothing is compiled."""
  examples = [
    line.split() for line in (compile_command.__doc__ or '').split('\n')
  ]
  checked = 0
  for command in [*COMMANDS, *examples]:
    topology = next((w for w in command if w.startswith('--topology=v')), '')
    if command[:2] != ['covrl', 'compile'] or not topology:
      continue
    spec = next(w for w in command if w.startswith('--config='))
    recipe = config.load(
      spec.removeprefix('--config='),
      [w for w in command if w.startswith('--config.')],
    )
    chips = topologies.find_topology(topology.removeprefix('--topology='))
    compile_recipe(recipe, chips, names=())
    checked += 1
  assert checked >= 4


def test_options_of_commands_exist(capsys):
  used_options = {}
  for program, *words in COMMANDS:
    if program == 'covrl' and words and not words[0].startswith('-'):
      options = (w for w in words[1:] if w.startswith('--'))
      names = (w.partition('=')[0] for w in options)
      used_options.setdefault(words[0], set()).update(
        name for name in names if not name.startswith('--config.')
      )
  assert used_options
  for name, options in used_options.items():
    with pytest.raises(SystemExit) as ended:
      main([name, '--help'])
    assert ended.value.code == 0, name
    usage = capsys.readouterr().out
    missing = {
      o for o in options - {'--help'} if o.replace('-', '_')[2:] not in usage
    }
    assert not missing, (name, missing)
