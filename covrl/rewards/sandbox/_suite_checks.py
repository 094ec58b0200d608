# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that refuses suites which need the program in their own process.

Executed after `_proxies.py` and before `_suite_runner.py`; never imported. Apart from
the program, what a suite does to its standard output, modules or files has no effect
on the program, and no value of the program is the same object as one of the suite. A
right program would pass in one process only and have no score, and a wrong one 0.
"""

from __future__ import annotations

import builtins

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Iterator
  from typing import Any

  from covrl.rewards.sandbox._proxies import SuiteError

_SYNTAX_TREE_ONLY = 0x400  # the flag of `compile`, `ast.PyCF_ONLY_AST`
_STREAMS = ('stdin', 'stdout', 'stderr')
# What a suite must not use: functions of `contextlib`, modules, attributes of `os`,
# methods of paths, and a built-in function.
_REDIRECTIONS = ('redirect_stdout', 'redirect_stderr')
_MODULES = ('asyncio', 'shutil', 'tempfile')
_OS_NAMES = ('chdir', 'environ', 'listdir', 'makedirs', 'mkdir', 'remove')
_PATH_METHODS = ('read_bytes', 'read_text', 'write_bytes', 'write_text')
_OPEN = 'open'


def check_suite(source: bytes) -> None:
  """Checks that a suite can be judged in another process than the program.

  Args:
    source: the suite, which is valid Python.

  Raises:
    SuiteError: it cannot; the message names what it does.
  """
  tree = compile(source, 'suite', 'exec', _SYNTAX_TREE_ONLY, dont_inherit=True)
  nodes = [*_nodes(tree)]
  own_names = {name for node in nodes for name in _bound_names(node)}
  used_names = {
    node.id
    for node in nodes
    if type(node).__name__ == 'Name' and _is_read(node)
  }
  for node in nodes:
    if use := _use(node, own_names, used_names):
      raise SuiteError(f"{use} needs the program in the suite's own process")


def _nodes(node: Any) -> Iterator[Any]:
  """Yields a node of a syntax tree and all below it."""
  pending = [node]
  while pending:
    node = pending.pop()
    yield node
    for field in node._fields:
      value = getattr(node, field, None)
      for child in value if isinstance(value, list) else [value]:
        if hasattr(child, '_fields'):
          pending.append(child)


def _bound_names(node: Any) -> Iterator[str]:
  """Yields names that a definition, an assignment or an import binds."""
  match type(node).__name__:
    case 'FunctionDef' | 'ClassDef':
      yield node.name
    case 'arg':
      yield node.arg
    case 'Name' if not _is_read(node):
      yield node.id
    case 'ImportFrom':
      for alias in node.names:
        yield alias.asname or alias.name


def _is_read(node: Any) -> bool:
  """Returns whether a name or attribute is read, not bound or removed."""
  return type(node.ctx).__name__ == 'Load'


def _use(node: Any, own_names: set[str], used_names: set[str]) -> str:
  """Describes what a node uses that needs one process; empty if nothing."""
  match type(node).__name__:
    case 'Import':
      for alias in node.names:
        module = alias.name.partition('.')[0]
        if module in _MODULES and (alias.asname or module) in used_names:
          return module
    case 'ImportFrom':
      module = node.module or ''
      names = [alias.name for alias in node.names]
      if module in _MODULES:
        return module
      if module.rpartition('.')[2] == 'mock' and 'patch' in names:
        return 'mock.patch'
      return next((name for name in names if name in _REDIRECTIONS), '')
    case 'Name' if node.id == _OPEN and _OPEN not in own_names:
      return _OPEN
    case 'Attribute':
      return _attribute_use(node, own_names)
    case 'Compare':
      operands = [node.left, *node.comparators]
      for operator, *pair in zip(
        node.ops, operands, operands[1:], strict=False
      ):
        is_identity = type(operator).__name__ in ('Is', 'IsNot')
        if is_identity and not any(map(_is_shared, pair)):
          return 'the identity of objects (is)'
  return ''


def _attribute_use(node: Any, own_names: set[str]) -> str:
  """Describes what an attribute is of that needs one process."""
  name = node.attr
  owner = getattr(node.value, 'id', getattr(node.value, 'attr', ''))
  is_set = not _is_read(node)
  if owner in own_names and owner != 'mock':
    owner = ''
  if (
    name in _REDIRECTIONS
    or name in _PATH_METHODS
    or (owner == 'mock' and name == 'patch')
    or (owner == 'os' and name in _OS_NAMES)
    or (owner == 'sys' and name in _STREAMS and is_set)
  ):
    return f'{owner}.{name}' if owner else name
  return ''


def _is_shared(node: Any) -> bool:
  """Returns whether a value is one object everywhere: a constant or built-in class.

  The class of a program's object is another one in the suite.
  """
  is_builtin = hasattr(builtins, getattr(node, 'id', ''))
  return type(node).__name__ == 'Constant' or is_builtin
