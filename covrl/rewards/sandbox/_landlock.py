# SPDX-License-Identifier: Apache-2.0
"""Sandbox script by which a runner without namespaces confines itself.

Executed with the runner's `settings`; never imported. It defines `confine`, which
children call before they run a program.
"""

from __future__ import annotations

import ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
  from typing import Any

  settings: dict[str, Any] = {}

# Numbers of system calls, of `prctl` options and of access rights.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_NO_NEW_PRIVILEGES, _SET_FILTER = 38, 22
_EXECUTE, _WRITE, _READ, _LIST = 1, 2, 4, 8
# Access rights beyond the first thirteen, by the version of Landlock that added them.
_ADDED_RIGHTS = {2: 1 << 13, 3: 1 << 14, 5: 1 << 15}

_libc = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
  _fields_ = (
    ('files', ctypes.c_uint64),
    ('network', ctypes.c_uint64),
    ('scoped', ctypes.c_uint64),
  )


class _PathRule(ctypes.Structure):
  _pack_ = 1
  _layout_ = 'ms'
  _fields_ = (('access', ctypes.c_uint64), ('parent', ctypes.c_int32))


class _FilterProgram(ctypes.Structure):
  _fields_ = (('length', ctypes.c_ushort), ('code', ctypes.c_char_p))


def restrict_files() -> None:
  """Restricts this process permanently to the files that it may read."""
  version = _check(_libc.syscall(_CREATE_RULESET, None, 0, 1))
  handled_rights = (1 << 13) - 1
  for since_version, access in _ADDED_RIGHTS.items():
    handled_rights |= access if version >= since_version else 0
  # Both scopes: signals to other processes, and abstract sockets.
  attributes = _Ruleset(handled_rights, 0, 3)
  size = 8 if version < 4 else 16 if version < 6 else 24
  ruleset = _check(
    _libc.syscall(
      _CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0
    )
  )
  for path in settings['readable']:
    _allow(ruleset, path, _EXECUTE | _READ)
  for name in ('zero', 'random', 'urandom'):
    _allow(ruleset, f'/dev/{name}', _READ)
  _allow(ruleset, '/dev/null', _READ | _WRITE)
  _check(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
  _check(_libc.syscall(_RESTRICT_SELF, ruleset, 0))
  os.close(ruleset)


def confine() -> None:
  """Restricts this process permanently to the filter's system calls."""
  code = settings['filter']
  program = _FilterProgram(len(code) // 8, code)
  _check(_libc.prctl(_SET_FILTER, 2, ctypes.byref(program), 0, 0))


def _allow(ruleset: int, path: str, access: int) -> None:
  """Adds an access right to a path to the rules."""
  descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
  if os.path.isdir(path):
    access |= _LIST
  rule = _PathRule(access, descriptor)
  _check(_libc.syscall(_ADD_RULE, ruleset, 1, ctypes.byref(rule), 0))
  os.close(descriptor)


def _check(result: int) -> int:
  """Returns the result of a system call; raises its error."""
  if result < 0:
    error_number = ctypes.get_errno()
    raise OSError(error_number, f'Landlock: {os.strerror(error_number)}')
  return result


if __name__ == '__main__':
  restrict_files()
