# SPDX-License-Identifier: Apache-2.0
"""How layouts state questions and answers: the rules of `covrl.data.schemas`."""

from __future__ import annotations

import json
import re
from typing import Any

from covrl.data.columns import Row, kind_of

# What DAPO-Math-17k, and the sets made like it, put around every question.
_FRAME = re.compile(
  r'\s*Solve the following math problem step by step\.[^\n]*\n\n(.*?)\n\n'
  r'Remember to put your answer on its own line[^\n]*\s*',
  re.DOTALL,
)


def stated(row: Row, column: str) -> str:
  """The answer itself: text, or a number as people write it.

  >>> stated(Row({'answer': 142.0}, 'row 1'), 'answer')
  '142'
  """
  value = row.value(column)
  match kind_of(value):
    case 'text':
      return row.text(column).strip()
    case 'a number':
      whole = isinstance(value, float) and value.is_integer()
      return str(int(value) if whole else value)
    case _:
      raise row.refusal(column, 'hold text or a number')


def listed(row: Row, column: str) -> str:
  """A list of one answer, or of the several that are asked for together.

  >>> listed(Row({'final_answer': ['$1$', '2']}, 'row 1'), 'final_answer')
  '1, 2'
  """
  value = row.value(column)
  if isinstance(value, str):
    return stated(row, column)
  if not value or not all(isinstance(item, str) for item in value):
    raise row.refusal(column, 'list at least one answer of text')
  return ', '.join(item.strip().strip('$') for item in value)


def behind_hashes(row: Row, column: str) -> str:
  """What follows the last `####`; commas within numbers are left out.

  >>> behind_hashes(Row({'answer': '6 * 200 = 1200\\n#### 1,200'}, ''), 'answer')
  '1200'
  """
  _, hashes, answer = row.text(column).rpartition('####')
  if not hashes or not answer.strip():
    raise row.refusal(column, "say the final answer behind '####'")
  return re.sub(r'(?<=\d),(?=\d{3}\b)', '', answer.strip())


def boxed(row: Row, column: str) -> str:
  r"""What the last `\boxed{}` holds.

  >>> boxed(Row({'solution': r'so \boxed{\frac{1}{2}}.'}, 'row 1'), 'solution')
  '\\frac{1}{2}'
  """
  text = row.text(column)
  start = text.rfind('\\boxed{')
  depth = 0
  for place in range(start + len('\\boxed'), len(text)) if start >= 0 else ():
    depth += {'{': 1, '}': -1}.get(text[place], 0)
    if depth == 0:
      answer = text[start + len('\\boxed{') : place].strip()
      if answer:
        return answer
      break
  raise row.refusal(column, 'say the final answer in a balanced \\boxed{}')


def code_tests(row: Row, column: str) -> list[dict[str, Any]]:
  """Inputs and outputs, as Eurus-2-RL has them, as tests of a program.

  JSON with `inputs` and `outputs`, as many of each. With `fn_name` each input
  is the arguments of a call, and each output its result; where all outputs are
  lists of one, as in APPS and TACO, they are taken to wrap it. Without it they
  are the program's standard input and output.

  >>> text = '{"inputs": ["1 2"], "outputs": ["3"]}'
  >>> code_tests(Row({'answer': text}, 'row 1'), 'answer')
  [{'stdin': '1 2', 'stdout': '3'}]
  """
  try:
    fields = json.loads(row.text(column))
    inputs, outputs = fields['inputs'], fields['outputs']
    paired = list(zip(inputs, outputs, strict=True))
  except (ValueError, KeyError, TypeError):
    paired, fields = [], {}
  if not paired:
    raise row.refusal(
      column, "be JSON with as many 'inputs' as 'outputs', at least one"
    )
  name = fields.get('fn_name')
  if name is None:
    return [{'stdin': _lines(i), 'stdout': _lines(o)} for i, o in paired]
  if not all(isinstance(arguments, list) for arguments, _ in paired):
    raise row.refusal(column, "have 'inputs' that list a call's arguments")
  wrapped = all(isinstance(o, list) and len(o) == 1 for _, o in paired)
  return [
    {'call': name, 'args': i, 'result': o[0] if wrapped else o}
    for i, o in paired
  ]


def assert_suite(row: Row, column: str) -> list[dict[str, Any]]:
  """A file of test functions that import from `solution`, as KodCode's."""
  text = row.text(column)
  if 'assert' not in text:
    raise row.refusal(column, 'hold tests that assert something')
  return [{'asserts': text}]


def solution(value: Any) -> str | None:
  """A correct response: text, the first of several, or the last message."""
  if isinstance(value, list) and value:
    last = value[-1]
    value = last.get('content') if isinstance(last, dict) else value[0]
  return value if isinstance(value, str) and value.strip() else None


def without_frame(text: str, row: Row) -> str:
  """A question without the instruction that DAPO-Math-17k puts around it."""
  del row
  framed = _FRAME.fullmatch(text)
  return framed.group(1) if framed else text


def in_context(text: str, row: Row) -> str:
  """A question behind the text that it refers to, where there is one."""
  context = row.value('context')
  return (
    f'{context}\n\n{text}' if isinstance(context, str) and context else text
  )


def with_declaration(text: str, row: Row) -> str:
  """A question that says what the tests call, as its own text may not."""
  about = row.value('test_info')
  declared = [
    each['function_declaration'].strip()
    for each in (about if isinstance(about, list) else ())
    if isinstance(each.get('function_declaration'), str)
  ]
  missing = [line for line in declared if line and line not in text]
  if not missing:
    return text
  return f'{text}\n\nDeclare it as:\n' + '\n'.join(missing)


def _lines(value: Any) -> str:
  """Text, or lines of it."""
  return '\n'.join(map(str, value)) if isinstance(value, list) else str(value)
