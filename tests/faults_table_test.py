# SPDX-License-Identifier: Apache-2.0
"""The table of faults in the README names tests that exist."""

import pathlib
import re

TESTS = pathlib.Path(__file__).parent


def test_every_promise_has_a_test():
  text = (TESTS / 'README.md').read_text()
  table = text.partition('\n## Faults\n')[2].partition('\n## ')[0]
  rows = [line for line in table.splitlines() if line.startswith('| ')][1:]
  assert len(rows) > 30
  for row in rows:
    promise, fault, tests, result = row.strip('| ').split(' | ')
    assert all((promise, fault, result)), row
    file = ''
    named = re.findall(r'`([^`]+)`', tests)
    assert named, row
    for name in named:
      path, _, function = name.partition('::')
      file = path or file
      content = (TESTS / file).read_text()
      assert f'def {function}' in content, name
