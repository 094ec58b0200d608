# SPDX-License-Identifier: Apache-2.0
"""Sandboxes by bubblewrap, with all kinds of namespaces.

The user id of a program on the host depends on the user of the trainer. An ordinary
user's sandbox is a user namespace. Root's is not, since the kernel exempts root
from process limits even in a user namespace: bubblewrap then keeps two
capabilities, with which process 1 switches to an unused user id at once; where
root may not mount (a container without CAP_SYS_ADMIN), bubblewrap itself is
started with an unused user id.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import ClassVar

from covrl.rewards.sandbox.launcher import Launcher

# Above all ranges that distributions assign to users and containers.
_FIRST_UNUSED_UID = 1_900_000_000
_NOBODY = 65534
# Directory of the packages inside the sandbox.
_PACKAGE_DIRECTORY = '/packages'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bubblewrap(Launcher):
  """The bubblewrap backend.

  Attributes:
    mode: `user` (a user namespace), `root` (process 1 gives up root) or
      `dropped` (root starts bubblewrap as an unused user).
    scratch_size: bytes of each writable directory.
  """

  backend: ClassVar[str] = 'bubblewrap'
  writable: ClassVar[tuple[str, ...]] = '/tmp', '/dev/shm'
  # Programs could read variables in the environment of bubblewrap's process.
  environment: ClassVar[Mapping[str, str]] = {}
  has_namespaces: ClassVar[bool] = True
  confines_signals: ClassVar[bool] = True

  mode: str
  scratch_size: int

  def settings(self) -> dict[str, int | None]:
    """Returns settings of process 1: the user id that it switches to, if any."""
    return {'uid': unused_uid() if self.mode == 'root' else None}

  def command(self, *, filter_fd: int, info_fd: int) -> list[str]:
    """Returns the command that starts a sandbox's interpreter."""
    command = [_find_bwrap(), *_ISOLATION_OPTIONS]
    if self.mode == 'root':
      command += ['--cap-add', 'CAP_SETUID', '--cap-add', 'CAP_SETGID']
    else:
      command += ['--unshare-user', '--uid', str(_NOBODY)]
      command += ['--gid', str(_NOBODY)]
    if self.mode == 'dropped':
      command = [*_as_user(unused_uid()), *command]
    command += ['--seccomp', str(filter_fd), '--info-fd', str(info_fd)]
    return [*command, *self._file_system_options(), self.interpreter.executable]

  def package_path(self, path: str) -> str:
    """Returns the path inside the sandbox of a package's file."""
    name = os.path.basename(path)
    if name != '__init__.py':
      return f'{_PACKAGE_DIRECTORY}/{name}'
    return f'{self.package_path(os.path.dirname(path))}/{name}'

  def _file_system_options(self) -> list[str]:
    """Returns the options that build the sandbox's file system."""
    # Directories that bubblewrap creates by itself are readable by root only.
    parents = {
      str(parent)
      for path in (*self.interpreter.files, '/dev/shm')
      for parent in pathlib.PurePath(path).parents
    }
    options: list[str] = []
    for path in sorted(parents - {'/'}):
      options += ['--perms', '0755', '--dir', path]
    for target, path in self.interpreter.links:
      options += ['--symlink', target, path]
    for path in self.interpreter.files:
      options += ['--ro-bind', path, path]
    for path in self.interpreter.hidden:
      options += ['--tmpfs', path, '--remount-ro', path]
    if self.packages:
      options += ['--perms', '0755', '--dir', _PACKAGE_DIRECTORY]
    for package in self.packages:
      for path in package.files:
        options += [
          '--ro-bind',
          path,
          f'{_PACKAGE_DIRECTORY}/{os.path.basename(path)}',
        ]
    for name in ('null', 'zero', 'random', 'urandom'):
      options += ['--dev-bind', f'/dev/{name}', f'/dev/{name}']
    options += ['--symlink', '/tmp/stdin', '/dev/stdin']
    for path in self.writable:
      options += ['--perms', '1777', '--size', str(self.scratch_size)]
      options += ['--tmpfs', path]
    return [*options, '--remount-ro', '/', '--chdir', '/tmp', '--']


_ISOLATION_OPTIONS = (
  '--unshare-pid',
  '--unshare-net',
  '--unshare-ipc',
  '--unshare-uts',
  '--unshare-cgroup-try',
  '--hostname',
  'judge',
  # Makes the order of sets reproducible.
  '--setenv',
  'PYTHONHASHSEED',
  '0',
  '--new-session',
  '--die-with-parent',
  '--as-pid-1',
  '--cap-drop',
  'ALL',
)


def candidate_modes() -> list[str]:
  """Returns the modes that may work for the current user, best first."""
  return ['root', 'dropped'] if os.geteuid() == 0 else ['user']


def _find_bwrap() -> str:
  """Returns the path of the bubblewrap program."""
  path = shutil.which('bwrap')
  if path is None:
    raise FileNotFoundError('bubblewrap (bwrap) is not installed')
  return path


def _as_user(uid: int) -> list[str]:
  """Returns the start of a command that is executed as another user."""
  path = shutil.which('setpriv')
  if path is None:
    raise FileNotFoundError('setpriv (of util-linux) is not installed')
  return [path, f'--reuid={uid}', f'--regid={uid}', '--clear-groups', '--']


def unused_uid() -> int:
  """Returns an unused user id, within the ids mapped into this container."""
  offset = int.from_bytes(os.urandom(3), 'big')
  table = pathlib.Path('/proc/self/uid_map').read_text(encoding='ascii')
  for line in table.splitlines():
    first, _, count = (int(number) for number in line.split())
    if first <= _FIRST_UNUSED_UID and first + count > _FIRST_UNUSED_UID + (
      1 << 24
    ):
      return _FIRST_UNUSED_UID + offset
  return 20_000 + offset % 40_000
