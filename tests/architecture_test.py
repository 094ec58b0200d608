# SPDX-License-Identifier: Apache-2.0
"""Packages import only from packages on lower layers, without cycles."""

import ast
import pathlib
from collections.abc import Iterator

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# From the bottom up; packages of one layer may import each other, but not in
# a cycle.
LAYERS = (
  (
    'types',
    'array_checks',
    'chain_checks',
    'context_checks',
    'exit_codes',
    'parallel',
    'config',
    'storage',
  ),
  ('statistics', 'objectives', 'models', 'data', 'rewards'),
  ('entropy', 'pretrained', 'rollout'),
  ('tasks', 'evaluation', 'run'),
  ('train', 'theory'),
  ('report', 'compile', 'serve'),
  # `recipes` has the recipe files as modules; they may import all packages.
  ('cli', 'recipes'),
)
LAYER_OF = {name: level for level, names in enumerate(LAYERS) for name in names}
# Namespaces that only re-export public names.
NAMESPACES = ('losses', 'advantages', 'selectors', 'controllers')


def package_of(file: pathlib.Path) -> str:
  """Returns the name of the package or module that contains a file."""
  return file.relative_to(ROOT / 'covrl').parts[0].removesuffix('.py')


def imported_packages(file: pathlib.Path) -> Iterator[str]:
  """Packages of covrl that a file imports, anywhere in its text."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module == 'covrl':
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
      if node.module.startswith('covrl.'):
        yield node.module.split('.')[1]
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith('covrl.'):
          yield alias.name.split('.')[1]


def edges() -> dict[tuple[str, str], pathlib.Path]:
  """Pairs of importing and imported package, with a file as evidence."""
  imports = {}
  for file in sorted((ROOT / 'covrl').rglob('*.py')):
    package = package_of(file)
    if package == '__init__' or package in NAMESPACES:
      continue
    for target in imported_packages(file):
      if target != package:
        imports.setdefault((package, target), file)
  return imports


def test_every_package_has_a_layer():
  packages = {package_of(file) for file in (ROOT / 'covrl').rglob('*.py')}
  assert packages - {'__init__', *NAMESPACES} == set(LAYER_OF)


def test_no_package_imports_upwards():
  upwards = [
    f'{source} imports {target} in {file.relative_to(ROOT)}'
    for (source, target), file in edges().items()
    if target not in LAYER_OF or LAYER_OF[target] > LAYER_OF[source]
  ]
  assert not upwards


def test_packages_of_one_layer_do_not_import_each_other_in_a_cycle():
  pairs = edges()
  mutual = [pair for pair in pairs if pair[::-1] in pairs and pair[0] < pair[1]]
  assert not mutual


@pytest.mark.parametrize('package', ['report', 'theory'])
def test_training_imports_neither_reports_nor_theory(package):
  checked_packages = [
    name for name in LAYER_OF if name not in ('cli', 'report')
  ]
  importers = [s for s, t in edges() if t == package and s in checked_packages]
  assert not importers


def test_only_time_stamps_read_the_system_clock():
  """The clock may jump: waits and measured times use `time.monotonic`."""
  files = set()
  for file in (ROOT / 'covrl').rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Attribute) and node.attr in (
        *('time', 'time_ns', 'now', 'utcnow', 'today'),
        *('localtime', 'gmtime', 'CLOCK_REALTIME'),
      ):
        module = ast.unparse(node.value)
        if module in ('time', 'datetime', 'datetime.datetime'):
          files.add(str(file.relative_to(ROOT / 'covrl')))
  assert files == {
    'data/chat/program.py',  # `strftime_now` of chat templates
    'run/notices.py',  # times of notices
    'run/event_files.py',  # times of events
    'serve/answer.py',  # `created` of an answer
    'serve/app.py',  # `created` of the model
  }


def test_text_is_read_in_one_encoding():
  """The encoding of a machine's locale may be ASCII."""
  for file in (ROOT / 'covrl').rglob('*.py'):
    for node in ast.walk(ast.parse(file.read_text())):
      if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        has_encoding = node.args or node.keywords
        assert node.func.attr != 'read_text' or has_encoding, (
          file,
          node.lineno,
        )
