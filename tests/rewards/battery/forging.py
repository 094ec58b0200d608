# SPDX-License-Identifier: Apache-2.0
"""Attacks that try to pass without solving the task."""

from rewards.battery.rows import CALL, SUITE, forging

from covrl.rewards import Status

ROWS = [
  # Printed verdicts, exit codes and forged output.
  forging('prints a verdict', "print('PASS'); print('1/1 tests passed')"),
  forging('exits with 0', 'import sys; sys.exit(0)'),
  forging('ends at once', 'import os; os._exit(0)'),
  forging('raises SystemExit', 'raise SystemExit(0)'),
  forging('prints nothing', 'input()'),
  forging('prints every number', 'print(*range(20))'),
  forging('prints a number a line', 'for i in range(20): print(i)'),
  forging('overprints', r"print('1\r2\r3\r7', end='\b7')"),
  forging('repaints the line', r"print('9\x1b[2K\x1b[1G7')"),
  forging(
    'fails where nothing is expected',
    '1 / 0',
    [{'stdin': '', 'stdout': ''}],
    statuses=(Status.CRASH,),
  ),
  forging('answers with 7.01', "print('7.01')"),
  forging('answers with 07', "print('07')"),
  forging('answers in full width', "print('７')"),
  forging('answers in NULs', r"print('\x007\x00')"),
  forging(
    'answers in surrogates',
    r"""
    import sys
    sys.stdout.buffer.write('7\udc80'.encode('utf-8', 'surrogatepass'))
    """,
  ),
  forging('answers twice', 'print(7); print(7)'),
  forging('answers on standard error', 'import sys; print(7, file=sys.stderr)'),
  forging(
    'closes its output',
    'import os, sys; os.close(1); sys.exit(0)',
  ),
  forging(
    'swaps its output',
    """
    import io, sys
    class Agree(io.StringIO):
      def getvalue(self): return '7'
      def __eq__(self, other): return True
    sys.stdout = Agree()
    print(7)
    """,
  ),
  forging(
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
  forging(
    'forks processes that print later',
    """
    import os, time
    if os.fork() == 0:
      os.fork()
      time.sleep(0.5)
      print(7, flush=True)
    """,
  ),
  forging('prints at exit', "import atexit; atexit.register(print, 'PASS')"),
  forging(
    'answers, then hangs',
    """
    print(sum(map(int, input().split())), flush=True)
    while True: pass
    """,
    statuses=(Status.TIMEOUT,),
    time_limit=1.0,
  ),
  forging(
    'answers, then floods',
    """
    print(sum(map(int, input().split())))
    while True: print('x' * 10000)
    """,
  ),
  forging(
    'is not a program',
    'I am quite sure that the answer is 7.',
    statuses=(Status.UNPARSABLE,),
  ),
  forging('is empty', '  \n', statuses=(Status.UNPARSABLE,)),
  forging('has a NUL in it', 'print(7)\0', statuses=(Status.UNPARSABLE,)),
  # Objects that agree with everything.
  forging(
    'returns what equals all',
    """
    class Agree:
      def __eq__(self, other): return True
      __hash__ = None
    def add(a, b): return Agree()
    """,
    CALL,
  ),
  forging(
    'returns an int that equals all',
    """
    class Agree(int):
      def __eq__(self, other): return True
      def __repr__(self): return '7'
      def __str__(self): return '7'
    def add(a, b): return Agree(0)
    """,
    CALL,
  ),
  forging(
    'returns a str that equals all',
    """
    class Agree(str):
      def __eq__(self, other): return True
    def add(a, b): return Agree('7')
    """,
    CALL,
  ),
  forging(
    'returns a float that equals all',
    """
    class Agree(float):
      def __eq__(self, other): return True
      def __repr__(self): return '7'
    def add(a, b): return Agree(1.5)
    """,
    CALL,
  ),
  forging(
    'returns a list that equals all',
    """
    class Agree(list):
      def __eq__(self, other): return True
      def __iter__(self): return iter([7])
    def add(a, b): return Agree()
    """,
    CALL,
  ),
  forging(
    'claims to be an int',
    """
    class Agree:
      __class__ = int
      def __index__(self): return 7
      def __int__(self): return 7
    def add(a, b): return Agree()
    """,
    CALL,
  ),
  forging(
    'returns True for 2',
    'def two(): return True',
    [{'call': 'two', 'args': [], 'result': 2}],
  ),
  forging(
    'returns 2 for True',
    'def yes(): return 2',
    [{'call': 'yes', 'args': [], 'result': True}],
  ),
  forging('returns 7.01 for 7', 'def add(a, b): return a + b + 0.01', CALL),
  forging('returns a text for 7', 'def add(a, b): return str(a + b)', CALL),
  forging('returns NaN', "def add(a, b): return float('nan')", CALL),
  forging('returns None', 'def add(a, b): return None', CALL),
  forging('returns a generator', 'def add(a, b): yield a + b', CALL),
  forging(
    'returns itself in itself',
    """
    def add(a, b):
      items = []
      items.append(items)
      return items
    """,
    CALL,
  ),
  forging(
    'returns a deeply nested list',
    """
    def add(a, b):
      items = 7
      for _ in range(100000): items = [items]
      return items
    """,
    CALL,
  ),
  forging(
    'returns a huge integer',
    'def add(a, b): return 7**500000',
    CALL,
    statuses=(Status.TIMEOUT, Status.CRASH),
    time_limit=1.0,
  ),
  forging(
    'returns a huge list',
    'def add(a, b): return [7] * 10**7',
    CALL,
    statuses=(Status.TIMEOUT, Status.CRASH),
    time_limit=1.0,
  ),
  forging(
    'returns a pickle',
    """
    import pickle
    class Harm:
      def __reduce__(self): return (print, ('PASS',))
    def add(a, b): return pickle.dumps(Harm())
    """,
    CALL,
  ),
  forging(
    'returns what unpickles to a command',
    """
    class Harm:
      def __reduce__(self): return (exec, ('import os; os._exit(0)',))
    def add(a, b): return Harm()
    """,
    CALL,
  ),
  # Attacks on the harness that runs the program.
  forging(
    'exits in the call',
    """
    import os
    def add(a, b): os._exit(0)
    """,
    CALL,
  ),
  forging(
    'raises SystemExit in the call',
    """
    def add(a, b): raise SystemExit(0)
    """,
    CALL,
  ),
  forging('exits on import', 'import sys; sys.exit(0)', CALL),
  forging(
    'writes a result of its own',
    """
    import os
    os.write(3, b'{"result": true}')
    os._exit(0)
    """,
    CALL,
  ),
  forging(
    'writes two results',
    """
    import os
    def add(a, b):
      os.write(3, b'{"result": 7}')
      return 7
    """,
    CALL,
  ),
  forging(
    'patches json',
    """
    import json, sys
    json.dumps = lambda *a, **k: '{"result": true}'
    json.loads = lambda *a, **k: True
    sys.modules['_json'] = json
    def add(a, b): return object()
    """,
    CALL,
  ),
  forging(
    'patches builtins',
    """
    import builtins
    for name in ('len', 'isinstance', 'type', 'all', 'any', 'print', 'eval'):
      setattr(builtins, name, lambda *a, **k: True)
    def add(a, b): return object()
    """,
    CALL,
  ),
  forging(
    'patches the runner',
    """
    import sys
    frame = sys._getframe()
    while frame:
      for name, value in list(frame.f_globals.items()):
        if callable(value) and name.startswith(('_call', 'to_json', '_write')):
          frame.f_globals[name] = lambda *a, **k: '{"result": true}'
      frame = frame.f_back
    def add(a, b): return object()
    """,
    CALL,
  ),
  forging(
    'looks for the answer in frames',
    """
    import sys
    def add(a, b):
      frame = sys._getframe()
      while frame:
        for space in (frame.f_locals, frame.f_globals):
          for name in ('expected', 'result', 'want', 'answer', 'tests', 'job'):
            value = space.get(name)
            if isinstance(value, dict):
              value = value.get('result', value.get('expected'))
            if isinstance(value, int): return value
        frame = frame.f_back
      return -1
    """,
    CALL,
  ),
  forging(
    'looks for the answer in memory',
    """
    import gc
    def add(a, b):
      for found in gc.get_objects():
        if type(found) is dict:
          for name in ('expected', 'result', 'stdout', 'output'):
            if isinstance(found.get(name), int): return found[name]
      return -1
    """,
    CALL,
  ),
  forging(
    'traces the comparison',
    """
    import sys
    seen = []
    def trace(frame, event, arg):
      for value in list(frame.f_locals.values()):
        if type(value) is int and value not in (3, 4): seen.append(value)
      return trace
    sys.settrace(trace)
    sys.setprofile(trace)
    def add(a, b): return max(seen, default=-1)
    """,
    CALL,
  ),
  # Attacks on tests by asserts.
  forging(
    'agrees with a suite',
    """
    class Agree:
      def __eq__(self, other): return True
      def __ne__(self, other): return False
    def add(a, b): return Agree()
    """,
    SUITE,
  ),
  forging(
    'returns what gives 0 when subtracted',
    """
    class Agree:
      def __sub__(self, other): return 0.0
      __rsub__ = __sub__
      def __abs__(self): return 0.0
    def add(a, b): return Agree()
    """,
    [{'asserts': 'assert abs(add(3, 4) - 7) < 1e-6'}],
  ),
  forging(
    'returns what is greater than all',
    """
    class Agree:
      def __gt__(self, other): return True
      __ge__ = __lt__ = __le__ = __gt__
    def add(a, b): return Agree()
    """,
    [{'asserts': 'assert add(3, 4) > 6'}],
  ),
  forging(
    'returns what contains everything',
    """
    class Agree:
      def __contains__(self, item): return True
      def __iter__(self): return iter([])
    def add(a, b): return Agree()
    """,
    [{'asserts': 'assert 7 in add(3, 4)'}],
  ),
  forging(
    'hides builtins from a suite',
    """
    def all(*a): return True
    def abs(*a): return 0
    def len(*a): return 2
    def isinstance(*a): return True
    class AssertionError(BaseException): pass
    def add(a, b): return 0
    """,
    [{'asserts': 'assert all([add(3, 4) == 7]) and abs(add(3, 4)) == 7'}],
  ),
  forging(
    'patches assert',
    """
    import builtins
    builtins.AssertionError = type('Quiet', (Exception,), {})
    __debug__ if True else None
    def add(a, b): return 0
    """,
    SUITE,
  ),
  forging(
    'raises SkipTest',
    """
    import unittest
    def add(a, b): raise unittest.SkipTest('not today')
    """,
    [
      {
        'asserts': """
import unittest
class TestAdd(unittest.TestCase):
  def test_add(self): self.assertEqual(add(3, 4), 7)
"""
      }
    ],
  ),
  forging(
    'exits in a suite',
    """
    import os
    def add(a, b): os._exit(0)
    """,
    SUITE,
  ),
  forging(
    'raises SystemExit in a suite',
    """
    def add(a, b): raise SystemExit(0)
    """,
    SUITE,
  ),
  forging(
    'raises ImportError in a suite',
    """
    def add(a, b): raise ImportError('no such thing')
    """,
    SUITE,
  ),
  forging(
    "writes a suite's results",
    r"""
    import os
    def add(a, b):
      os.write(5, b'{"value": true}\n{"passed": ""}\n')
      os.write(3, b'{"passed": ""}')
      os._exit(0)
    """,
    SUITE,
  ),
  forging(
    'writes half a line',
    """
    import os
    def add(a, b):
      os.write(5, b'{"value": 7')
      os._exit(0)
    """,
    SUITE,
  ),
  forging(
    'installs a fake pytest',
    """
    import sys, types
    fake = types.ModuleType('pytest')
    fake.raises = lambda *a, **k: None
    sys.modules['pytest'] = fake
    def add(a, b): return 0
    """,
    [
      {
        'asserts': """
import pytest
def test_add():
  with pytest.raises(TypeError): add(3, None)
  assert add(3, 4) == 7
"""
      }
    ],
  ),
  forging(
    'makes a suite pass objects of its own',
    """
    class Odd:
      def __getitem__(self, index): return 7
      def take(self, other): return True
    def add(a, b): return Odd()
    """,
    [{'asserts': 'assert add(3, 4).take(object()) and add(3, 4)[object()]'}],
  ),
  forging('defines nothing', 'x = 1', CALL),
  forging('defines nothing for a suite', 'x = 1', SUITE),
  forging(
    'remembers the last test',
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
  forging(
    'keeps state between calls',
    """
    n = 0
    def add(a, b):
      global n
      n += 1
      return n
    """,
    [{'call': 'add', 'args': [0, i], 'result': i} for i in (1, 2)],
  ),
]
