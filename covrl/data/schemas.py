# SPDX-License-Identifier: Apache-2.0
"""Columns as people publish them: which hold the question, which the answer.

`LAYOUTS` is the table. A file's layout is the first whose columns its first row
has and whose sign it shows; every row must then be of it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from covrl.data import parsers
from covrl.data.columns import Row, kind_of
from covrl.data.problems import Problem

# Where somebody's measured share of right responses may stand.
_PASS_RATES = (
  'pass_rate',
  'solve_rate',
  'gpt_pass_percentage',
  'extra_info.pass_rate',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """Which columns of a row hold what, and what tells them.

  Attributes:
    name: as users call it.
    prompt: columns that may hold the question, as text or as a conversation;
      the first that is there does.
    answer: columns that may hold the reference.
    marks: other columns that it is told by.
    sign: what else must be true of a first row.
    reference: from the answer column's name and the row to what a scorer needs.
    question: from the prompt's text to the bare question.
    solution: column of a correct response, if there may be one.
    kind: of the problems; or from a row to its kind.
  """

  name: str
  prompt: tuple[str, ...]
  answer: tuple[str, ...]
  marks: tuple[str, ...] = ()
  sign: Callable[[Row], bool] = lambda row: True
  reference: Callable[[Row, str], Any] = parsers.stated
  question: Callable[[str, Row], str] = lambda text, row: text
  solution: str = ''
  kind: str | Callable[[Row], str] = 'math'

  def recognises(self, row: Row) -> bool:
    """Whether a file that begins with this row is of this layout."""
    return (
      any(map(row.has, self.prompt))
      and any(map(row.has, self.answer))
      and all(mark in row.columns for mark in self.marks)
      and self.sign(row)
    )

  def columns(self, row: Row) -> tuple[str, ...]:
    """The columns that a row's problem is read from."""
    read = [row.column(*self.prompt), row.column(*self.answer)]
    if self.solution and row.has(self.solution):
      read.append(self.solution)
    return tuple(dict.fromkeys(read))

  def problem(self, row: Row, source: str) -> Problem:
    """The problem of a row.

    Args:
      row: of a file of this layout.
      source: the name of the source, where the row does not say its own.

    Raises:
      ValueError: a column is missing or holds something else; the sentence
        names it.
    """
    text, messages = _prompt(row, row.column(*self.prompt))
    question = self.question(text, row)
    column = row.column(*self.answer)
    solution = row.value(self.solution) if self.solution else None
    own = row.value('data_source')
    kind = self.kind if isinstance(self.kind, str) else self.kind(row)
    return Problem(
      prompt=question,
      reference=self.reference(row, column),
      source=own if isinstance(own, str) and own else source,
      solution=parsers.solution(solution),
      messages=messages,
      kind=kind,
      pass_rate=_pass_rate(row),
      key=key_of(question),
      place=row.place,
      column=column,
    )


def plain_columns(
  prompt: str, answer: str, solution: str | None = None
) -> Layout:
  """A layout of one's own: the columns' names, and any reference at all.

  >>> layout = plain_columns('asked', 'wanted')
  >>> layout.problem(Row({'asked': '1 + 1', 'wanted': [2]}, 'row 1'), '').reference
  [2]
  """
  return Layout(
    name='columns',
    prompt=(prompt,),
    answer=(answer,),
    reference=lambda row, column: row.value(column),
    solution=solution or '',
    kind='',
  )


def _is_conversation(row: Row) -> bool:
  return isinstance(row.value('prompt'), list)


def _is_code(row: Row) -> bool:
  return row.value('ability') == 'code'


def _is_dapo(row: Row) -> bool:
  return str(row.value('data_source')).startswith('math_dapo')


def _verl_kind(row: Row) -> str:
  """One file may hold several kinds: Eurus-2-RL has maths and code."""
  if _is_code(row):
    return 'code'
  return 'math_dapo' if _is_dapo(row) else 'math'


def _verl_reference(row: Row, column: str) -> Any:
  read = parsers.code_tests if _is_code(row) else parsers.stated
  return read(row, column)


_VERL = Layout(
  name='verl',
  prompt=('prompt',),
  answer=('reward_model.ground_truth',),
  reference=_verl_reference,
  question=parsers.without_frame,
  kind=_verl_kind,
)

