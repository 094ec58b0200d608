# SPDX-License-Identifier: Apache-2.0
"""Seccomp filter of judged programs: an allow-list of system calls.

The filter is compiled by libseccomp (from Debian's or Ubuntu's packages), which
has the system call numbers of each architecture. It is called through ctypes,
since its Python wrapper has had no release since 2021.

System calls that are not listed fail with ENOSYS, as on a kernel without them,
for which the C library has fallbacks. Among them: sockets other than pairs,
tracing, other processes' memory, namespaces, mounts, keys, io_uring, BPF, System
V and POSIX queues, memfd (memory outside of limits), and other processes' limits,
priorities and CPU affinity.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

# libseccomp: actions, an attribute of filters, and comparisons of arguments.
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_OPTIMIZE = 8
_NOT_EQUAL = 1
_MASKED_EQUAL = 7

# Flags of clone: all CLONE_NEW…, and CLONE_THREAD.
_NEW_NAMESPACES = 0x7E020000
_NEW_THREAD = 0x00010000

# Names of the system calls of judged programs, by what they are for.
_FILE_CALLS = """
access chdir chmod close close_range copy_file_range creat dup dup2 dup3
faccessat faccessat2 fadvise64 fallocate fchdir fchmod fchmodat fdatasync
flock fstat fstatfs fsync ftruncate getcwd getdents getdents64 lgetxattr link
linkat lseek lstat mkdir mkdirat newfstatat open openat pipe pipe2 pread64
preadv preadv2 pwrite64 pwritev pwritev2 read readlink readlinkat readv rename
renameat renameat2 rmdir sendfile stat statfs statx symlink symlinkat truncate
umask unlink unlinkat utime utimensat utimes write writev
"""
_MEMORY_CALLS = 'brk madvise mincore mmap mprotect mremap msync munmap'
_WAITING_CALLS = """
alarm clock_getres clock_gettime clock_nanosleep epoll_create epoll_create1
epoll_ctl epoll_pwait epoll_pwait2 epoll_wait eventfd eventfd2 futex getitimer
gettimeofday nanosleep pause poll ppoll pselect6 restart_syscall select
setitimer time timer_create timer_delete timer_getoverrun timer_gettime
timer_settime timerfd_create timerfd_gettime timerfd_settime times
"""
_SIGNAL_CALLS = """
rt_sigaction rt_sigpending rt_sigprocmask rt_sigreturn rt_sigsuspend
rt_sigtimedwait sigaltstack
"""
_OWN_PROCESS_CALLS = """
arch_prctl exit exit_group get_robust_list getcpu getegid geteuid getgid
getgroups getpgid getpgrp getpid getppid getpriority getrandom getresgid
getresuid getrlimit getrusage getsid gettid getuid membarrier rseq
sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getparam
sched_getscheduler sched_yield set_robust_list set_tid_address sysinfo uname
"""
# Socket pairs, which event loops use, and the sandbox's control socket.
_SOCKET_PAIR_CALLS = """
getpeername getsockname getsockopt recvfrom recvmsg sendmsg sendto setsockopt
shutdown socketpair
"""
# Only inside a pid namespace: child processes, and signals to others.
_PROCESS_CALLS = """
execve execveat fork kill pidfd_open pidfd_send_signal rt_sigqueueinfo
rt_tgsigqueueinfo setgroups setpgid setresgid setresuid setsid tgkill tkill
vfork wait4 waitid
"""
# Commands of `fcntl` without those that make the kernel send a signal to another
# process (F_SETOWN, F_SETOWN_EX, F_SETSIG), which only a pid namespace confines.
_FCNTLS = {
  'F_DUPFD': 0,
  'F_GETFD': 1,
  'F_SETFD': 2,
  'F_GETFL': 3,
  'F_SETFL': 4,
  'F_GETLK': 5,
  'F_SETLK': 6,
  'F_SETLKW': 7,
  'F_OFD_GETLK': 36,
  'F_OFD_SETLK': 37,
  'F_OFD_SETLKW': 38,
  'F_DUPFD_CLOEXEC': 1030,
  'F_GETPIPE_SZ': 1032,
}
_IOCTLS = {
  'TCGETS': 0x5401,
  'TIOCGWINSZ': 0x5413,
  'FIONREAD': 0x541B,
  'FIONBIO': 0x5421,
  'FIONCLEX': 0x5450,
  'FIOCLEX': 0x5451,
}
# Refused to reward workers without namespaces, with any arguments.
_CALLS_REFUSED_TO_WORKERS = 'io_uring_setup process_vm_writev tkill'
# Refused to them, since the kernel then sends signals to any process: commands of
# `fcntl` and requests of `ioctl`.
_SIGNAL_OWNER_COMMANDS = (
  ('fcntl', 8),  # F_SETOWN
  ('fcntl', 15),  # F_SETOWN_EX
  ('ioctl', 0x8901),  # FIOSETOWN
  ('ioctl', 0x8902),  # SIOCSPGRP
)
# Refused to reward workers for the trainer's process. The index of a text is that of
# the argument with the process id.
_CALLS_ON_PROCESSES = (
  'kill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_open prlimit64',
  'ptrace',
)
_REFUSE = _ERRNO | errno.EPERM
_UNIX = 1  # AF_UNIX
_PRCTLS = {'PR_SET_NAME': 15, 'PR_GET_NAME': 16}


class _Comparison(ctypes.Structure):
  _fields_ = (
    ('argument', ctypes.c_uint),
    ('operator', ctypes.c_int),
    ('datum_a', ctypes.c_uint64),
    ('datum_b', ctypes.c_uint64),
  )


@functools.cache
def make_filter(*, processes: bool) -> bytes:
  """Returns the filter as a BPF program for this machine.

  Args:
    processes: whether child processes and signals to others are allowed; only
      safe inside a pid namespace.

  Raises:
    OSError: if libseccomp is not installed or does not support this machine.
  """
  library, context = _new_filter(_ERRNO | errno.ENOSYS)
  try:
    _add_program_rules(library, context, processes)
    return _export(library, context)
  finally:
    library.seccomp_release(context)


@functools.cache
def make_worker_filter(*, trainer: int, group: int, network: bool) -> bytes:
  """Returns a filter for reward workers that have no namespaces.

  It refuses signals to the trainer's process id, to its process group and to all
  processes, other access to its process, and sockets of the network.

  Args:
    trainer: process id of the trainer.
    group: its process group.
    network: whether sockets of the network are allowed.

  Raises:
    OSError: if libseccomp is not installed or does not support this machine.
  """
  library, context = _new_filter(_ALLOW)
  try:
    for name in _CALLS_REFUSED_TO_WORKERS.split():
      _add_rule(library, context, _REFUSE, name)
    for name, command in _SIGNAL_OWNER_COMMANDS:
      comparison = 1, _MASKED_EQUAL, 0xFFFFFFFF, command
      _add_rule(library, context, _REFUSE, name, comparison)
    for argument, names in enumerate(_CALLS_ON_PROCESSES):
      for name in names.split():
        for pid in (trainer, -trainer, -group, -1):
          masked_pid = pid & 0xFFFFFFFF
          comparison = argument, _MASKED_EQUAL, 0xFFFFFFFF, masked_pid
          _add_rule(library, context, _REFUSE, name, comparison)
    if not network:
      _add_rule(library, context, _REFUSE, 'socket', (0, _NOT_EQUAL, _UNIX, 0))
    return _export(library, context)
  finally:
    library.seccomp_release(context)


def _new_filter(default: int) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
  """Returns libseccomp and a new filter with a default action."""
  library = ctypes.CDLL('libseccomp.so.2', use_errno=True)
  library.seccomp_init.restype = ctypes.c_void_p
  library.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
  context = ctypes.c_void_p(library.seccomp_init(default))
  if not context:
    raise OSError('libseccomp does not support this machine')
  return library, context


def _add_rule(
  library: ctypes.CDLL,
  context: ctypes.c_void_p,
  action: int,
  name: str,
  *comparisons: tuple[int, int, int, int],
) -> None:
  """Adds a rule for a system call; one unknown to this machine is left out."""
  number = library.seccomp_syscall_resolve_name(name.encode())
  if number < 0:
    return
  array = (_Comparison * len(comparisons))(*comparisons)
  result = library.seccomp_rule_add_array(
    context, ctypes.c_uint32(action), number, len(comparisons), array
  )
  if result:
    raise OSError(-result, f'libseccomp refuses a rule for {name}')


def _add_program_rules(
  library: ctypes.CDLL, context: ctypes.c_void_p, processes: bool
) -> None:
  """Adds the rules of judged programs: the system calls that they may use."""

  def allow(name: str, *comparisons: tuple[int, int, int, int]) -> None:
    _add_rule(library, context, _ALLOW, name, *comparisons)

  library.seccomp_attr_set(context, _OPTIMIZE, ctypes.c_uint32(2))
  groups = [
    _FILE_CALLS,
    _MEMORY_CALLS,
    _WAITING_CALLS,
    _SIGNAL_CALLS,
    _OWN_PROCESS_CALLS,
    _SOCKET_PAIR_CALLS,
  ]
  if processes:
    groups += [_PROCESS_CALLS, 'fcntl']
    allow('clone', (0, _MASKED_EQUAL, _NEW_NAMESPACES, 0))
  else:
    mask = _NEW_NAMESPACES | _NEW_THREAD
    allow('clone', (0, _MASKED_EQUAL, mask, _NEW_THREAD))
    for command in _FCNTLS.values():
      allow('fcntl', (1, _MASKED_EQUAL, 0xFFFFFFFF, command))
  for name in ' '.join(groups).split():
    allow(name)
  for request in _IOCTLS.values():
    allow('ioctl', (1, _MASKED_EQUAL, 0xFFFFFFFF, request))
  for option in _PRCTLS.values():
    allow('prctl', (0, _MASKED_EQUAL, 0xFFFFFFFF, option))
  allow('prlimit64', (0, _MASKED_EQUAL, 0xFFFFFFFF, 0))


def _export(library: ctypes.CDLL, context: ctypes.c_void_p) -> bytes:
  """Returns the compiled BPF program of a filter."""
  descriptor = os.memfd_create('filter')
  try:
    result = library.seccomp_export_bpf(context, descriptor)
    if result:
      raise OSError(-result, 'libseccomp could not compile the filter')
    return os.pread(descriptor, 1 << 20, 0)
  finally:
    os.close(descriptor)
