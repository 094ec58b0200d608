# SPDX-License-Identifier: Apache-2.0
"""The files that a Python interpreter needs inside a sandbox."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

_PROBE_TIMEOUT = 300.0  # seconds
# Prints the libraries mapped after importing all extension modules.
_PROBE = """
import json, os, sys, sysconfig, warnings
warnings.simplefilter('ignore')
extensions = os.path.join(sysconfig.get_path('platstdlib'), 'lib-dynload')
if os.path.isdir(extensions):
  for file in os.listdir(extensions):
    name = file.partition('.')[0]
    if not name.startswith(('_test', '_tkinter', '_ctypes_test', 'xx')):
      try:
        __import__(name)
      except ImportError:
        pass
with open('/proc/self/maps') as file:
  mapped = {line.split(None, 5)[-1].strip() for line in file}
print(json.dumps({
  'executable': os.path.realpath(sys.executable),
  'stdlib': [sysconfig.get_path(n) for n in ('stdlib', 'platstdlib')],
  'mapped': sorted(path for path in mapped if '.so' in path),
}))
"""


@dataclasses.dataclass(frozen=True)
class Interpreter:
  """Files to mount so that the trainer's Python version runs.

  Attributes:
    executable: path of the interpreter.
    files: files and directories, mounted at the same paths.
    links: symbolic links, as (target, path).
    hidden: directories below `files` that the sandbox shows as empty, since they hold
      installed packages.
  """

  executable: str
  files: tuple[str, ...]
  links: tuple[tuple[str, str], ...]
  hidden: tuple[str, ...]


@functools.cache
def find_interpreter() -> Interpreter:
  """Returns the base interpreter of this process's (virtual) environment.

  Raises:
    OSError: if the interpreter does not run.
  """
  path: str = getattr(sys, '_base_executable', '') or sys.executable
  try:
    completed = subprocess.run(
      [path, '-I', '-S', '-c', _PROBE],
      capture_output=True,
      text=True,
      check=False,
      timeout=_PROBE_TIMEOUT,
      env={},
    )
  except subprocess.TimeoutExpired:
    raise OSError(f'{path} did not end within {_PROBE_TIMEOUT:g} s') from None
  if completed.returncode:
    raise OSError(f'{path} does not run: {completed.stderr.strip()[-200:]}')
  return _find_files(json.loads(completed.stdout))


def _find_files(probe_output: dict) -> Interpreter:
  """Returns the files to mount, given the output of the probe."""
  executable = probe_output['executable']
  stdlib = sorted({os.path.realpath(path) for path in probe_output['stdlib']})
  prefix = os.path.dirname(os.path.dirname(executable))
  files, links = [executable, *stdlib], []
  for library in probe_output['mapped']:
    directory = os.path.dirname(library)
    if _is_within(library, files):
      continue
    if prefix != '/usr' and _is_within(library, [prefix]):
      # Outside of /usr, the directory of a library may hold unrelated files, too.
      files.append(library)
      links += [
        (os.path.basename(library), path) for path in _links_to(library)
      ]
    else:
      files.append(directory)
  hidden = [
    os.path.join(path, name)
    for path in stdlib
    for name in ('site-packages', 'dist-packages')
    if os.path.isdir(os.path.join(path, name))
  ]
  for path in ('/lib', '/lib64', '/usr/lib64'):
    if os.path.islink(path):
      links.append((os.readlink(path), path))
  files += [path for path in _loaders() if not _is_within(path, files)]
  return Interpreter(
    executable, tuple(sorted(set(files))), tuple(links), tuple(hidden)
  )


def _is_within(path: str, directories: list[str]) -> bool:
  """Returns whether a path lies in one of the directories."""
  return any(path.startswith(f'{directory}/') for directory in directories)


def _links_to(library: str) -> list[str]:
  """Returns symbolic links to a library in its directory."""
  with os.scandir(os.path.dirname(library)) as entries:
    return [
      entry.path
      for entry in entries
      if entry.is_symlink() and os.path.realpath(entry.path) == library
    ]


def _loaders() -> list[str]:
  """Returns the dynamic loaders by their well-known paths, and their cache."""
  paths = [
    os.path.join(os.path.realpath(directory), path.name)
    for directory in ('/lib', '/lib64')
    for path in pathlib.Path(directory).glob('ld-linux*.so.*')
  ]
  cache = '/etc/ld.so.cache'
  return [*paths, cache] if os.path.exists(cache) else paths
