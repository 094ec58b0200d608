# SPDX-License-Identifier: Apache-2.0
"""Extraction of the program from a response with fenced blocks of code."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence

from covrl.rewards.sandbox.test_formats import (
  CallTest,
  PrintTest,
  SuiteTest,
  Test,
)

# A fence begins a line, perhaps in a list or quotation; one that is tagged as
# Python may follow text.
_FENCE = re.compile(
  r'^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)?(?P<ticks>`{3,}|~{3,})[ \t]*'
  r'(?P<tag>[^\n`]*)$|(?<=\S)[ \t]*(?P<inline>```)[ \t]*'
  r'(?P<python>python[\d.]*)[ \t]*$',
  re.MULTILINE | re.IGNORECASE,
)
# Fences after the start of a block that are examined, at most, for its end.
_MAX_FENCES = 64
# Tags of blocks in Python, and tags that name no language.
_PYTHON_TAG = re.compile(
  r'[{. ]*(python|py|pypy)[\d.]*\b(?![-+])', re.IGNORECASE
)
_GENERIC_TAGS = '', 'answer', 'code', 'program', 'solution'
# Functions and classes that a program defines at the top level.
_DEFINITION = re.compile(
  r'^(?:async[ \t]+def|def|class)[ \t]+(\w+)|^(\w+)[ \t]*=[ \t]*lambda\b',
  re.MULTILINE,
)
# Other names that it assigns or imports there.
_ASSIGNMENT = re.compile(
  r'^(\w+)[ \t]*(?::[^=\n]*)?=(?!=)|^(?:from[ \t].*)?import[ \t].*\bas[ \t]+(\w+)',
  re.MULTILINE,
)
# Code that reads standard input.
_READS_INPUT = re.compile(
  r'\binput\s*\(|\bstdin\b(?!\s*=[^=])|\bfileinput\b|\bopen\(\s*0\b'
  r'|\bos\.read\(\s*0\b'
)
# Names, and names that are called.
_NAME = re.compile(r'(?<![.\w])[^\W\d]\w*')
_CALL = re.compile(r'(?<![.\w])([^\W\d]\w*)[ \t]*\(')
# Characters of a block of imports and constants, at most.
_MAX_PREAMBLE_CHARACTERS = 10_000
# Code that writes to standard output.
_PRINTS_OUTPUT = re.compile(r'\bprint\s*\(|\bstdout\b|\bos\.write\(\s*1\b')


@dataclasses.dataclass(frozen=True)
class _Block:
  """A fenced block: the tag after its fence, and its text."""

  tag: str
  text: str

  @property
  def tag_rank(self) -> int:
    """2 for a block tagged as Python, 1 without a tag, 0 for another tag."""
    if self.tag.lower() in _GENERIC_TAGS:
      return 1
    return 2 if _PYTHON_TAG.match(self.tag) else 0

  @property
  def defined_names(self) -> set[str]:
    """Names of functions and classes that it defines at the top level."""
    return _find_names(_DEFINITION, self.text)

  @property
  def assigned_names(self) -> set[str]:
    """Names that it defines in any way at the top level."""
    return self.defined_names | _find_names(_ASSIGNMENT, self.text)


def find_program(response: str, tests: Sequence[Test] = ()) -> str | None:
  """Returns the program in a response; `None` if it contains no program.

  Of several fenced blocks it is the last one that defines what the tests call
  or, for tests of printed output, that reads input; else the last that defines
  a function or class or reads input; else the last block. Blocks tagged as
  Python come before blocks without a tag, and these before others, unless only
  the latter define something. Earlier blocks that define functions which the
  program calls but does not define are put before it, and so are blocks of
  imports and constants that it uses. A block in the reasoning
  (before `</think>`) counts only if none follows the reasoning. Without a fence
  the response, without its reasoning, is the program.

  >>> find_program('So:\\n```python\\nprint(1)\\n```\\nOutput:\\n```\\n1\\n```')
  'print(1)\\n'
  >>> find_program(' ') is None
  True

  Args:
    response: the response.
    tests: the tests that the program must pass.
  """
  response = response.removeprefix('\ufeff').replace('\r\n', '\n')
  answer = response.rpartition('</think>')[2]
  blocks = [b for b in _blocks(answer) if b.text.strip()]
  if not blocks:
    all_blocks = list(_blocks(response))
    blocks = [b for b in all_blocks if b.text.strip()]
    if not blocks:
      return None if all_blocks or not answer.strip() else answer
  tested_names = _names_in_tests(tests)
  must_print = any(isinstance(test, PrintTest) for test in tests)
  # Beside a program, text in other blocks may mention input without reading it.
  best_tag = max(block.tag_rank for block in blocks)
  ranks = [
    _rank(block, tested_names, must_print, may_read=block.tag_rank == best_tag)
    for block in blocks
  ]
  best_index = max(range(len(blocks)), key=lambda index: (*ranks[index], index))
  return _with_definitions(blocks[best_index], blocks[:best_index])


def _with_definitions(block: _Block, earlier: Sequence[_Block]) -> str:
  """Returns a program, after earlier blocks with functions that it calls.

  Only functions that the program does not define itself are looked for.
  """
  text, missing_functions = (
    block.text,
    set(_CALL.findall(block.text)) - block.assigned_names,
  )
  # What a star import defines is not known. Nothing may precede an import from
  # __future__.
  undefined_names = {'*', *_NAME.findall(text)} - block.assigned_names
  undefined_names = (
    set() if '__future__' in undefined_names else undefined_names
  )
  for earlier_block in reversed(earlier):
    if earlier_block.tag_rank != block.tag_rank:
      continue
    if (
      earlier_block.defined_names & missing_functions
      or _constants(earlier_block.text) & undefined_names
    ):
      text = f'{earlier_block.text}\n{text}'
      missing_functions = (
        missing_functions | set(_CALL.findall(earlier_block.text))
      ) - earlier_block.assigned_names
      undefined_names |= set(_NAME.findall(earlier_block.text))
  return text


def _constants(text: str) -> set[str]:
  """Returns the names that a block of imports and constants alone defines.

  A constant has a name in capitals. Empty for a block with any other statement.
  """
  if len(text) > _MAX_PREAMBLE_CHARACTERS:
    return set()
  try:
    statements = ast.parse(text).body
  except (SyntaxError, ValueError, RecursionError, MemoryError):
    return set()
  names: set[str] = set()
  for statement in statements:
    match statement:
      case ast.Import(aliases) | ast.ImportFrom(names=aliases):
        names |= {(a.asname or a.name).partition('.')[0] for a in aliases}
      case ast.Assign([ast.Name(name)]) if name.isupper():
        names.add(name)
      case _:
        return set()
  return names


def _rank(
  block: _Block, tested_names: set[str], must_print: bool, *, may_read: bool
) -> tuple[int, ...]:
  """Returns a key that is larger the more a block looks like the program."""
  defined_names = block.defined_names
  reads_input = may_read and bool(_READS_INPUT.search(block.text))
  is_session = block.text.lstrip().startswith('>>> ')
  is_code = block.tag_rank > 0 and not is_session
  is_program = is_code and (bool(defined_names) or reads_input)
  return (
    is_code and bool(block.assigned_names & tested_names),
    is_code and must_print and reads_input,
    is_program,
    not is_session,
    block.tag_rank,
    is_program or (is_code and bool(_PRINTS_OUTPUT.search(block.text))),
  )


def _names_in_tests(tests: Sequence[Test]) -> set[str]:
  """Returns names that tests use, one of which the program should define."""
  names: set[str] = set()
  for test in tests:
    match test:
      case CallTest():
        names |= {test.name.partition('.')[0], 'Solution'}
      case SuiteTest(source, entry):
        names |= set(re.findall(r'[^\W\d]\w*', source))
        names |= {entry} if entry else set()
        # A block that repeats the suite's own tests is not the program.
        names -= _find_names(_DEFINITION, source)
      case PrintTest():
        pass
  return names


def _find_names(pattern: re.Pattern[str], text: str) -> set[str]:
  """Returns the names that a pattern with two groups finds in a text."""
  return {a or b for a, b in pattern.findall(text)}


def _blocks(text: str) -> Iterator[_Block]:
  """Yields the fenced blocks; the last one may lack its closing fence."""
  start, searched_to, is_string = 0, 0, False
  while opening := _FENCE.search(text, start):
    is_string ^= _ends_in_string(text[searched_to : opening.start()])
    start = searched_to = opening.end()
    if is_string:
      # The fence is in a docstring of a program that is not in a fence itself.
      continue
    fence_characters = opening['ticks'] or opening['inline']
    tag = opening['tag'] or opening['python'] or ''
    begin = min(opening.end() + 1, len(text))
    end, start = _find_block_end(text, begin, fence_characters)
    searched_to = start
    yield _Block(tag.strip(), _unquote(text[begin:end], opening.group()))


def _find_block_end(
  text: str, begin: int, fence_characters: str
) -> tuple[int, int]:
  """Returns the end of a block's text, and the index at which the search goes on.

  A fence inside a string of several lines does not close the block, unless no
  later one lies outside of strings. A fence may follow code on its line, and an
  opening fence closes a block, too.
  """
  fence = re.escape(fence_characters[0]) + f'{{{len(fence_characters)},}}'
  pattern = re.compile(
    rf'^[ \t>]*{fence}[ \t]*([^\n`]*)$|(?<=\S){fence}[ \t]*$', re.MULTILINE
  )
  closings = itertools.islice(pattern.finditer(text, begin), _MAX_FENCES)
  first_closing = next(closings, None)
  if first_closing is None:
    return len(text), len(text)
  chosen_closing, previous, is_string = first_closing, begin, False
  for index, closing in enumerate(itertools.chain([first_closing], closings)):
    is_string ^= _ends_in_string(text[previous : closing.start()])
    previous = closing.start()
    if not is_string:
      chosen_closing = closing
      break
    if index and closing[1] and not first_closing[1]:
      # The next block begins: the string was not left open.
      break
  opens_another = re.fullmatch(r'[{.\w][^ ]*\s*', chosen_closing[1] or '')
  return (
    chosen_closing.start(),
    chosen_closing.start() if opens_another else chosen_closing.end(),
  )


def _ends_in_string(text: str) -> bool:
  """Returns whether code ends inside a string of several lines."""
  return (text.count('"""') + text.count("'''")) % 2 == 1


def _unquote(body: str, fence: str) -> str:
  """Removes the quotation marks and the indentation of a block in a list."""
  if fence.lstrip().startswith('>'):
    body = re.sub(r'^[ \t]*>[ \t]?', '', body, flags=re.MULTILINE)
  first = next((line for line in body.splitlines() if line.strip()), '')
  return textwrap.dedent(body) if first[:1].isspace() else body
