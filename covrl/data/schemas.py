# SPDX-License-Identifier: Apache-2.0
"""Dataset schemas: the columns of questions and answers in published datasets.

`SCHEMAS` lists them. A file has the first schema that its first row matches;
all other rows must then conform to it.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from covrl.data import parsers
from covrl.data.columns import Row, type_name
from covrl.data.json_text import LongNumber
from covrl.data.problems import Problem, question_key

# Texts that data frames write for a missing value.
_MISSING = frozenset(('nan', 'nat', '<na>', 'null'))

# In verl's `reward_model.style`, scores of a language model instead of a rule. Rules
# have names such as 'rule' and DAPO's 'rule-lighteval/MATH_v2'.
_JUDGED_STYLE = re.compile('model|llm|judge|rubric', re.IGNORECASE)

_PASS_RATE_COLUMNS = (
  'pass_rate',
  'solve_rate',
  'gpt_pass_percentage',
  'extra_info.pass_rate',
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema:
  """Columns of a dataset, how to parse them, and how to detect the dataset.

  Attributes:
    name: name in configurations.
    prompt_columns: possible columns of the question, as text or as a
      conversation; the first that is present is used.
    answer_columns: possible columns of the reference.
    marker_columns: further columns that a matching row must have.
    condition: predicate that the first row of a file must also meet.
    parse_reference: returns the reference, given the row and the answer column.
    parse_question: returns the bare question, given the prompt's text and the row.
    context_columns: columns that `parse_question` reads besides the prompt.
    solution_column: column of a correct response, or empty.
    kind: `Problem.kind`, or a function that returns it for a row.
  """

  name: str
  prompt_columns: tuple[str, ...]
  answer_columns: tuple[str, ...]
  marker_columns: tuple[str, ...] = ()
  condition: Callable[[Row], bool] = lambda row: True
  parse_reference: Callable[[Row, str], Any] = parsers.plain_answer
  parse_question: Callable[[str, Row], str] = lambda text, row: text
  context_columns: tuple[str, ...] = ()
  solution_column: str = ''
  kind: str | Callable[[Row], str] = 'math'

  def matches(self, row: Row) -> bool:
    """Whether a file with this first row has the schema."""
    return (
      any(map(row.has, self.prompt_columns))
      and any(map(row.has, self.answer_columns))
      and all(marker in row.columns for marker in self.marker_columns)
      and self.condition(row)
    )

  def columns(self, row: Row) -> tuple[str, ...]:
    """The columns that `parse` reads of a row; question and answer are first."""
    columns = [
      row.first_present(*self.prompt_columns),
      row.first_present(*self.answer_columns),
    ]
    if self.solution_column and row.has(self.solution_column):
      columns.append(self.solution_column)
    return tuple(dict.fromkeys(columns))

  def parse(self, row: Row, source: str) -> Problem:
    """Parses a row.

    Args:
      row: a row of a file with this schema.
      source: name of the source, unless the row has a `data_source`.

    Raises:
      ValueError: a column is missing or invalid; the message names it.
    """
    for name in (*self.columns(row), 'data_source', *self.context_columns):
      row.check_encodable(name)
    text, messages = _prompt(row, row.first_present(*self.prompt_columns))
    question = self.parse_question(text, row)
    column = row.first_present(*self.answer_columns)
    solution = row.value(self.solution_column) if self.solution_column else None
    kind = self.kind if isinstance(self.kind, str) else self.kind(row)
    return Problem(
      prompt=question,
      reference=_reference(row, column, self.parse_reference),
      source=_data_source(row) or source,
      solution=parsers.solution_text(solution),
      messages=messages,
      kind=kind,
      pass_rate=_pass_rate(row),
      key=question_key(question),
      location=row.location,
      column=column,
    )


def custom_schema(
  prompt: str, answer: str, solution: str | None = None
) -> Schema:
  """A schema of the given columns, with references of any type.

  Args:
    prompt: column of the question.
    answer: column of the reference, which is taken as it is.
    solution: column of a correct response.

  >>> schema = custom_schema('asked', 'wanted')
  >>> schema.parse(Row({'asked': '1 + 1', 'wanted': [2]}, 'row 1'), '').reference
  [2]
  """
  return Schema(
    name='columns',
    prompt_columns=(prompt,),
    answer_columns=(answer,),
    parse_reference=lambda row, column: row.value(column),
    solution_column=solution or '',
    kind='',
  )


def _is_conversation(row: Row) -> bool:
  """Whether the prompt is a list of messages."""
  return isinstance(row.value('prompt'), list)


def _is_code(row: Row) -> bool:
  """Whether a row in the format of verl is a programming problem."""
  return row.value('ability') == 'code'


def _is_dapo(row: Row) -> bool:
  """Whether a row in the format of verl is from DAPO-Math-17k."""
  return str(row.value('data_source')).startswith('math_dapo')


def _verl_kind(row: Row) -> str:
  """Kind by row: one file may mix mathematics and code, as Eurus-2-RL does."""
  if _is_code(row):
    return 'code'
  return 'math_dapo' if _is_dapo(row) else 'math'


def _verl_reference(row: Row, column: str) -> Any:
  """Reference of a row: tests of a program, or an answer; refuses rubrics."""
  style = row.value('reward_model.style')
  if isinstance(style, str) and _JUDGED_STYLE.search(style):
    raise row.error(
      'reward_model.style',
      "be 'rule', as responses are compared with the ground truth and not judged"
      ' by a model',
    )
  parse = parsers.code_tests if _is_code(row) else parsers.plain_answer
  return parse(row, column)


_VERL = Schema(
  name='verl',
  prompt_columns=('prompt',),
  answer_columns=('reward_model.ground_truth',),
  parse_reference=_verl_reference,
  parse_question=parsers.strip_dapo_instruction,
  kind=_verl_kind,
)

SCHEMAS = (
  # verl's format, and datasets that are published in it.
  dataclasses.replace(_VERL, name='Eurus-2-RL-Code', condition=_is_code),
  dataclasses.replace(_VERL, name='DAPO-Math-17k', condition=_is_dapo),
  _VERL,
  # Benchmarks; those with a worked solution have the answer in a column too.
  Schema(
    name='OlympiadBench',
    prompt_columns=('question',),
    answer_columns=('final_answer',),
    parse_reference=parsers.answer_list,
    parse_question=parsers.prepend_context,
    context_columns=('context',),
  ),
  Schema(
    name='OMNI-MATH',
    prompt_columns=('problem',),
    answer_columns=('answer',),
    marker_columns=('domain', 'difficulty'),
    solution_column='solution',
  ),
  Schema(
    name='MATH-500',
    prompt_columns=('problem',),
    answer_columns=('answer',),
    marker_columns=('subject', 'unique_id'),
    solution_column='solution',
  ),
  Schema(
    name='AMC',
    prompt_columns=('problem', 'question'),
    answer_columns=('answer',),
    marker_columns=('url',),
    condition=lambda row: 'AMC' in str(row.value('url')),
  ),
  Schema(
    name='AIME',
    prompt_columns=('problem', 'Problem'),
    answer_columns=('answer', 'Answer'),
    condition=lambda row: (
      row.has('year') or row.has('Answer') or 'AIME' in str(row.value('url'))
    ),
    solution_column='solution',
  ),
  Schema(
    name='Minerva',
    prompt_columns=('problem',),
    answer_columns=('solution',),
    marker_columns=('type', 'idx'),
    parse_reference=parsers.boxed_answer,
    solution_column='solution',
  ),
  # Code, and datasets that are detected by the format of their answers.
  Schema(
    name='KodCode',
    prompt_columns=('question',),
    answer_columns=('test',),
    marker_columns=('test_info',),
    parse_reference=parsers.assert_suite,
    parse_question=parsers.append_declaration,
    context_columns=('test_info',),
    solution_column='solution',
    kind='code',
  ),
  Schema(
    name='GSM8K',
    prompt_columns=('question',),
    answer_columns=('answer',),
    condition=lambda row: '####' in str(row.value('answer')),
    parse_reference=parsers.gsm8k_answer,
    solution_column='answer',
  ),
  Schema(
    name='MATH',
    prompt_columns=('problem',),
    answer_columns=('solution',),
    condition=lambda row: (
      not row.has('answer')
      and any(
        box in str(row.value('solution')) for box in ('\\boxed', '\\fbox')
      )
    ),
    parse_reference=parsers.boxed_answer,
    solution_column='solution',
  ),
  Schema(
    name='TRL',
    prompt_columns=('prompt',),
    answer_columns=('answer', 'solution', 'ground_truth', 'label'),
    condition=_is_conversation,
    solution_column='completion',
  ),
  Schema(
    name='plain',
    prompt_columns=('question', 'problem', 'prompt'),
    answer_columns=('answer', 'solution'),
    solution_column='solution',
  ),
)


def detect_schema(row: Row) -> Schema:
  """The schema of a file, from its first row.

  Raises:
    ValueError: the row matches no schema.
  """
  for schema in SCHEMAS:
    if schema.matches(row):
      return schema
  raise ValueError(
    f'{row.location} must have the columns of a schema'
    f' ({_schema_names()}), such as'
    f" 'question' and 'answer', got {', '.join(map(repr, row.columns))}"
  )


def schema_by_name(name: str) -> Schema:
  """The schema with a name, in any case.

  Raises:
    ValueError: there is no schema of this name.

  >>> schema_by_name('gsm8k').name
  'GSM8K'
  """
  for schema in SCHEMAS:
    if schema.name.lower() == name.lower():
      return schema
  raise ValueError(f'a schema must be one of {_schema_names()}, got {name!r}')


def _schema_names() -> str:
  return ', '.join(schema.name for schema in SCHEMAS)


def _prompt(row: Row, column: str) -> tuple[str, tuple[Mapping[str, Any], ...]]:
  """The last user message, and the conversation if the column holds one."""
  value = row.value(column)
  if not isinstance(value, list):
    return row.text(column), ()
  for message in value:
    fields = message if isinstance(message, Mapping) else {}
    if not all(isinstance(fields.get(k), str) for k in ('role', 'content')):
      raise row.error(
        column, 'be messages that each have a role and a content of text'
      )
  questions = [message for message in value if message['role'] == 'user']
  if not questions or not questions[-1]['content'].strip():
    raise row.error(
      column, 'be a conversation with a user message that is not empty'
    )
  if value[-1]['role'] == 'assistant':
    # It may hold the answer.
    raise row.error(column, 'be a conversation that ends before a response')
  messages = tuple({k: m[k] for k in ('role', 'content')} for m in value)
  return questions[-1]['content'], messages


def _data_source(row: Row) -> str:
  """The row's own `data_source`, empty without one."""
  value = row.value('data_source')
  if not isinstance(value, str | None):
    raise row.error('data_source', 'hold text')
  return value or ''


