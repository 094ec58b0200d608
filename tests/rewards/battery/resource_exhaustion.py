# SPDX-License-Identifier: Apache-2.0
"""Attacks that try to exhaust time, memory, processes or output."""

from rewards.battery.cases import CALL, SUITE, resource_exhaustion

from covrl.rewards import Status

CASES = [
  resource_exhaustion(
    'sleeps', 'import time; time.sleep(1000)', Status.TIMEOUT
  ),
  resource_exhaustion('loops forever', 'while True: pass', Status.TIMEOUT),
  resource_exhaustion(
    'waits for input of its own',
    """
    import os
    r, w = os.pipe()
    os.read(r, 1)
    """,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'computes forever in C',
    'print(len(str(7**(10**9))))',
    Status.TIMEOUT,
    Status.CRASH,
  ),
  resource_exhaustion(
    'matches with exponential backtracking',
    """
    import re
    re.match(r'(a+)+$', 'a' * 60 + 'b')
    """,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'compiles a deep expression',
    "eval('-' * 10**6 + '1')",
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'is a deep expression',
    'x = ' + '(' * 5000 + '1' + ')' * 5000,
    Status.UNPARSABLE,
  ),
  resource_exhaustion(
    'has constants that are huge when folded',
    """
    x = [9**9**9 for _ in range(3)]
    """,
    Status.TIMEOUT,
    Status.CRASH,
  ),
  resource_exhaustion(
    'ignores signals',
    """
    import signal
    for number in range(1, 65):
      try: signal.signal(number, signal.SIG_IGN)
      except (OSError, ValueError): pass
    while True:
      try:
        while True: pass
      except BaseException: pass
    """,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'stops itself',
    """
    import os, signal
    os.kill(os.getpid(), signal.SIGSTOP)
    """,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'stops all processes',
    """
    import os, signal
    os.kill(-1, signal.SIGSTOP)
    os.kill(0, signal.SIGSTOP)
    os.kill(os.getppid(), signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)
    """,
    Status.TIMEOUT,
    Status.CRASH,
    Status.WRONG,
  ),
  resource_exhaustion(
    'kills its parent',
    """
    import os, signal
    for number in (signal.SIGTERM, signal.SIGKILL):
      os.kill(os.getppid(), number)
    print('free')
    """,
    Status.WRONG,
    Status.CRASH,
  ),
  resource_exhaustion(
    'kills all processes',
    """
    import os, signal
    os.kill(-1, signal.SIGKILL)
    """,
    Status.WRONG,
    Status.CRASH,
  ),
  resource_exhaustion(
    'kills its process group',
    """
    import os, signal
    os.killpg(0, signal.SIGKILL)
    """,
    Status.WRONG,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    "limits its parent's resources",
    """
    import os, resource
    for kind in range(16):
      try: resource.prlimit(os.getppid(), kind, (0, 0))
      except (OSError, ValueError): pass
    """,
    Status.WRONG,
    Status.CRASH,
  ),
  resource_exhaustion(
    'forks forever',
    """
    import os
    while True:
      try: os.fork()
      except OSError: pass
    """,
    Status.TIMEOUT,
    Status.CRASH,
  ),
  resource_exhaustion(
    'forks and ends',
    """
    import os
    while True:
      try:
        if os.fork(): os._exit(0)
      except OSError: pass
    """,
    Status.TIMEOUT,
    Status.CRASH,
    Status.WRONG,
  ),
  resource_exhaustion(
    'starts threads forever',
    """
    import threading, time
    while True:
      try: threading.Thread(target=time.sleep, args=(100,)).start()
      except RuntimeError: pass
    """,
    Status.TIMEOUT,
    Status.CRASH,
  ),
  resource_exhaustion(
    'leaves daemon processes',
    """
    import os, time
    for _ in range(8):
      if os.fork() == 0:
        try: os.setsid()
        except OSError: pass
        if os.fork(): os._exit(0)
        os.close(0); os.close(1); os.close(2)
        while True: time.sleep(0.01)
    print('gone')
    """,
    Status.WRONG,
    Status.CRASH,
  ),
  resource_exhaustion(
    'fills memory',
    """
    hoard = []
    while True: hoard.append(bytearray(10**7))
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'fills memory at once', 'x = bytearray(1 << 40)', Status.CRASH
  ),
  resource_exhaustion(
    'fills memory in several processes',
    """
    import os, time
    for _ in range(12):
      if os.fork() == 0: break
    hoard = bytearray(150 << 20)
    time.sleep(100)
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'fills shared memory',
    """
    import mmap
    hoard = []
    while True:
      piece = mmap.mmap(-1, 64 << 20)
      for start in range(0, len(piece), 4096): piece[start] = 1
      hoard.append(piece)
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'fills /tmp',
    """
    for i in range(10**6):
      with open(f'/tmp/{i}', 'wb') as file: file.write(bytes(1 << 20))
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'fills /dev/shm',
    """
    for i in range(10**6):
      with open(f'/dev/shm/{i}', 'wb') as file: file.write(bytes(1 << 20))
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'fills the table of inodes',
    """
    import os
    for i in range(10**8): os.close(os.open(f'/tmp/{i}', os.O_CREAT))
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'writes a huge file',
    """
    with open('/tmp/huge', 'wb') as file: file.truncate(1 << 40)
    """,
    Status.CRASH,
  ),
  resource_exhaustion(
    'fills pipes',
    """
    import os
    hoard = []
    while True:
      r, w = os.pipe()
      os.set_blocking(w, False)
      hoard.append((r, w, os.write(w, bytes(1 << 16))))
    """,
    Status.CRASH,
  ),
  resource_exhaustion(
    'opens files without end',
    """
    hoard = []
    while True: hoard.append(open('/dev/null'))
    """,
    Status.CRASH,
  ),
  resource_exhaustion(
    'prints forever', "while True: print('x' * 65536)", Status.CRASH
  ),
  resource_exhaustion(
    'prints to standard error forever',
    """
    import sys
    while True: print('x' * 65536, file=sys.stderr)
    """,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'writes results forever',
    """
    import os
    def add(a, b):
      while True: os.write(3, bytes(65536))
    """,
    Status.CRASH,
    tests=CALL,
  ),
  resource_exhaustion(
    "writes to the suite's channel forever",
    """
    import os
    def add(a, b):
      while True: os.write(5, b'{' * 65536)
    """,
    Status.CRASH,
    Status.WRONG,
    Status.TIMEOUT,
    tests=SUITE,
  ),
  resource_exhaustion(
    'iterates a suite forever',
    """
    import itertools
    def add(a, b): return itertools.count(8)
    """,
    Status.TIMEOUT,
    tests=[{'asserts': 'assert 7 in add(3, 4)'}],
  ),
  resource_exhaustion(
    'recurses forever',
    """
    import sys
    sys.setrecursionlimit(10**9)
    class Deep:
      def __getattr__(self, name): return getattr(self, name + 'x')
    Deep().x
    """,
    Status.CRASH,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'reads from address 0',
    """
    import ctypes
    ctypes.string_at(0)
    """,
    Status.CRASH,
  ),
  resource_exhaustion(
    'runs invalid bytecode',
    """
    def f(): pass
    f.__code__ = f.__code__.replace(co_code=b'\\x64\\xff' * 50, co_stacksize=0)
    f()
    """,
    Status.CRASH,
    Status.WRONG,
    Status.TIMEOUT,
  ),
  resource_exhaustion(
    'uses every processor',
    """
    import os, hashlib
    for _ in range(10): os.fork()
    while True: hashlib.sha256(bytes(1 << 20))
    """,
    Status.TIMEOUT,
    Status.CRASH,
  ),
]
