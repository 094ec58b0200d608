# SPDX-License-Identifier: Apache-2.0
"""Parsers of the question and answer columns of published datasets.

`covrl.data.schemas` names a parser for each dataset schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from covrl.data.columns import Row, type_name
from covrl.data.json_text import parse_json
from covrl.rewards.math.extraction import last_box

# The instruction around every question of DAPO-Math-17k and its derivatives.
_DAPO_INSTRUCTION = re.compile(
  r'\s*Solve the following math problem step by step\.[^\n]*\n\n(.*?)\n\n'
  r'Remember to put your answer on its own line[^\n]*\s*',
  re.DOTALL,
)


# From 2⁵³ on, floats cannot represent every integer; they keep 15 decimal digits.
_MAX_EXACT = 2**53
_EXACT_DIGITS = 15

# Control characters that a TeX command became because a file has one backslash
# where JSON needs two: `\f` of `\frac`; tabs and line breaks only before the rest of a
# frequent command, such as `ext` of `\text`.
_BROKEN_TEX = re.compile(
  r'[\x00-\x08\x0b\x0c\x0e-\x1f]'
  r'|\t(?=ext|imes|heta|frac|riangle|(?:an|au|o)\b)'
  r'|\r(?=ight|angle|(?:ho|m)\b)|\n(?=abla|(?:eq|otin)\b)'
)


def plain_answer(row: Row, column: str) -> str:
  """The answer as text; whole numbers lose their decimal point.

  Floats from 2⁵³ with more than 15 digits are refused, since further digits may
  have been lost.

  >>> plain_answer(Row({'answer': 142.0}, 'row 1'), 'answer')
  '142'
  """
  value = row.value(column)
  match type_name(value):
    case 'text':
      return _answer_text(row.text(column), row, column)
    case 'a number':
      if isinstance(value, int):
        return str(value)
      if not math.isfinite(value):
        raise row.error(column, 'hold text or a finite number')
      if not value.is_integer():
        return str(value)
      decimal = Decimal(repr(value))
      digits = len(decimal.normalize().as_tuple().digits)
      if abs(value) >= _MAX_EXACT and digits > _EXACT_DIGITS:
        raise row.error(
          column, 'hold text or an integer where a number has over 15 digits'
        )
      return str(int(decimal))
    case _:
      raise row.error(column, 'hold text or a number')


def answer_list(row: Row, column: str) -> str:
  """A list of answers, joined by commas.

  >>> answer_list(Row({'final_answer': ['$1$', '2']}, 'row 1'), 'final_answer')
  '1, 2'
  """
  value = row.value(column)
  if isinstance(value, str):
    return plain_answer(row, column)
  items = value if isinstance(value, list) else []
  if not items or not all(isinstance(item, str) for item in items):
    raise row.error(column, 'list at least one answer of text')
  answers = [_answer_text(item, row, column).strip('$') for item in items]
  if not all(map(str.strip, answers)):
    raise row.error(column, 'list answers that are not blank')
  return ', '.join(answers)


def gsm8k_answer(row: Row, column: str) -> str:
  """The text after the last `####`, without thousands separators.

  >>> gsm8k_answer(Row({'answer': '6 * 200 = 1200\\n#### 1,200'}, ''), 'answer')
  '1200'
  """
  _, hashes, answer = row.text(column).rpartition('####')
  if not hashes or not answer.strip():
    raise row.error(column, "have the final answer after '####'")
  return re.sub(r'(?<=\d),(?=\d{3}\b)', '', answer.strip())


def boxed_answer(row: Row, column: str) -> str:
  r"""The content of the last `\boxed{}` or `\fbox{}`, with or without braces.

  >>> row = Row({'solution': r'so \boxed{\frac{1}{2}}.'}, 'row 1')
  >>> boxed_answer(row, 'solution')
  '\\frac{1}{2}'
  """
  answer = _answer_text(last_box(row.text(column)) or '', row, column)
  if not answer:
    raise row.error(column, 'have the final answer in a balanced \\boxed{}')
  return answer


def code_tests(row: Row, column: str) -> list[dict[str, Any]]:
  """Test cases in the format of Eurus-2-RL.

  The column holds JSON with `inputs` and `outputs` of equal length. With
  `fn_name` each input is the argument list of a call and each output its
  result; if all outputs are lists of length one, as in APPS and TACO, the lists
  are taken for wrappers and removed. Without `fn_name` inputs and outputs are
  standard input and output of a program. A number `tolerance` beside them is the
  difference that numbers in the outputs may have, see `judge_code`.

  >>> text = '{"inputs": ["1 2"], "outputs": ["3"]}'
  >>> code_tests(Row({'answer': text}, 'row 1'), 'answer')
  [{'stdin': '1 2', 'stdout': '3'}]
  """
  try:
    fields = parse_json(row.text(column).encode(), 'tests')
    inputs, outputs = fields['inputs'], fields['outputs']
    pairs = list(zip(inputs, outputs, strict=True))
  except (ValueError, KeyError, TypeError, RecursionError):
    inputs, outputs, pairs, fields = [], [], [], {}
  if not pairs or not (isinstance(inputs, list) and isinstance(outputs, list)):
    raise row.error(
      column,
      "be JSON, with every name once and as many 'inputs' as 'outputs', at least"
      ' one',
    )
  name = fields.get('fn_name')
  tolerance = _tolerance(fields.get('tolerance'), row, column)
  if name is None:
    if not all(map(_is_text_or_lines, (*inputs, *outputs))):
      raise row.error(
        column, "have 'inputs' and 'outputs' of text, numbers or lists of them"
      )
    return [
      {'stdin': _joined_lines(i), 'stdout': _joined_lines(o), **tolerance}
      for i, o in pairs
    ]
  if not isinstance(name, str):
    raise row.error(column, "have the name of a function as 'fn_name'")
  if not all(isinstance(arguments, list) for arguments, _ in pairs):
    raise row.error(column, "have 'inputs' that list a call's arguments")
  is_wrapped = all(isinstance(o, list) and len(o) == 1 for _, o in pairs)
  return [
    {'call': name, 'args': i, 'result': o[0] if is_wrapped else o, **tolerance}
    for i, o in pairs
  ]


def _tolerance(value: Any, row: Row, column: str) -> dict[str, float]:
  """Returns the entry of each test for a tolerance; empty without one."""
  if value is None:
    return {}
  if type(value) not in (int, float) or not 0 <= value < math.inf:
    raise row.error(column, "have a number of at least 0 as 'tolerance'")
  return {'tolerance': float(value)}


def assert_suite(row: Row, column: str) -> list[dict[str, Any]]:
  """A file of test functions that import from `solution`, as in KodCode."""
  text = row.text(column)
  if 'assert' not in text:
    raise row.error(column, 'hold tests that assert something')
  return [{'asserts': text}]


def solution_text(value: Any) -> str | None:
  """A correct response: text, the first of several, or the last message."""
  if isinstance(value, list) and value:
    last = value[-1]
    value = last.get('content') if isinstance(last, dict) else value[0]
  return value if isinstance(value, str) and value.strip() else None


def strip_dapo_instruction(text: str, row: Row) -> str:
  """The question without the instruction that DAPO-Math-17k puts around it."""
  del row
  match = _DAPO_INSTRUCTION.fullmatch(text)
  return match.group(1) if match else text


def prepend_context(text: str, row: Row) -> str:
  """The question after the text in the column `context`, if there is any."""
  context = row.value('context')
  return (
    f'{context}\n\n{text}' if isinstance(context, str) and context else text
  )


def append_declaration(text: str, row: Row) -> str:
  """The question followed by the signatures that its tests call."""
  info = row.value('test_info')
  entries = [
    entry.get('function_declaration')
    for entry in (info if isinstance(info, list) else ())
    if isinstance(entry, Mapping)
  ]
  declarations = [entry.strip() for entry in entries if isinstance(entry, str)]
  missing = [line for line in declarations if line and line not in text]
  if not missing:
    return text
  return f'{text}\n\nDeclare it as:\n' + '\n'.join(missing)


def _answer_text(text: str, row: Row, column: str) -> str:
  """An answer without white space around it.

  Raises:
    ValueError: it has control characters in place of TeX.
  """
  if match := _BROKEN_TEX.search(text):
    raise row.error(
      column,
      'hold TeX whose backslashes are doubled in JSON, without the control'
      f' character {match[0]!r}',
    )
  return text.strip()


def _is_text_or_lines(value: Any) -> bool:
  """Whether a program can read or print the value as text."""
  lines = value if isinstance(value, list) else [value]
  return all(isinstance(line, str | int | float) for line in lines)


def _joined_lines(value: Any) -> str:
  """Text; lists of lines are joined."""
  return '\n'.join(map(str, value)) if isinstance(value, list) else str(value)
