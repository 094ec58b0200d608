# SPDX-License-Identifier: Apache-2.0
"""Sandboxes by bubblewrap: namespaces of their own for everything.

Who the program is on the host depends on who starts the trainer. A user's
sandbox is a user namespace, in which nobody else exists. Root's is not: there
process limits would not hold, for the kernel exempts root from them wherever
it is mapped from. Bubblewrap then keeps two capabilities for the first
microseconds of process 1, which becomes a user that nobody else is; where root
may not mount (a container without CAP_SYS_ADMIN), bubblewrap itself is started
as such a user.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil

from covrl.rewards.sandbox.interpreter import Interpreter

# Above every range that distributions give to users and containers.
_FIRST_UID = 1_900_000_000
_NOBODY = 65534


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bubblewrap:
  """How to start a sandbox here.

  Attributes:
    mode: `user` (a user namespace), `root` (process 1 gives root up) or
      `dropped` (bubblewrap is started by root as somebody else).
  """

  interpreter: Interpreter
  mode: str
  scratch: int

  @property
  def writable(self) -> tuple[str, ...]:
    """Directories in which a program may write."""
    return '/tmp', '/dev/shm'

  @property
  def level(self) -> str:
    """Its name, for the record."""
    return 'bubblewrap'

  @property
  def environment(self) -> dict[str, str]:
    """Nothing, for it could be read where bubblewrap clears its own."""
    return {}

  @property
  def has_namespaces(self) -> bool:
    """Whether processes cannot leave, and so may be many."""
    return True

  def settings(self) -> dict[str, int | None]:
    """Whom process 1 has to become, if it is somebody else at first."""
    return {'uid': free_uid() if self.mode == 'root' else None}

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """What starts a sandbox's interpreter; its arguments are to follow."""
    command = [_path(), *_NAMESPACES]
    if self.mode == 'root':
      command += ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID']
    else:
      command += ['--unshare-user', '--uid', str(_NOBODY)]
      command += ['--gid', str(_NOBODY)]
    if self.mode == 'dropped':
      command = [*_as_user(free_uid()), *command]
    command += ['--seccomp', str(filter_fd), '--info-fd', str(info_fd)]
    return [*command, *self._root(), self.interpreter.executable]

  def _root(self) -> list[str]:
    # Those that bubblewrap makes of itself are for their owner alone.
    parents = {
      str(parent)
      for path in (*self.interpreter.files, '/dev/shm')
      for parent in pathlib.PurePath(path).parents
    }
    files: list[str] = []
    for path in sorted(parents - {'/'}):
      files += ['--perms', '0755', '--dir', path]
    for target, path in self.interpreter.links:
      files += ['--symlink', target, path]
    for path in self.interpreter.files:
      files += ['--ro-bind', path, path]
    for path in self.interpreter.hidden:
      files += ['--tmpfs', path, '--remount-ro', path]
    for name in ('null', 'zero', 'random', 'urandom'):
      files += ['--dev-bind', f'/dev/{name}', f'/dev/{name}']
    files += ['--symlink', '/tmp/stdin', '/dev/stdin']
    for path in self.writable:
      files += ['--perms', '1777', '--size', str(self.scratch)]
      files += ['--tmpfs', path]
    return [*files, '--remount-ro', '/', '--chdir', '/tmp', '--']


_NAMESPACES = (
  '--unshare-pid',
  '--unshare-net',
  '--unshare-ipc',
  '--unshare-uts',
  '--unshare-cgroup-try',
  '--hostname',
  'judge',
  # Sets of strings have the same order in every run.
  '--setenv',
  'PYTHONHASHSEED',
  '0',
  '--new-session',
  '--die-with-parent',
  '--as-pid-1',
  '--cap-drop',
  'ALL',
)


def modes() -> list[str]:
  """What may work for whoever this is, the best first."""
  return ['root', 'dropped'] if os.geteuid() == 0 else ['user']


def _path() -> str:
  path = shutil.which('bwrap')
  if path is None:
    raise FileNotFoundError('bubblewrap (bwrap) is not installed')
  return path


def _as_user(uid: int) -> list[str]:
  path = shutil.which('setpriv')
  if path is None:
    raise FileNotFoundError('setpriv (of util-linux) is not installed')
  return [path, f'--reuid={uid}', f'--regid={uid}', '--clear-groups', '--']


def free_uid() -> int:
  """A user that nobody is: one that this container knows, where it is one."""
  share = int.from_bytes(os.urandom(3), 'big')
  table = pathlib.Path('/proc/self/uid_map').read_text(encoding='ascii')
  for line in table.splitlines():
    first, _, count = (int(number) for number in line.split())
    if first <= _FIRST_UID and first + count > _FIRST_UID + (1 << 24):
      return _FIRST_UID + share
  return 20_000 + share % 40_000
