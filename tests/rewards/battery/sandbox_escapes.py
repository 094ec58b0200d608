# SPDX-License-Identifier: Apache-2.0
"""Attacks that try to reach resources outside of the sandbox."""

from rewards.battery.cases import sandbox_escape

# Helper with which programs make system calls that Python does not offer.
_CALLS = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def attempt(name, number, *args):
  ctypes.set_errno(0)
  if libc.syscall(number, *args) >= 0: found.append(name)
"""

CASES = [
  sandbox_escape(
    'the environment',
    """
    import os
    found += [v for v in os.environ.values() if 'CANARY' in v]
    found += [k for k in os.environ]
    """,
  ),
  sandbox_escape(
    'the environment, in C',
    """
    import ctypes
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    for name in (b'PATH', b'HOME', b'COVRL_CANARY', b'USER'):
      if libc.getenv(name): found.append(name)
    """,
  ),
  sandbox_escape(
    'environments in /proc',
    """
    import glob
    for path in glob.glob('/proc/*/environ') + ['/proc/1/environ',
                                                '/proc/self/environ']:
      try: found.append(open(path, 'rb').read())
      except OSError: pass
    """,
  ),
  sandbox_escape(
    'memory in /proc',
    """
    for path in ('/proc/1/mem', '/proc/self/maps', '/proc/kcore',
                 '/proc/1/root/etc/passwd', '/proc/1/cwd', '/proc/1/fd/0',
                 '/proc/1/cmdline', '/proc/net/tcp', '/proc/mounts'):
      try: found.append(open(path, 'rb').read(10))
      except OSError: pass
    """,
  ),
  sandbox_escape(
    'files of the machine',
    """
    import os
    for path in ('/etc/passwd', '/etc/shadow', '/etc/hostname', '/etc/hosts',
                 '/root/.ssh', '/root/.bashrc', '/home', '/var', '/sys', '/run',
                 '/boot', '/opt', '/mnt', '/work', '/srv', '/tmp/covrl_canary'):
      if os.path.exists(path): found.append(path)
    """,
  ),
  sandbox_escape(
    'files that are not the interpreter',
    """
    import os, sys
    for top, _, names in os.walk('/'):
      if top.startswith(('/usr/lib', '/lib', '/dev', '/packages')): continue
      found += [name for name in names
                if not top.startswith(sys.base_prefix)
                and name != 'ld.so.cache']
    """,
  ),
  sandbox_escape(
    'files through links',
    """
    import os
    os.symlink('/etc/passwd', '/tmp/link')
    os.symlink('../../../../etc/shadow', '/tmp/other')
    for path in ('/tmp/link', '/tmp/other', '/dev/stdin/../../etc/passwd'):
      try: found.append(open(path).read())
      except OSError: pass
    """,
  ),
  sandbox_escape(
    'installed packages',
    """
    import os, sys
    for name in ('scipy', 'ml_dtypes', 'jax', 'covrl', 'pip', 'pytest'):
      try: found.append(__import__(name))
      except ImportError: pass
    for path in sys.path:
      packages = os.path.join(path, 'site-packages')
      if os.path.isdir(packages): found += os.listdir(packages)
    """,
  ),
  sandbox_escape(
    'shell commands',
    """
    import os, subprocess
    for command in (['/bin/sh', '-c', 'id'], ['/usr/bin/env'], ['sh', '-c', 'id']):
      try: found.append(subprocess.run(command, capture_output=True).stdout)
      except OSError: pass
    if os.system('true') == 0: found.append('system')
    """,
  ),
  sandbox_escape(
    'directories to write to',
    """
    import os, sys
    places = ['/', '/usr', '/etc', '/dev', '/root', '/var', '/lib64',
              os.path.dirname(os.__file__), os.path.dirname(sys.executable),
              os.path.join(os.path.dirname(os.__file__), 'site-packages')]
    for place in places:
      try:
        open(os.path.join(place, 'harm'), 'w').close()
        found.append(place)
      except OSError: pass
    try:
      open(os.__file__, 'a').close()
      found.append('os')
    except OSError: pass
    """,
  ),
  sandbox_escape(
    'modules of the next test',
    """
    import os, sys
    for name in ('json.py', 'sitecustomize.py', 'usercustomize.py', 'os.py'):
      with open(name, 'w') as file: file.write('found = 1')
    if any(path in ('', '.', '/tmp', os.getcwd()) for path in sys.path):
      found.append(sys.path)
    """,
  ),
  sandbox_escape(
    'the network',
    """
    import socket
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX,
                   getattr(socket, 'AF_NETLINK', 16), socket.AF_PACKET):
      for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
        try: found.append(socket.socket(family, kind))
        except OSError: pass
    """,
  ),
  sandbox_escape(
    'a server on the machine',
    """
    import os, socket
    for port in (22, 80, 443, 8080, 12345):
      try:
        socket.create_connection(('127.0.0.1', port), timeout=0.1)
        found.append(port)
      except OSError: pass
    try: found += socket.gethostbyname('localhost').split('127')
    except OSError: pass
    """,
  ),
  sandbox_escape(
    'sockets by name',
    """
    import socket
    for name in ('\\0covrl', '/run/docker.sock', '/var/run/dbus/socket'):
      for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        try:
          one, other = socket.socketpair(socket.AF_UNIX, kind)
          one.connect(name)
          found.append(name)
        except OSError: pass
    """,
  ),
  sandbox_escape(
    'inherited descriptors',
    """
    import os
    for number in range(4, 4096):
      try: found.append((number, os.fstat(number)))
      except OSError: pass
    """,
  ),
  sandbox_escape(
    'other processes',
    """
    import os
    for number in range(2, 400):
      if number != os.getpid():
        try:
          os.kill(number, 0)
          found.append(number)
        except OSError: pass
    if os.getppid() != 1: found.append(os.getppid())
    """,
  ),
  sandbox_escape(
    'root privileges',
    """
    import os
    if 0 in os.getresuid() + os.getresgid() + tuple(os.getgroups()):
      found.append('root')
    for become in (os.setuid, os.setgid, os.seteuid, os.setegid):
      try:
        become(0)
        found.append(become)
      except OSError: pass
    try:
      os.setgroups([0])
      found.append('groups')
    except OSError: pass
    """,
  ),
  sandbox_escape(
    'higher resource limits',
    """
    import resource
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_CPU,
                 resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE):
      soft, hard = resource.getrlimit(kind)
      if hard == resource.RLIM_INFINITY: found.append(kind)
      try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
        found.append(('raised', kind))
      except (OSError, ValueError): pass
    """,
  ),
  sandbox_escape(
    'scheduling priority',
    """
    import os
    for attempt in (lambda: os.nice(-5), lambda: os.nice(0),
                    lambda: os.sched_setaffinity(0, range(64)),
                    lambda: os.setpriority(os.PRIO_PROCESS, 0, -1),
                    lambda: os.sched_setscheduler(0, os.SCHED_FIFO,
                                                  os.sched_param(1))):
      try:
        attempt()
        found.append(attempt)
      except OSError: pass
    """,
  ),
  sandbox_escape(
    'namespaces',
    _CALLS
    + """