LAYOUTS = (
  # verl's, and the sets that are published in it.
  dataclasses.replace(_VERL, name='Eurus-2-RL-Code', sign=_is_code),
  dataclasses.replace(_VERL, name='DAPO-Math-17k', sign=_is_dapo),
  _VERL,
  # Benchmarks; those with a worked solution say the answer beside it.
  Layout(
    name='OlympiadBench',
    prompt=('question',),
    answer=('final_answer',),
    reference=parsers.listed,
    question=parsers.in_context,
  ),
  Layout(
    name='OMNI-MATH',
    prompt=('problem',),
    answer=('answer',),
    marks=('domain', 'difficulty'),
    solution='solution',
  ),
  Layout(
    name='MATH-500',
    prompt=('problem',),
    answer=('answer',),
    marks=('subject', 'unique_id'),
    solution='solution',
  ),
  Layout(
    name='AMC',
    prompt=('problem', 'question'),
    answer=('answer',),
    marks=('url',),
    sign=lambda row: 'AMC' in str(row.value('url')),
  ),
  Layout(
    name='AIME',
    prompt=('problem', 'Problem'),
    answer=('answer', 'Answer'),
    sign=lambda row: (
      row.has('year') or row.has('Answer') or 'AIME' in str(row.value('url'))
    ),
    solution='solution',
  ),
  Layout(
    name='Minerva',
    prompt=('problem',),
    answer=('solution',),
    marks=('type', 'idx'),
    reference=parsers.boxed,
    solution='solution',
  ),
  # Code, and what is told by the form of its answers.
  Layout(
    name='KodCode',
    prompt=('question',),
    answer=('test',),
    marks=('test_info',),
    reference=parsers.assert_suite,
    question=parsers.with_declaration,
    solution='solution',
    kind='code',
  ),
  Layout(
    name='GSM8K',
    prompt=('question',),
    answer=('answer',),
    sign=lambda row: '####' in str(row.value('answer')),
    reference=parsers.behind_hashes,
    solution='answer',
  ),
  Layout(
    name='MATH',
    prompt=('problem',),
    answer=('solution',),
    sign=lambda row: (
      not row.has('answer') and '\\boxed' in str(row.value('solution'))
    ),
    reference=parsers.boxed,
    solution='solution',
  ),
  Layout(
    name='TRL',
    prompt=('prompt',),
    answer=('answer', 'solution', 'ground_truth', 'label'),
    sign=_is_conversation,
    solution='completion',
  ),
  Layout(
    name='plain',
    prompt=('question', 'problem', 'prompt'),
    answer=('answer', 'solution'),
    solution='solution',
  ),
)


def layout_of(row: Row) -> Layout:
  """The layout of a file that begins with this row.

  Raises:
    ValueError: it is of none.
  """
  for layout in LAYOUTS:
    if layout.recognises(row):
      return layout
  raise ValueError(
    f'{row.place[0].upper()}{row.place[1:]} must have columns of a known'
    f' layout ({", ".join(layout.name for layout in LAYOUTS)}), such as'
    f" 'question' and 'answer', got {', '.join(map(repr, row.columns))}."
  )


def layout_named(name: str) -> Layout:
  """A layout by its name.

  Raises:
    ValueError: there is none of this name.

  >>> layout_named('gsm8k').name
  'GSM8K'
  """
  for layout in LAYOUTS:
    if layout.name.lower() == name.lower():
      return layout
  raise ValueError(
    f'A layout must be one of {", ".join(layout.name for layout in LAYOUTS)},'
    f' got {name!r}.'
  )


def key_of(question: str) -> str:
  """What tells a question from others: a digest of its words.

  >>> key_of('What is  $x$?') == key_of('what is $x$?')
  True
  """
  text = ' '.join(question.lower().split())
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _prompt(row: Row, column: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
  """The last question's text, and the conversation if it is one."""
  value = row.value(column)
  if not isinstance(value, list):
    return row.text(column), ()
  for message in value:
    fields = message if isinstance(message, Mapping) else {}
    if not all(isinstance(fields.get(k), str) for k in ('role', 'content')):
      raise row.refusal(
        column, 'be messages that each have a role and a content of text'
      )
  asked = [message for message in value if message['role'] == 'user']
  if not asked:
    raise row.refusal(column, 'be a conversation with a message of the user')
  messages = tuple({k: m[k] for k in ('role', 'content')} for m in value)
  return asked[-1]['content'], messages


def _pass_rate(row: Row) -> float | None:
  for column in _PASS_RATES:
    value = row.value(column)
    if value is None:
      continue
    if kind_of(value) != 'a number' or not 0 <= value <= 1:
      raise row.refusal(column, 'be a share from 0 to 1')
    return float(value)
  return None
