# SPDX-License-Identifier: Apache-2.0
"""Sandbox script that compiles a program and executes it or calls a function.

Executed before `_job_runner.py`, and on a remote server before a call; never
imported. The script is passed as bytecode of the judge's Python version. Every
import here delays every judged program.
"""

from __future__ import annotations

import _json
import atexit
import builtins
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from types import CodeType
  from typing import Any

# Imported once instead of in every child, if the program mentions them.
_PRELOADED_MODULES = """
bisect collections copy dataclasses datetime decimal enum fractions functools
heapq io itertools json math operator queue random re statistics string
threading time typing
"""

# Names that LeetCode provides to the functions of its problems.
_LEETCODE_NAMES = {
  'bisect': 'bisect_left bisect_right insort',
  'collections': 'Counter OrderedDict defaultdict deque namedtuple',
  'functools': 'cache cmp_to_key lru_cache reduce',
  'heapq': 'heapify heappop heappush heappushpop heapreplace nlargest nsmallest',
  'itertools': 'accumulate chain combinations count cycle groupby islice'
  ' pairwise permutations product zip_longest',
  'math': 'ceil comb factorial floor gcd inf isqrt lcm log log2 pi sqrt',
  'typing': 'Any Callable DefaultDict Deque Dict Iterable Iterator List'
  ' Optional Sequence Set Tuple Union',
}
_LEETCODE_MODULES = (
  *_LEETCODE_NAMES,
  'copy',
  'operator',
  'random',
  're',
  'string',
  'sys',
)


# The limit that test harnesses of the data sets set; recursive solutions need it.
_RECURSION_LIMIT = 50_000

_offered_packages: dict[str, tuple[str, str]] = {}
"""File and directory of each installed package that programs may import."""


class _PackageFinder:
  """Finder of the offered packages; other installed ones cannot be imported."""

  @staticmethod
  def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
    """Returns the import system's description of an offered package."""
    del path, target
    if name not in _offered_packages:
      return None
    import _frozen_importlib_external

    file, directory = _offered_packages[name]
    make_spec: Any = _frozen_importlib_external.spec_from_file_location
    locations = [directory] if directory else None
    return make_spec(name, file, submodule_search_locations=locations)


def offer_packages(packages: list[tuple[str, str, str]]) -> None:
  """Makes installed packages importable: names, files and directories."""
  for name, file, directory in packages:
    _offered_packages[name] = file, directory
  if packages:
    sys.meta_path.append(_PackageFinder)


# Variables with the number of threads of numerical libraries.
_THREAD_COUNT_VARIABLES = (
  'OMP_NUM_THREADS',
  'OPENBLAS_NUM_THREADS',
  'MKL_NUM_THREADS',
)


class Program:
  """A program, compiled once for all children."""

  def __init__(self, source: bytes) -> None:
    self.source = source
    self.code: CodeType | None = None

  def compile(self) -> str:
    """Compiles the program; returns the error, or an empty text."""
    try:
      self.code = compile(self.source, 'program.py', 'exec', dont_inherit=True)
    except BaseException as error:
      return describe(error)
    for name in (*_PRELOADED_MODULES.split(), *_offered_packages):
      if name.encode() in self.source:
        _preload(name)
    return ''

  def execute(
    self, name: str, *, leetcode_names: bool = False
  ) -> dict[str, Any]:
    """Executes the program as a module; returns its namespace.

    Args:
      name: name of the module.
      leetcode_names: whether names that LeetCode provides are defined.
    """
    assert self.code is not None
    sys.setrecursionlimit(_RECURSION_LIMIT)
    module = type(sys)(name)
    module.__file__ = 'program.py'
    sys.modules[name] = module
    namespace = module.__dict__
    if leetcode_names:
      _add_leetcode_names(self.code, namespace)
    exec(self.code, namespace)
    return namespace


def _preload(name: str) -> None:
  """Imports a module; the program's own import raises an error, if there is one."""
  # Threads of libraries would not survive a fork.
  for variable in _THREAD_COUNT_VARIABLES:
    os.environ[variable] = '1'
  try:
    __import__(name)
  except (ImportError, MemoryError, OSError):
    return
  finally:
    for variable in _THREAD_COUNT_VARIABLES:
      del os.environ[variable]


def describe(error: BaseException) -> str:
  """Returns an exception's type and message."""
  try:
    return f'{type(error).__name__}: {error}'
  except BaseException:
    return 'an exception that cannot be printed'


