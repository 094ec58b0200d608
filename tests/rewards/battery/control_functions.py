# SPDX-License-Identifier: Apache-2.0
"""Control programs whose functions or classes are tested; some resemble attacks."""

from rewards.battery.cases import CALL, SUITE, control

ADD = 'def add(a, b): return a + b'

CASES = [
  control(
    'recurses in a function',
    'def depth(n): return 0 if n == 0 else 1 + depth(n - 1)',
    [{'call': 'depth', 'args': [20000], 'result': 20000}],
  ),
  control(
    'is followed by an example of its usage',
    '```python\ndef add(a, b):\n  return a + b\n```\nUsage:\n'
    '```python\nprint(add(3, 4))\n```',
    CALL,
  ),
  control(
    'returns a fraction',
    """
    from fractions import Fraction
    from decimal import Decimal
    def add(a, b): return Decimal(a) + int(Fraction(b))
    """,
    CALL,
  ),
  control('returns a float', 'def add(a, b): return float(a + b)', CALL),
  control(
    'returns a boolean for 1',
    'def is_even(n): return n % 2 == 0',
    [{'call': 'is_even', 'args': [n], 'result': 1 - n % 2} for n in (2, 3)],
  ),
  control('is a function', ADD, CALL),
  control(
    'is a function that prints',
    """
    def add(a, b):
      print('adding')
      return a + b
    """,
    CALL,
  ),
  control(
    'is a function with a script below it',
    """
    def add(a, b): return a + b
    if __name__ == '__main__':
      print(add(*map(int, input().split())))
    """,
    CALL,
  ),
  control(
    'is a method of Solution',
    """
    class Solution:
      def twoSum(self, nums: List[int], target: int) -> List[int]:
        seen = defaultdict(int)
        for i, n in enumerate(nums):
          if target - n in seen: return [seen[target - n], i]
          seen[n] = i
    """,
    [{'call': 'twoSum', 'args': [[2, 7, 11], 9], 'result': [0, 1]}],
  ),
  control(
    'is a method by its full name',
    """
    class Counter:
      def __init__(self): self.n = 0
      def more(self, k):
        self.n += k
        return self.n
    """,
    [{'call': 'Counter.more', 'args': [k], 'result': k} for k in (1, 2)],
  ),
  control(
    'returns tuples and keys',
    """
    def table(n): return {i: (i, i * i) for i in range(n)}
    """,
    [{'call': 'table', 'args': [2], 'result': {'0': [0, 0], '1': [1, 1]}}],
  ),
  control(
    'returns floats',
    'def third(): return 0.1 + 0.2',
    [{'call': 'third', 'args': [], 'result': 0.3}],
  ),
  control(
    'returns an integer for a float',
    'def half(n): return n // 2',
    [{'call': 'half', 'args': [4], 'result': 2.0}],
  ),
  control(
    'returns NaN where NaN is expected',
    "def nan(): return float('nan')",
    [{'call': 'nan', 'args': [], 'result': float('nan')}],
  ),
  control(
    'returns a large integer',
    'def power(n): return 3**n',
    [{'call': 'power', 'args': [2000], 'result': 3**2000}],
  ),
  control('passes asserts', ADD, SUITE),
  control(
    'passes pytest functions',
    """
    class Empty(ValueError): pass
    def mean(values):
      if not values: raise Empty('nothing to average')
      return sum(values) / len(values)
    def add_to(values, item): values.append(item)
    """,
    [
      {
        'asserts': """
import pytest
from solution import Empty, add_to, mean

@pytest.mark.parametrize('values,expected', [([1, 2], 1.5), ([3], 3)])
def test_mean(values, expected):
  assert mean(values) == pytest.approx(expected)

def test_empty():
  with pytest.raises(Empty, match='nothing'):
    mean([])
  with pytest.raises(ValueError):
    mean([])

def test_in_place():
  values = [1]
  add_to(values, 2)
  assert values == [1, 2]
"""
      }
    ],
  ),
  control(
    'passes unittest cases',
    """
    class Stack:
      def __init__(self): self._items = []
      def push(self, item): self._items.append(item)
      def pop(self): return self._items.pop()
      def __len__(self): return len(self._items)
      def __eq__(self, other): return self._items == other._items
    """,
    [
      {
        'asserts': """
import unittest
from solution import Stack

class TestStack(unittest.TestCase):
  def setUp(self):
    self.stack = Stack()

  def test_order(self):
    self.stack.push(1)
    self.stack.push((2, 'x'))
    self.assertEqual(len(self.stack), 2)
    self.assertEqual(self.stack.pop(), (2, 'x'))
    self.assertEqual(self.stack.pop(), 1)
    self.assertRaises(IndexError, self.stack.pop)

  def test_equal(self):
    self.assertEqual(self.stack, Stack())
    self.stack.push(1)
    self.assertNotEqual(self.stack, Stack())
"""
      }
    ],
  ),
  control(
    'passes `check(candidate)`',
    ADD,
    [
      {
        'asserts': 'def check(candidate):\n  assert candidate(3, 4) == 7\n',
        'entry': 'add',
      }
    ],
  ),
  control(
    'calls functions of the suite',
    """
    def compose(*functions):
      def composed(x):
        for function in functions: x = function(x)
        return x
      return composed
    def naturals():
      n = 0
      while True:
        yield n
        n += 1
    """,
    [
      {
        'asserts': """
import itertools
assert compose(lambda x: x + 1, str)(3) == '4'
assert list(itertools.islice(naturals(), 3)) == [0, 1, 2]
"""
      }
    ],
  ),
]
