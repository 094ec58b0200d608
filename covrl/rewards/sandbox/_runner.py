# SPDX-License-Identifier: Apache-2.0
"""Sandbox script of process 1: takes jobs and forks a child for each.

Never imported. Jobs come from the control socket; each runs in a forked child, a
started interpreter that has not executed any program. When the child ends, all
other processes of the sandbox are killed. A program can tamper with its process,
this script's functions included: only bytes leave the sandbox, and the judge
trusts none of them.

The script is passed as bytecode of the judge's Python version. Every import here
delays every judged program.
"""

from __future__ import annotations

import _json
import _socket
import atexit
import builtins
import marshal
import os
import resource
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable
  from types import CodeType
  from typing import Any

_CONTROL = 9
_SIGKILL = 9

# Imported once instead of in every child, if the program mentions them.
_COMMON = [
  'bisect',
  'collections',
  'copy',
  'dataclasses',
  'datetime',
  'decimal',
  'enum',
  'fractions',
  'functools',
  'heapq',
  'io',
  'itertools',
  'json',
  'math',
  'operator',
  'queue',
  'random',
  're',
  'statistics',
  'string',
  'threading',
  'time',
  'typing',
]

# Names that LeetCode provides to the functions of its problems.
_IN_SCOPE = {
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
_MODULES = (*_IN_SCOPE, 'copy', 'operator', 'random', 're', 'string', 'sys')


def main(control: int) -> None:
  """Executes jobs from the control socket until it closes."""
  os.dup2(control, _CONTROL)
  os.closerange(3, _CONTROL)
  os.closerange(_CONTROL + 1, 1 << 20)
  socket = _socket.socket(fileno=_CONTROL)
  settings, _ = _receive(socket)
  confine = _restrict(settings)
  socket.send(b'ready')
  program = Program(b'')
  while True:
    job, descriptors = _receive(socket)
    if job['kind'] == 'load':
      program = Program(_read(descriptors[0]))
      _close(descriptors)
      reason = program.compile()
      socket.send(b'.' + reason.encode(errors='replace')[:1000])
      continue
    child = os.fork()
    if child == 0:
      socket.detach()
      run_child(program, job, descriptors, confine)
    _close(descriptors)
    status = _wait(child)
    _remove_file('/tmp/stdin')
    clean = not any(map(os.listdir, settings['writable']))
    socket.send(f'{status} {clean:d}'.encode())


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
    for name in _COMMON:
      if name.encode() in self.source:
        __import__(name)
    return ''

  def execute(self, name: str, *, helped: bool = False) -> dict[str, Any]:
    """Executes the program as a module; returns its namespace."""
    assert self.code is not None
    module = type(sys)(name)
    module.__file__ = 'program.py'
    sys.modules[name] = module
    namespace = module.__dict__
    if helped:
      _add_leetcode_names(self.code, namespace)
    exec(self.code, namespace)
    return namespace


def describe(error: BaseException) -> str:
  """Returns an exception's type and message."""
  try:
    return f'{type(error).__name__}: {error}'
  except BaseException:
    return 'an exception that cannot be printed'


def run_child(
  program: Program,
  job: dict[str, Any],
  descriptors: list[int],
  confine: Callable[[], object],
) -> None:
  """Runs a job in the child process; does not return."""
  status = 1
  try:
    _set_up_descriptors(descriptors, silent=job['kind'] != 'run')
    _reopen_streams()
    _limit(resource.RLIMIT_CPU, int(job['seconds']) + 2)
    confine()
    if job['kind'] == 'script':
      namespace = {**globals(), 'program': program, 'job': job}
      for script in job['scripts']:
        exec(marshal.loads(script), namespace)
      status = 0
    elif job['kind'] == 'call':
      status = _call(program, job['name'], marshal.loads(_read(0)))
    else:
      status = _run(program)
  except BaseException as error:
    _write(3, describe(error).encode(errors='replace')[:500])
  finally:
    os._exit(status)


def _run(program: Program) -> int:
  """Runs a program as a main module, with an interpreter's clean-up."""
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
    function = _find(program.execute('solution', helped=True), name)
    text = to_json({'result': function(*arguments)})
  except BaseException as error:
    text = to_json({'error': describe(error)[:500]})
  _write(3, text.encode())
  return 0


def to_json(value: Any) -> str:
  """Encodes JSON like the `json` module, whose import takes ten ms."""

  def refuse(value: Any) -> Any:
    raise TypeError(f'{type(value).__name__} is not JSON')

  text = _json.encode_basestring_ascii
  options = None, ': ', ', ', False, False, True
  return ''.join(_json.make_encoder({}, refuse, text, *options)(value, 0))


def from_json(text: str) -> Any:
  """Decodes untrusted JSON."""
  make_scanner: Any = _json.make_scanner
  scan = make_scanner(_Options())
  try:
    value, end = scan(text, 0)
  except StopIteration:
    raise ValueError('JSON is required') from None
  if end != len(text):
    raise ValueError('text follows the JSON value')
  return value


class _Options:
  """Options of the JSON scanner, as in the `json` module."""

  strict = True
  object_hook = None
  object_pairs_hook = None
  parse_float = float
  parse_int = int
  parse_constant = float


def _find(namespace: dict[str, Any], name: str) -> Any:
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
  used, codes = set(), [code]
  while codes:
    code = codes.pop()
    used.update(code.co_names)
    codes.extend(c for c in code.co_consts if isinstance(c, type(code)))
  for module, names in _IN_SCOPE.items():
    for name in used.intersection(names.split()):
      namespace[name] = getattr(__import__(module), name)
  for module in used.intersection(_MODULES):
    namespace[module] = __import__(module)


def _restrict(settings: dict[str, Any]) -> Callable[[], object]:
  """Drops privileges and sets limits; returns a child's further confinement."""
  if settings['uid'] is not None:
    os.setgroups([])
    os.setresgid(*[settings['uid']] * 3)
    os.setresuid(*[settings['uid']] * 3)
  for name, most in settings['limits'].items():
    # Without a pid namespace, other processes of the user would count.
    if name != 'RLIMIT_NPROC' or os.getpid() == 1:
      _limit(getattr(resource, name), most)
  os.umask(0o077)
  os.environ.clear()
  sys.argv[:] = ['program.py']
  # The time limit makes the limit on integer digits unnecessary.
  sys.set_int_max_str_digits(0)
  import _sitebuiltins

  for name in ('exit', 'quit'):
    setattr(builtins, name, _sitebuiltins.Quitter(name, 'Ctrl-D'))
  namespace = {
    '__name__': '__main__',
    'settings': settings,
    'confine': tuple,
  }
  if 'script' in settings:
    exec(marshal.loads(settings['script']), namespace)
  return namespace['confine']


def _limit(kind: int, most: int) -> None:
  """Sets a resource limit permanently, never above the present one."""
  hard = resource.getrlimit(kind)[1]
  if hard != resource.RLIM_INFINITY:
    most = min(most, hard)
  resource.setrlimit(kind, (most, most))


def _receive(socket: Any) -> tuple[dict[str, Any], list[int]]:
  data, ancillary, _, _ = socket.recvmsg(1 << 20, 256)
  if not data:
    # The judge has ended: exit, which ends the whole namespace.
    os._exit(0)
  descriptors = []
  for _, _, packed in ancillary:
    for start in range(0, len(packed), 4):
      descriptors.append(
        int.from_bytes(packed[start : start + 4], sys.byteorder)
      )
  return marshal.loads(data), descriptors


def _wait(child: int) -> int:
  """Waits for the child, kills all other processes, returns its status."""
  poll = select.poll()
  poll.register(_CONTROL, 0)
  descriptor = os.pidfd_open(child)
  poll.register(descriptor, select.POLLIN)
  status = None
  while status is None:
    # Reaps orphans meanwhile, which count as processes.
    if _CONTROL in dict(poll.poll(100)):
      os.kill(child, _SIGKILL)
      os.waitpid(child, 0)
      os._exit(0)
    status = _collect(child)
  os.close(descriptor)
  _kill_others()
  return status


def _remove_file(path: str) -> None:
  try:
    os.unlink(path)
  except OSError:
    return


def _collect(child: int) -> int | None:
  """Reaps ended processes; returns the child's status if it was one."""
  status = None
  try:
    while (ended := os.waitpid(-1, os.WNOHANG))[0]:
      if ended[0] == child:
        status = ended[1]
  except ChildProcessError:
    return status
  return status


def _kill_others() -> None:
  """Kills all other processes of the pid namespace, if there is one."""
  if os.getpid() != 1:
    return
  try:
    os.kill(-1, _SIGKILL)
    while True:
      os.wait()
  except (ProcessLookupError, ChildProcessError):
    return


def _set_up_descriptors(descriptors: list[int], *, silent: bool) -> None:
  """Moves descriptors to 0 (input), 1 (output), 3 (result), 4 and 5 (suite)."""
  for index, descriptor in enumerate(descriptors):
    os.dup2(descriptor, 20 + index)
  null = os.open('/dev/null', os.O_RDWR)
  os.dup2(null, 2)
  os.closerange(3, 20)
  for index, target in enumerate((0, 1, 3, 4, 5)[: len(descriptors)]):
    os.dup2(20 + index, target)
  if silent:
    os.dup2(2, 1)
  os.closerange(20, 64)


def _reopen_streams() -> None:
  options: dict[str, Any] = {'encoding': 'utf-8', 'closefd': False}
  for name, descriptor, mode in (('stdin', 0, 'r'), ('stdout', 1, 'w')):
    stream = os.fdopen(descriptor, mode, errors='surrogateescape', **options)
    setattr(sys, name, stream)
    setattr(sys, f'__{name}__', stream)


def _read(descriptor: int) -> bytes:
  parts = []
  while part := os.read(descriptor, 1 << 20):
    parts.append(part)
  return b''.join(parts)


def _write(descriptor: int, data: bytes) -> None:
  while data:
    data = data[os.write(descriptor, data) :]


def _close(descriptors: list[int]) -> None:
  for descriptor in descriptors:
    os.close(descriptor)


if __name__ == '__main__' and len(sys.argv) > 1:
  main(int(sys.argv[1]))
