# SPDX-License-Identifier: Apache-2.0
"""Main script of the process that starts and ends a reward worker; never imported.

  python -I -S _worker_supervisor.py SETTINGS COMMAND...

The worker and all that it starts are killed when the worker ends, the supervisor
ends, or the trainer closes its end of the pipe `trainer_pipe` or dies. With
`namespaces`, the worker has its own pid namespace, in which the trainer is not
visible, and without `network` its own network namespace; the kernel ends a pid
namespace with its first process. Elsewhere the supervisor adopts orphaned
descendants and kills them, and the worker is confined by a system call filter.

`SETTINGS` is JSON. Descriptors: `trainer_pipe`, the read end of a pipe whose write
end the trainer holds; `connection`, the worker's end of its socket to the trainer;
`filter`, a seccomp filter, or -1. Booleans: `namespaces` and `network`. With `probe`
as settings, exit status 0 means that namespaces can be made.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
  from collections.abc import Sequence
  from typing import Any, NoReturn

  from covrl.rewards.sandbox._descendants import descendants

# An isolated interpreter does not import files beside its main script.
_DESCENDANTS_SCRIPT = os.path.join(
  os.path.dirname(__file__), 'sandbox', '_descendants.py'
)
with open(_DESCENDANTS_SCRIPT, encoding='utf-8') as _script:
  exec(compile(_script.read(), _DESCENDANTS_SCRIPT, 'exec'))

# Flags of `unshare`.
_NEW_MOUNTS, _NEW_USER, _NEW_PIDS, _NEW_NETWORK = (
  1 << 17,
  1 << 28,
  1 << 29,
  1 << 30,
)
_PRIVATE_MOUNT = 1 << 14 | 1 << 18  # mount flags: recursive, not propagated
_MOUNT_OPTIONS = 2 | 4 | 8  # nosuid, nodev, noexec
# Options of `prctl`.
_DEATH_SIGNAL, _SUBREAPER, _NO_NEW_PRIVILEGES, _SET_FILTER = 1, 36, 38, 22
_KILL_SECONDS = 5.0  # time limit for killing all descendants of a worker
_START_FAILED = (
  127  # the exit status of a shell whose command cannot be started
)


def main(settings: dict[str, Any], command: Sequence[str]) -> NoReturn:
  """Runs the command until it ends or the pipe closes; exits with its status."""
  # Signals to all processes of a job are handled by the trainer. Handlers, unlike
  # SIG_IGN, are reset in the worker by exec.
  for signal_number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(signal_number, lambda *_: None)
  if settings['namespaces']:
    enter_namespaces(network=settings['network'])
  elif sys.platform == 'linux':
    _prctl(_SUBREAPER, 1)
  child = os.fork()
  if child == 0:
    os.close(settings['trainer_pipe'])
    if settings['namespaces']:
      _run_init(settings, command)
    _run_worker(settings, command)
  os.close(settings['connection'])
  status = _wait(child, settings['trainer_pipe'])
  if not settings['namespaces']:
    _kill_descendants(child)
  os._exit(status)


def enter_namespaces(*, network: bool) -> None:
  """Makes new namespaces for this process's children.

  Raises:
    OSError: if this process may not.
  """
  flags = _NEW_PIDS | _NEW_MOUNTS | (0 if network else _NEW_NETWORK)
  user, group = os.getuid(), os.getgid()
  if user == 0:
    _check(_libc().unshare(flags))
    return
  _check(_libc().unshare(flags | _NEW_USER))
  for name, text in (
    ('setgroups', 'deny'),
    ('uid_map', f'{user} {user} 1'),
    ('gid_map', f'{group} {group} 1'),
  ):
    with open(f'/proc/self/{name}', 'w', encoding='ascii') as file:
      file.write(text)


def _run_init(settings: dict[str, Any], command: Sequence[str]) -> NoReturn:
  """Runs process 1 of a pid namespace; its end ends the namespace."""
  status = _START_FAILED
  try:
    _die_with_parent()
    mount_proc()
    child = os.fork()
    if child == 0:
      _run_worker(settings, command)
    os.close(settings['connection'])
    while True:
      ended, wait_status = os.wait()
      if ended == child:
        status = _exit_status(wait_status)
        break
  finally:
    os._exit(status)


def mount_proc() -> None:
  """Mounts /proc of the new pid namespace."""
  mount = _libc().mount
  _check(mount(None, b'/', None, ctypes.c_ulong(_PRIVATE_MOUNT), None))
  options = ctypes.c_ulong(_MOUNT_OPTIONS)
  _check(mount(b'proc', b'/proc', b'proc', options, None))


def _run_worker(settings: dict[str, Any], command: Sequence[str]) -> NoReturn:
  """Replaces this process with the worker by `exec`."""
  try:
    if sys.platform == 'linux':
      _die_with_parent()
    os.setsid()
    if settings['filter'] >= 0:
      _apply_filter(settings['filter'])
    os.execv(command[0], list(command))
  finally:
    os._exit(_START_FAILED)


def _die_with_parent() -> None:
  """Makes the kernel kill this process when its parent ends."""
  _prctl(_DEATH_SIGNAL, signal.SIGKILL)


def _apply_filter(descriptor: int) -> None:
  """Restricts this process and all that it starts to a seccomp filter."""

  class FilterProgram(ctypes.Structure):
    _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_char_p))

  code = os.pread(descriptor, 1 << 16, 0)
  os.close(descriptor)
  program = FilterProgram(len(code) // 8, code)
  _prctl(_NO_NEW_PRIVILEGES, 1)
  _check(_libc().prctl(_SET_FILTER, 2, ctypes.byref(program), 0, 0))


def _wait(child: int, trainer_pipe: int) -> int:
  """Waits for the child; kills it when the pipe is closed. Returns its status."""
  poll = select.poll()
  poll.register(trainer_pipe, select.POLLIN)
  poll_milliseconds, pidfd = 20, -1
  if hasattr(os, 'pidfd_open'):
    try:
      pidfd = os.pidfd_open(child)
      poll.register(pidfd, select.POLLIN)
      poll_milliseconds = 1000
    except OSError:
      poll_milliseconds = 20
  killed = False
  while True:
    # Adopted orphans are reaped meanwhile.
    try:
      ended, wait_status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
      return _START_FAILED
    if ended == child:
      return _exit_status(wait_status)
    if ended:
      continue
    if killed:
      select.select([], [], [], 0.002)
    elif trainer_pipe in dict(poll.poll(poll_milliseconds)):
      os.kill(child, signal.SIGKILL)
      killed = True


def _exit_status(wait_status: int) -> int:
  """Returns the exit code of a wait status, as a shell: 128 + n for signal n."""
  return (
    os.WEXITSTATUS(wait_status)
    if os.WIFEXITED(wait_status)
    else 128 + os.WTERMSIG(wait_status)
  )


def _kill_descendants(child: int) -> None:
  """Kills the session of the worker and all descendants, orphans included."""
  import time

  deadline = time.monotonic() + _KILL_SECONDS
  while time.monotonic() < deadline:
    _kill_session(child)
    pids = descendants()
    # Stopped first, so that none forks while others are killed.
    for signal_number in (signal.SIGSTOP, signal.SIGKILL):
      for pid in pids:
        try:
          os.kill(pid, signal_number)
        except ProcessLookupError:
          continue
    try:
      while os.waitpid(-1, os.WNOHANG)[0]:
        pass
    except ChildProcessError:
      return
    time.sleep(0.005)


def _kill_session(leader: int) -> None:
  """Kills the processes of a session that have not left its group."""
  try:
    os.killpg(leader, signal.SIGKILL)
  except (ProcessLookupError, PermissionError):
    return


def _libc() -> Any:
  return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
  _check(_libc().prctl(option, value, 0, 0, 0))


def _check(result: int) -> None:
  """Raises the error of a system call that has failed."""
  if result < 0:
    error_number = ctypes.get_errno()
    raise OSError(error_number, os.strerror(error_number))


def probe() -> NoReturn:
  """Exits with 0 if namespaces of all kinds can be made."""
  enter_namespaces(network=False)
  child = os.fork()
  if child == 0:
    status = 1
    try:
      mount_proc()
      status = 0 if os.listdir('/proc/self/task') else 1
    finally:
      os._exit(status)
  os._exit(_exit_status(os.waitpid(child, 0)[1]))


if __name__ == '__main__':
  if sys.argv[1] == 'probe':
    probe()
  import json

  main(json.loads(sys.argv[1]), sys.argv[2:])
