# SPDX-License-Identifier: Apache-2.0
"""Sandbox script of process 1: takes jobs and forks a child for each.

Executed after `_program.py`, `_random_seed.py` and `_descendants.py`; never imported.
Jobs come from the control socket; each runs in a forked child, an interpreter that has
already started and has not executed any program. When the child ends, all other
processes of the sandbox are killed. A program can tamper with its process, this
script's functions included: only bytes leave the sandbox, and the judge treats them as
untrusted.
"""

from __future__ import annotations

import _socket
import builtins
import marshal
import os
import resource
import select
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Callable
  from typing import Any

  from covrl.rewards.sandbox._descendants import descendants
  from covrl.rewards.sandbox._program import (
    Program,
    _call,
    _read,
    _run,
    _write,
    describe,
    offer_packages,
  )
  from covrl.rewards.sandbox._random_seed import seed_generators

_CONTROL = 9  # the descriptor of the socket to the judge
_SIGKILL = 9
_SUBREAPER = 36  # an option of `prctl`: orphans become children of this process


def main(control: int) -> None:
  """Executes jobs from the control socket until it closes."""
  os.dup2(control, _CONTROL)
  os.closerange(3, _CONTROL)
  os.closerange(_CONTROL + 1, 1 << 20)
  socket = _socket.socket(fileno=_CONTROL)
  settings, _ = _receive(socket)
  confine = _apply_settings(settings)
  socket.send(b'ready')
  program = Program(b'')
  while True:
    job, descriptors = _receive(socket)
    if job['kind'] == 'load':
      program = Program(_read(descriptors[0]))
      _close(descriptors)
      reason = program.compile()
      # A dot first: an empty message would mean that this process has ended.
      socket.send(b'.' + reason.encode(errors='replace')[:1000])
      continue
    child = _fork()
    if child == 0:
      socket.detach()
      run_child(program, job, descriptors, confine)
    _close(descriptors)
    status = _wait_for(child)
    _remove_file('/tmp/stdin')
    is_clean = not any(map(os.listdir, settings['writable']))
    socket.send(f'{status} {is_clean:d}'.encode())


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
    _set_limit(resource.RLIMIT_CPU, int(job['seconds']) + 2)
    confine()
    seed_generators(job['seed'])
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


def _apply_settings(settings: dict[str, Any]) -> Callable[[], object]:
  """Drops privileges and sets limits; returns a child's further confinement."""
  if settings['uid'] is not None:
    os.setgroups([])
    os.setresgid(*[settings['uid']] * 3)
    os.setresuid(*[settings['uid']] * 3)
  for name, limit in settings['limits'].items():
    # Without a pid namespace, other processes of the user would count.
    if name != 'RLIMIT_NPROC' or os.getpid() == 1:
      _set_limit(getattr(resource, name), limit)
  if settings.get('adopts_orphans'):
    _adopt_orphans()
  os.umask(0o077)
  os.environ.clear()
  offer_packages(settings['packages'])
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


def _set_limit(kind: int, limit: int) -> None:
  """Sets a resource limit permanently, never above the present one."""
  hard_limit = resource.getrlimit(kind)[1]
  if hard_limit != resource.RLIM_INFINITY:
    limit = min(limit, hard_limit)
  resource.setrlimit(kind, (limit, limit))


def _receive(socket: Any) -> tuple[dict[str, Any], list[int]]:
  """Receives a job and its descriptors; exits if the judge has ended."""
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


def _fork() -> int:
  """Forks; exits with `EX_OSERR` if the system has no process or memory left."""
  try:
    return os.fork()
  except OSError as error:
    os.write(2, str(error).encode())
    os._exit(os.EX_OSERR)


def _wait_for(child: int) -> int:
  """Waits for the child, kills all other processes, returns its status."""
  poll = select.poll()
  poll.register(_CONTROL, 0)
  pidfd = os.pidfd_open(child)
  poll.register(pidfd, select.POLLIN)
  status = None
  while status is None:
    # Reaps orphans meanwhile, which count as processes.
    if _CONTROL in dict(poll.poll(100)):
      os.kill(child, _SIGKILL)
      os.waitpid(child, 0)
      _kill_others()
      os._exit(0)
    status = _reap(child)
  os.close(pidfd)
  _kill_others()
  return status


def _remove_file(path: str) -> None:
  """Removes a file, if it exists and can be removed."""
  try:
    os.unlink(path)
  except OSError:
    return


def _reap(child: int) -> int | None:
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
  """Kills all other processes of the pid namespace, or all descendants."""
  try:
    while os.getpid() != 1:
      for pid in descendants():
        _kill(pid)
      # Children of a killed process become children of this one and are killed next.
      os.wait()
    os.kill(-1, _SIGKILL)
    while True:
      os.wait()
  except (ProcessLookupError, ChildProcessError):
    return


def _kill(pid: int) -> None:
  """Kills a process, unless it has ended."""
  try:
    os.kill(pid, _SIGKILL)
  except ProcessLookupError:
    return


def _adopt_orphans() -> None:
  """Makes this process the parent of descendants whose parent ends."""
  import ctypes

  ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


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
  """Opens standard input and output on the job's descriptors."""
  options: dict[str, Any] = {'encoding': 'utf-8', 'closefd': False}
  for name, descriptor, mode in (('stdin', 0, 'r'), ('stdout', 1, 'w')):
    stream = os.fdopen(descriptor, mode, errors='surrogateescape', **options)
    setattr(sys, name, stream)
    setattr(sys, f'__{name}__', stream)


def _close(descriptors: list[int]) -> None:
  """Closes descriptors."""
  for descriptor in descriptors:
    os.close(descriptor)


if __name__ == '__main__':
  main(int(sys.argv[1]))