def _input_without_prompt(read: Any) -> Any:
  """Returns `input` that prints no prompt, since a prompt is not output."""

  def input(*prompt: Any) -> str:
    return read(*prompt) if len(prompt) > 1 else read()

  return input


def _run(program: Program) -> int:
  """Runs a program as a main module, with an interpreter's clean-up."""
  if b'input' in program.source:
    builtins.input = _input_without_prompt(builtins.input)
  # The sandbox's /dev/stdin is a link to this file.
  if b'/dev/stdin' in program.source and os.access('/tmp', os.W_OK):
    with open('/tmp/stdin', 'wb') as file:
      file.write(os.pread(0, os.fstat(0).st_size, 0))
  status = 0
  stdout = sys.stdout
  try:
    program.execute('__main__')
  except SystemExit as error:
    status = error.code if isinstance(error.code, int) else 0
  except BaseException as error:
    _write(3, describe(error).encode(errors='replace')[:500])
    status = 1
  threading = sys.modules.get('threading')
  if threading is not None:
    threading._shutdown()
  atexit._run_exitfuncs()
  sys.stdout.flush()
  # Closes, and thereby flushes, files left open.
  sys.modules['__main__'].__dict__.clear()
  stdout.flush()
  return status & 0xFF


def _call(program: Program, name: str, arguments: list[Any]) -> int:
  """Calls a function and writes its result as JSON to descriptor 3."""
  try:
    function = _find_function(
      program.execute('solution', leetcode_names=True), name
    )
    text = to_json({'result': function(*arguments)})
  except BaseException as error:
    text = to_json({'error': describe(error)[:500]})
  _write(3, text.encode())
  return 0


def to_json(value: Any) -> str:
  """Encodes JSON like the `json` module, whose import takes ten ms."""

  def convert(value: Any) -> Any:
    module = type(value).__module__.partition('.')[0]
    if module == 'numpy' and hasattr(value, 'tolist'):
      return value.tolist()
    if module in ('decimal', 'fractions') and value == value:
      return int(value) if value == int(value) else float(value)
    raise TypeError(f'{type(value).__name__} is not JSON')

  encode_text = _json.encode_basestring_ascii
  # Indent, separators of keys and items, sort_keys, skipkeys, allow_nan.
  options = None, ': ', ', ', False, False, True
  return ''.join(
    _json.make_encoder({}, convert, encode_text, *options)(value, 0)
  )


def from_json(text: str) -> Any:
  """Decodes untrusted JSON."""
  make_scanner: Any = _json.make_scanner
  scan = make_scanner(_ScannerOptions())
  try:
    value, end = scan(text, 0)
  except StopIteration:
    raise ValueError(f'a message must be JSON, got {text!r:.80}') from None
  if end != len(text):
    raise ValueError(
      f'a message must be one JSON value, got more: {text[end:]!r:.80}'
    )
  return value


class _ScannerOptions:
  """Options of the JSON scanner, as in the `json` module."""

  strict = True
  object_hook = None
  object_pairs_hook = None
  parse_float = float
  parse_int = int
  parse_constant = float


def _find_function(namespace: dict[str, Any], name: str) -> Any:
  """Returns a function, or a method of a new instance of its class."""
  owner, _, method = name.rpartition('.')
  if not owner and name not in namespace and 'Solution' in namespace:
    owner = 'Solution'
  if owner:
    return getattr(namespace[owner](), method)
  if name not in namespace:
    raise NameError(f'the program defines no {name}')
  return namespace[name]


def _add_leetcode_names(code: CodeType, namespace: dict[str, Any]) -> None:
  """Defines the names that LeetCode provides and the program uses."""
  used_names, pending_codes = set(), [code]
  while pending_codes:
    code = pending_codes.pop()
    used_names.update(code.co_names)
    pending_codes.extend(c for c in code.co_consts if isinstance(c, type(code)))
  for module, names in _LEETCODE_NAMES.items():
    for name in used_names.intersection(names.split()):
      namespace[name] = getattr(__import__(module), name)
  for module in used_names.intersection(_LEETCODE_MODULES):
    namespace[module] = __import__(module)


def _read(descriptor: int) -> bytes:
  """Reads all bytes from a descriptor."""
  chunks = []
  while chunk := os.read(descriptor, 1 << 20):
    chunks.append(chunk)
  return b''.join(chunks)


def _write(descriptor: int, data: bytes) -> None:
  """Writes all bytes to a descriptor."""
  while data:
    data = data[os.write(descriptor, data) :]