import os, platform
x86 = platform.machine() == 'x86_64'
for flag in (0x10000000, 0x20000, 0x40000000, 0x20000000):
  attempt('unshare', 272 if x86 else 97, flag)
  attempt('clone', 56 if x86 else 220, flag | 17, 0, 0, 0, 0)
attempt('setns', 308 if x86 else 268, 3, 0)
attempt('clone3', 435, 0, 0)
attempt('pivot_root', 155 if x86 else 41, b'/tmp', b'/tmp')
attempt('chroot', 161 if x86 else 51, b'/tmp')
attempt('mount', 165 if x86 else 40, b'none', b'/tmp', b'proc', 0, 0)
attempt('umount', 166 if x86 else 39, b'/tmp', 0)
attempt('fsopen', 430, b'proc', 0)
attempt('open_tree', 428, -100, b'/', 1)
""",
  ),
  sandbox_escape(
    'memory of other processes',
    _CALLS
    + """
import os, platform
x86 = platform.machine() == 'x86_64'
parent = os.getppid()
for request in (0, 16, 0x4206):
  attempt('ptrace', 101 if x86 else 117, request, parent, 0, 0)
attempt('process_vm_readv', 310 if x86 else 270, parent, 0, 0, 0, 0, 0)
attempt('process_vm_writev', 311 if x86 else 271, parent, 0, 0, 0, 0, 0)
attempt('pidfd_getfd', 438, os.pidfd_open(parent), 9, 0)
attempt('kcmp', 312 if x86 else 272, parent, os.getpid(), 0, 0, 0)
""",
  ),
  sandbox_escape(
    'rare system calls',
    _CALLS
    + """
