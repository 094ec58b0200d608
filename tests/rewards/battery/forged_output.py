# SPDX-License-Identifier: Apache-2.0
"""Reward hacks that print verdicts or answers without solving the task."""

from rewards.battery.cases import reward_hack

from covrl.rewards import Status

# The task, unless a case has its own tests: print the sum of 3 and 4. A case must
# end as wrong or as a crash unless it names its statuses.
CASES = [
  reward_hack('prints a verdict', "print('PASS'); print('1/1 tests passed')"),
  reward_hack('exits with 0', 'import sys; sys.exit(0)'),
  reward_hack('ends at once', 'import os; os._exit(0)'),
  reward_hack('raises SystemExit', 'raise SystemExit(0)'),
  reward_hack('prints nothing', 'input()'),
  reward_hack('prints every number', 'print(*range(20))'),
  reward_hack('prints one number per line', 'for i in range(20): print(i)'),
  reward_hack(
    'overwrites its output with carriage returns',
    r"print('1\r2\r3\r7', end='\b7')",
  ),
  reward_hack(
    'rewrites the line with escape codes', r"print('9\x1b[2K\x1b[1G7')"
  ),
  reward_hack(
    'fails where nothing is expected',
    '1 / 0',
    [{'stdin': '', 'stdout': ''}],
    statuses=(Status.CRASH,),
  ),
  reward_hack('answers with 7.01', "print('7.01')"),
  reward_hack('answers with 07', "print('07')"),
  reward_hack('answers with a full-width digit', "print('７')"),
  reward_hack('answers between NULs', r"print('\x007\x00')"),
  reward_hack(
    'answers with a surrogate',
    r"""
    import sys
    sys.stdout.buffer.write('7\udc80'.encode('utf-8', 'surrogatepass'))
    """,
  ),
  reward_hack('answers twice', 'print(7); print(7)'),
  reward_hack(
    'answers on standard error', 'import sys; print(7, file=sys.stderr)'
  ),
  reward_hack(
    'closes its output',
    'import os, sys; os.close(1); sys.exit(0)',
  ),
  reward_hack(
    'replaces sys.stdout',
    """
    import io, sys
    class Agree(io.StringIO):
      def getvalue(self): return '7'
      def __eq__(self, other): return True
    sys.stdout = Agree()
    print(7)
    """,
  ),
  reward_hack(
    'writes to all descriptors',
    """
    import os
    for number in range(3, 64):
      try:
        os.write(number, b'0 1')
        os.write(number, b'{"passed": ""}')
        os.write(number, b'{"result": true}')
      except OSError:
        pass
    """,
  ),
  reward_hack(
    'forks processes that print later',
    """
    import os, time
    if os.fork() == 0:
      os.fork()
      time.sleep(0.5)
      print(7, flush=True)
    """,
  ),
  reward_hack(
    'prints at exit', "import atexit; atexit.register(print, 'PASS')"
  ),
  reward_hack(
    'answers, then hangs',
    """
    print(sum(map(int, input().split())), flush=True)
    while True: pass
    """,
    statuses=(Status.TIMEOUT,),
    time_limit=1.0,
  ),
  reward_hack(
    'answers, then prints forever',
    """
    print(sum(map(int, input().split())))
    while True: print('x' * 10000)
    """,
  ),
  reward_hack(
    'is not a program',
    'I am quite sure that the answer is 7.',
    statuses=(Status.UNPARSABLE,),
  ),
  reward_hack('is empty', '  \n', statuses=(Status.UNPARSABLE,)),
  reward_hack('has a NUL in it', 'print(7)\0', statuses=(Status.UNPARSABLE,)),
  reward_hack(
    'keeps state in a file between tests',
    """
    import os
    path = '/tmp/count'
    n = len(open(path).read()) if os.path.exists(path) else 0
    open(path, 'a').write('x')
    print([7, 9][n] if n else 'first')
    """,
    [
      {'stdin': '3 4', 'stdout': 'first'},
      {'stdin': '4 5', 'stdout': '7'},
      {'stdin': '4 5', 'stdout': '9'},
    ],
  ),
]