def _reference(row: Row, column: str, parse: Callable[[Row, str], Any]) -> Any:
  """The parsed reference; refuses marks of missing values, such as 'nan'."""
  reference = parse(row, column)
  if isinstance(reference, str) and reference.lower() in _MISSING:
    raise row.error(column, 'hold an answer')
  if isinstance(reference, float) and not math.isfinite(reference):
    raise row.error(column, 'hold a finite number')
  if _has_long_number(row.value(column)):
    raise row.error(column, 'hold text where a number has over 17 digits')
  try:
    json.dumps(reference)
  except (TypeError, ValueError, RecursionError):
    raise row.error(column, 'hold text, numbers, lists or objects') from None
  return reference


def _has_long_number(value: Any) -> bool:
  """Whether a value, or one in it, is a number that has lost digits."""
  if isinstance(value, Mapping):
    value = [*value.values()]
  if isinstance(value, list):
    return any(map(_has_long_number, value))
  return isinstance(value, LongNumber)


def _pass_rate(row: Row) -> float | None:
  """Pass rate in the first column for one that is present, if any."""
  for column in _PASS_RATE_COLUMNS:
    value = row.value(column)
    if value is None:
      continue
    if type_name(value) != 'a number' or not 0 <= value <= 1:
      raise row.error(column, 'be a fraction from 0 to 1')
    return float(value)
  return None
