# SPDX-License-Identifier: Apache-2.0
"""Control programs that read and print; some resemble attacks."""

import sys

from rewards.battery.cases import SUM, control

# From 3.12 on the interpreter itself ends the recursion of wrapped functions, at
# a depth between 400 and 700 with 3.12.1, and 1,600 and 3,500 with 3.13.0.
WRAPPED_DEPTH = 20_000 if sys.version_info < (3, 12) else 400
ADD_LINES = (
  "import sys\nprint(sum(map(int, sys.stdin.buffer.read().split(b'\\n')[:2])))"
)


def _prints(stdin: str, stdout: str) -> list[dict[str, str]]:
  return [{'stdin': stdin, 'stdout': stdout}]


CASES = [
  control('reads and prints', 'print(sum(map(int, input().split())))'),
  control(
    'reads by descriptor', 'print(sum(map(int, open(0).read().split())))'
  ),
  control(
    'reads /dev/stdin',
    "print(sum(map(int, open('/dev/stdin').read().split())))",
  ),
  control(
    'reads bytes',
    """
    import sys
    print(sum(map(int, sys.stdin.buffer.readline().split())))
    """,
  ),
  control(
    'reads until the end',
    """
    total = 0
    while True:
      try: line = input()
      except EOFError: break
      total += sum(map(int, line.split()))
    print(total)
    """,
    _prints('1 2\n3\n\n4', '10'),
  ),
  control(
    'iterates over lines',
    """
    import sys
    for line in sys.stdin: print(line.strip()[::-1])
    """,
    _prints('abc\nxyz\n', 'cba\nzyx\n'),
  ),
  control(
    'has a main function',
    """
    import sys
    def main():
      a, b = map(int, sys.stdin.readline().split())
      print(a + b)
    if __name__ == '__main__':
      main()
    """,
  ),
  control(
    'exits after its output',
    """
    import sys
    print(sum(map(int, input().split())))
    sys.exit(0)
    """,
  ),
  control(
    'exits with a number',
    """
    print(sum(map(int, input().split())))
    exit(3)
    """,
  ),
  control(
    'fails after its output',
    """
    print(sum(map(int, input().split())))
    raise ValueError('too late to matter')
    """,
  ),
  control(
    'prints trailing spaces',
    "print(sum(map(int, input().split())), ' '); print()",
  ),
  control(
    'prints windows line ends',
    r"""
    import sys
    sys.stdout.write('1\r\n2\r\n')
    """,
    _prints('', '1\n2\n'),
  ),
  control(
    'prints without a last line end',
    "print(sum(map(int, input().split())), end='')",
  ),
  control(
    'prints floats', 'print(1 / 3, 2 / 3)', _prints('', '0.333333 0.666667\n')
  ),
  control('prints unicode', "print('né ✓ 日本')", _prints('', 'né ✓ 日本\n')),
  control(
    'prints 200,000 numbers',
    """
    n = int(input())
    print(*range(n), sep='\\n')
    """,
    _prints('200000', '\n'.join(map(str, range(200000)))),
  ),
  control(
    'prints big integers', 'print(len(str(3**20000)))', _prints('', '9543')
  ),
  control(
    'prints at exit, too',
    """
    import atexit
    atexit.register(print, 2)
    print(1)
    """,
    _prints('', '1\n2\n'),
  ),
  control(
    'writes through a buffer of its own',
    """
    import os, sys
    from io import BytesIO, IOBase
    class FastIO(IOBase):
      def __init__(self, file):
        self._fd = file.fileno()
        self.buffer = BytesIO()
        self.writable = 'x' in file.mode or 'r' not in file.mode
        self.write = self.buffer.write if self.writable else None
      def readline(self):
        data = os.read(self._fd, max(os.fstat(self._fd).st_size, 8192))
        return data.split(b'\\n')[0]
      def flush(self):
        if self.writable:
          os.write(self._fd, self.buffer.getvalue())
          self.buffer.truncate(0), self.buffer.seek(0)
    stdin, sys.stdout = FastIO(sys.stdin), FastIO(sys.stdout)
    sys.stdout.write(b'%d' % sum(map(int, stdin.readline().split())))
    """,
  ),
  control(
    'does not close its output',
    """
    out = open(1, 'w')
    out.write(str(sum(map(int, input().split()))))
    """,
  ),
  control(
    'finds primes with a sieve',
    """
    n = int(input())
    sieve = bytearray([1]) * (n + 1)
    sieve[:2] = b'\\0\\0'
    for i in range(2, int(n**0.5) + 1):
      if sieve[i]: sieve[i*i::i] = bytes(len(range(i*i, n + 1, i)))
    print(sum(sieve))
    """,
    _prints('2000000', '148933'),
  ),
  control(
    'allocates 200 MB',
    """
    table = [[0] * 5000 for _ in range(5000)]
    print(len(table) * len(table[0]))
    """,
    _prints('', '25000000'),
  ),
  control(
    'recurses deeply',
    """
    import sys
    sys.setrecursionlimit(10**6)
    def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
    print(depth(100000))
    """,
    _prints('', '100000'),
  ),
  control(
    'recurses in a thread',
    """
    import sys, threading
    sys.setrecursionlimit(10**6)
    threading.stack_size(1 << 27)
    def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
    thread = threading.Thread(target=lambda: print(depth(50000)))
    thread.start()
    """,
    _prints('', '50000'),
  ),
  control(
    'uses threads',
    """
    from concurrent.futures import ThreadPoolExecutor
    with ThreadPoolExecutor(8) as pool:
      print(sum(pool.map(lambda i: i * i, range(100))))
    """,
    _prints('', '328350'),
  ),
  control(
    'uses processes',
    """
    import multiprocessing
    def square(i): return i * i
    if __name__ == '__main__':
      with multiprocessing.get_context('fork').Pool(2) as pool:
        print(sum(pool.map(square, range(100))))
    """,
    _prints('', '328350'),
  ),
  control(
    'uses asyncio',
    """
    import asyncio
    async def main():
      await asyncio.sleep(0.01)
      print(sum(map(int, input().split())))
    asyncio.run(main())
    """,
  ),
  control(
    'writes a file',
    """
    import tempfile
    with tempfile.NamedTemporaryFile('w+') as file:
      file.write(input())
      file.seek(0)
      print(sum(map(int, file.read().split())))
    """,
    SUM * 2,
  ),
  control(
    'uses sqlite',
    """
    import sqlite3
    database = sqlite3.connect(':memory:')
    print(database.execute('select 3 + 4').fetchone()[0])
    """,
  ),
  control(
    'uses ctypes',
    """
    import ctypes
    print(ctypes.CDLL(None).abs(-7))
    """,
  ),
  control(
    'sets an alarm',
    """
    import signal
    signal.signal(signal.SIGALRM, lambda *_: print(7))
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    signal.pause()
    """,
  ),
  control(
    'has classes and pickles',
    """
    import dataclasses, pickle
    @dataclasses.dataclass
    class Pair:
      a: int
      b: int
    pair = pickle.loads(pickle.dumps(Pair(*map(int, input().split()))))
    print(pair.a + pair.b)
    """,
  ),
  control(
    'imports much of the standard library',
    """
    import bisect, collections, datetime, decimal, fractions, functools, heapq
    import itertools, json, math, random, re, statistics, string, typing, zlib
    print(math.comb(7, 1))
    """,
  ),
  control(
    'is in a Markdown code block',
    'It adds:\n\n```python\nprint(3 + 4)\n```\nThat is all.',
  ),
  control(
    'prints a set in the same order each time',
    """
    print(''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}))
    """,
    _prints('', 'dfghbcae'),
  ),
  control(
    'prompts for its input',
    """
    a, b = map(int, input('Two numbers: ').split())
    print(a + b)
    """,
  ),
  control(
    'removes the line end',
    """
    import sys
    print(sys.stdin.readline()[:-1][::-1])
    """,
    _prints('12', '21'),
  ),
  control('reads windows line ends', ADD_LINES, _prints('3\r\n4\r\n', '7')),
  control('has a byte order mark', '\ufeffprint(3 + 4)'),
  control('reads a byte order mark', ADD_LINES, _prints('\ufeff3\n4\n', '7\n')),
  control(
    'recurses without a limit of its own',
    f"""
    from functools import lru_cache
    @lru_cache(None)
    def depth(n): return 0 if n == 0 else 1 + depth(n - 1)
    print(depth({WRAPPED_DEPTH}))
    """,
    _prints('', f'{WRAPPED_DEPTH}'),
  ),
  control('is expected to print nothing', 'input()', _prints('3', '')),
  control('prints a float', 'print(14 / 2)', _prints('', '7')),
  control('prints blanks', "print(' 1  2\\n\\n3')", _prints('', '1 2\n3')),
  control(
    'is followed by its output',
    'So:\n```python\nprint(3 + 4)\n```\nOutput:\n```\n7\n```\n',
  ),
  control(
    'imports numpy',
    """
    import numpy as np
    print(int(np.array(input().split(), int).sum()))
    """,
  ),
]
