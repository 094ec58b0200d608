# SPDX-License-Identifier: Apache-2.0
"""Checks that a job's config and files are in the commit copied to the hosts."""

from __future__ import annotations

import ast
import dataclasses
import pathlib
import subprocess
from collections.abc import Iterator, Sequence

from covrl.config.loading import locate
from covrl.config.overrides import PREFIX
from covrl.config.schema import fields_by_name
from launch.job import Job, LaunchError
from launch.shell import Shell

ROOT = pathlib.Path(__file__).parents[1]

# Number of files that the note on uncommitted changes names.
_MAX_NAMES = 5


def with_committed_config(job: Job, shell: Shell, root: pathlib.Path) -> Job:
  """Returns a job whose config is the committed file, relative to the checkout.

  Prints a note on uncommitted changes of other files, which the hosts lack.

  Args:
    job: the job.
    shell: prints the note.
    root: the checkout whose commit HEAD is copied.

  Raises:
    LaunchError: the config, a file beside it that it imports, or a file that an
      argument names is absent, outside the checkout or not committed.
  """
  changed = _changed_files(root)
  spec = job.value('--config') or ''
  file = _config_file(spec, root)
  for path in (file, *_imported_beside(file)):
    _check_committed(path, root, changed)
  module, _, _ = (job.value('--config.rewards.function') or '').partition(':')
  # Beside the config, or where the hosts train.
  for directory in (file.parent, root):
    path = directory / f'{module}.py'
    if module and path.is_file():
      for each in (path, *_imported_beside(path)):
        _check_committed(each, root, changed)
      break
  _check_arguments(job, root, changed)
  if changed:
    more = len(changed) - _MAX_NAMES
    names = ', '.join(changed[:_MAX_NAMES]) + f' and {more} more' * (more > 0)
    shell.print(f'not committed, so not on the hosts: {names}')
  path, suffix, function = spec.rpartition('.py')
  if suffix:
    # The hosts train in the directory of their copy.
    path = file.relative_to(root).as_posix()
    return _with_config(job, spec, f'{path}{function}')
  return job


def _config_file(spec: str, root: pathlib.Path) -> pathlib.Path:
  """Returns the absolute path of the config's file."""
  file, function = locate(spec)
  if function not in _defined_names(file):
    raise LaunchError(
      f'--config must name a recipe in {file}, got {function!r}'
    )
  if '.py' not in spec:
    # Recipes that covrl ships are installed on the hosts from this directory.
    file = root / 'configs' / file.name
  return file.resolve()


def _defined_names(file: pathlib.Path) -> set[str]:
  """Returns the names that a file defines or imports at its top level."""
  names: set[str] = set()
  for node in ast.parse(file.read_text(encoding='utf-8')).body:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
      names.add(node.name)
    elif isinstance(node, ast.Import | ast.ImportFrom):
      names |= {alias.asname or alias.name for alias in node.names}
    else:
      stored = (n for n in ast.walk(node) if isinstance(n, ast.Name))
      names |= {n.id for n in stored if isinstance(n.ctx, ast.Store)}
  return names


def _imported_beside(file: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields the files of a config's directory that it imports, recursively."""
  files, unread = {file}, [file]
  while unread:
    for name in _imports(unread.pop()):
      path = file.with_name(f'{name}.py')
      if path not in files and path.is_file():
        files.add(path)
        unread.append(path)
        yield path


def _imports(file: pathlib.Path) -> Iterator[str]:
  """Yields the top-level names of the modules that a file imports."""
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      yield from (alias.name.partition('.')[0] for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
      yield node.module.partition('.')[0]


def _check_committed(
  path: pathlib.Path, root: pathlib.Path, changed: Sequence[str]
) -> None:
  """Checks that a file is in the commit as it is on this machine."""
  if not path.is_relative_to(root):
    raise LaunchError(
      f'--config must be a file of {root}, whose commit HEAD is copied to the '
      f'hosts, got {path}'
    )
  name = path.relative_to(root).as_posix()
  if name in changed or not _is_committed(name, root):
    raise LaunchError(
      f'--config and the files that it imports must be committed, since the '
      f'commit HEAD is copied to the hosts, got {name}, which is not committed '
      'or has changed since'
    )


def _check_arguments(
  job: Job, root: pathlib.Path, changed: Sequence[str]
) -> None:
  """Checks that no argument names a file that the hosts have in another form."""
  fields = fields_by_name()
  for argument in job.arguments:
    option, _, value = argument.partition('=')
    field = fields.get(option.removeprefix(PREFIX))
    if field is None or field.kind is not str or not value:
      continue
    for text in value.split(','):
      path = pathlib.Path(text.partition('=')[0])
      if path.is_absolute() or not _exists(path):
        continue
      file = path.resolve()
      inside = file.is_relative_to(root)
      if not inside or not _is_committed(str(file.relative_to(root)), root):
        raise LaunchError(
          f'{option} must name files that the hosts have, such as those of a '
          f'bucket, got {str(path)!r}, which only this machine has'
        )
      if file != (root / path).resolve():
        raise LaunchError(
          f'{option} must name files from {root}, where the hosts train, got'
          f' {str(path)!r}, which is {file}'
        )
      name = file.relative_to(root).as_posix()
      if any(f'{each}/'.startswith(f'{name}/') for each in changed):
        raise LaunchError(
          f'{option} must name files as they are in the commit HEAD, which is'
          f' copied to the hosts, got {str(path)!r}, which has changed since'
        )


def _exists(path: pathlib.Path) -> bool:
  """Returns whether an arbitrary text names an existing file."""
  try:
    return path.exists() and path != pathlib.Path()
  except (OSError, ValueError):
    return False


def _is_committed(name: str, root: pathlib.Path) -> bool:
  """Returns whether a file is in the commit HEAD."""
  return bool(_git(root, 'ls-tree', '--name-only', 'HEAD', '--', name))


def _changed_files(root: pathlib.Path) -> list[str]:
  """Returns the files that differ from the commit, untracked ones included."""
  entries = _git(root, 'status', '--porcelain', '-z', '--no-renames')
  return [entry[3:] for entry in entries.split('\0') if entry]


def _git(root: pathlib.Path, *arguments: str) -> str:
  """Returns the output of a git command that only reads."""
  try:
    completed = subprocess.run(
      ['git', '-C', str(root), *arguments],
      capture_output=True,
      text=True,
      check=False,
    )
  except FileNotFoundError:
    raise LaunchError('launching needs git, which is not installed') from None
  if completed.returncode:
    reason = ' '.join(completed.stderr.split())
    raise LaunchError(
      f'{root} must be a git checkout, whose commit HEAD is copied to the '
      f'hosts: {reason}'
    )
  return completed.stdout


def _with_config(job: Job, old_spec: str, spec: str) -> Job:
  """Returns the job with another value of `--config`."""
  replacements = {old_spec: spec, f'--config={old_spec}': f'--config={spec}'}
  arguments = [
    replacements.get(argument, argument) for argument in job.arguments
  ]
  return dataclasses.replace(job, arguments=tuple(arguments))