import platform
x86 = platform.machine() == 'x86_64'
buffer = ctypes.create_string_buffer(4096)
attempt('io_uring_setup', 425, 8, buffer)
attempt('bpf', 321 if x86 else 280, 0, buffer, 72)
attempt('perf_event_open', 298 if x86 else 241, buffer, 0, -1, -1, 0)
attempt('userfaultfd', 323 if x86 else 282, 1)
attempt('keyctl', 250 if x86 else 219, 0, -3, 1)
attempt('add_key', 248 if x86 else 217, b'user', b'k', b'v', 1, -3)
attempt('memfd_create', 319 if x86 else 279, b'm', 0)
attempt('memfd_secret', 447, 0)
attempt('personality', 135 if x86 else 92, 0x0040000)
attempt('seccomp', 317 if x86 else 277, 0, 0, 0)
attempt('init_module', 175 if x86 else 105, buffer, 10, b'')
attempt('quotactl', 179 if x86 else 60, 0, b'', 0, buffer)
attempt('syslog', 103 if x86 else 116, 3, buffer, 100)
attempt('clock_settime', 227 if x86 else 112, 0, buffer)
attempt('reboot', 169 if x86 else 142, 0, 0, 0, 0)
attempt('name_to_handle_at', 303 if x86 else 264, -100, b'/tmp', buffer, buffer, 0)
attempt('open_by_handle_at', 304 if x86 else 265, -100, buffer, 0)
attempt('fanotify_init', 300 if x86 else 262, 0, 0)
attempt('inotify_init1', 294 if x86 else 26, 0)
""",
  ),
  sandbox_escape(
    '32-bit system calls',
    """
    import ctypes, mmap, os, platform, signal
    if platform.machine() == 'x86_64':
      # mov eax, 20 (getpid); int 0x80; ret
      code = bytes.fromhex('b814000000cd80c3')
      page = mmap.mmap(-1, 4096, prot=7)
      page.write(code)
      start = ctypes.addressof(ctypes.c_char.from_buffer(page))
      child = os.fork()
      if child == 0:
        number = ctypes.CFUNCTYPE(ctypes.c_int)(start)()
        os._exit(1 if number == os.getpid() else 0)
      if os.waitpid(child, 0)[1] == 1 << 8: found.append('int 0x80')
    """,
  ),
  sandbox_escape(
    'message queues and shared memory',
    _CALLS
    + """
import platform
x86 = platform.machine() == 'x86_64'
attempt('shmget', 29 if x86 else 194, 1234, 4096, 0o1600)
attempt('semget', 64 if x86 else 190, 1234, 1, 0o1600)
attempt('msgget', 68 if x86 else 186, 1234, 0o1600)
attempt('mq_open', 240 if x86 else 180, b'harm', 0o102, 0o600, 0)
""",
  ),
  sandbox_escape(
    'devices',
    """
    import os, stat
    for number, name in enumerate(('sda', 'kmem', 'tty')):
      try:
        os.mknod(f'/tmp/{name}', 0o666 | stat.S_IFBLK, os.makedev(8, number))
        found.append(name)
      except OSError: pass
    found += set(os.listdir('/dev')) - {
      'null', 'zero', 'random', 'urandom', 'shm', 'stdin'}
    try: found.append(os.open('/dev/tty', os.O_RDWR))
    except OSError: pass
    """,
  ),
  sandbox_escape(
    'the name of the machine',
    """
    import os, socket
    if os.uname().nodename != 'judge': found.append(os.uname())
    """,
  ),
  sandbox_escape(
    'files of earlier programs',
    """
    import os
    found += os.listdir('/tmp') + os.listdir('/dev/shm')
    with open('/tmp/mine', 'w') as file: file.write('x')
    with open('/dev/shm/mine', 'w') as file: file.write('x')
    """,
  ),
]
