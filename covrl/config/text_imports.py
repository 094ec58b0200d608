# SPDX-License-Identifier: Apache-2.0
"""Imports Python files by their text, never by cached bytecode.

Python takes bytecode of `__pycache__` for that of a file if size and modification
time, in seconds, are those of the file. That of an earlier text of the same second,
or one that a stranger has left there, would be executed in place of the text.
"""

import importlib.util
import io
import pathlib
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import CodeType, ModuleType

from covrl.config.errors import ConfigError


class _TextLoader(SourceFileLoader):
  """Loader that compiles the text of a file, and records it.

  Args:
    name: name of the module.
    path: the file.
    contents: receives the content that is compiled, by the file's absolute path.
  """

  def __init__(
    self, name: str, path: str, contents: dict[pathlib.Path, bytes]
  ) -> None:
    super().__init__(name, path)
    self._contents = contents

  def get_code(self, fullname: str) -> CodeType:
    """Compiles the file."""
    path = self.get_filename(fullname)
    content = self.get_data(path)
    self._contents[pathlib.Path(path).absolute()] = content
    return self.source_to_code(content, path)


class TextImports:
  """Finder of the Python files and packages in a directory; see `sys.meta_path`.

  Args:
    directory: an absolute path.
    packages: whether to find packages, too.
  """

  def __init__(self, directory: pathlib.Path, *, packages: bool) -> None:
    self._directory = directory
    self._packages = packages
    self._contents: dict[pathlib.Path, bytes] = {}

  def loader(self, name: str, path: str) -> SourceFileLoader:
    """Returns a loader of a file, for a module of a given name."""
    return _TextLoader(name, path, self._contents)

  def text(self, file: pathlib.Path) -> str:
    """Returns the text of a file: the one that was executed, if it was.

    Raises:
      ConfigError: it is not UTF-8.
    """
    content = self._contents.get(file.absolute())
    if content is None:
      content = file.read_bytes()
    try:
      return io.TextIOWrapper(io.BytesIO(content), encoding='utf-8').read()
    except UnicodeDecodeError as error:
      raise ConfigError(f'{file} must be UTF-8, got: {error}') from None

  def find_spec(
    self,
    name: str,
    path: Sequence[str] | None = None,
    target: ModuleType | None = None,
  ) -> ModuleSpec | None:
    """Returns the description of a module in the directory, `None` for others."""
    del target
    stem = name.rpartition('.')[2]
    for entry in [str(self._directory)] if path is None else path:
      folder = pathlib.Path(entry)
      if not folder.is_relative_to(self._directory):
        continue
      for file in (folder / stem / '__init__.py', folder / f'{stem}.py'):
        is_package = file.parent != folder
        if file.is_file() and (self._packages or not is_package):
          return importlib.util.spec_from_file_location(
            name,
            file,
            loader=self.loader(name, str(file)),
            submodule_search_locations=[str(file.parent)]
            if is_package
            else None,
          )
    return None
