# SPDX-License-Identifier: Apache-2.0
"""Tests of parts of questions in columns that no schema reads."""

import json
import pathlib

import pytest

from covrl.data import FileSource, custom_schema, load_suites
from covrl.data.unread_columns import QUESTION_PARTS

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
PLAIN = {'question': 'Which city is it?', 'answer': 'B'}
USER = {'role': 'user', 'content': 'Which city is it?'}
TRL = {'prompt': [USER], 'answer': 'B'}
VERL = {
  'data_source': 'cities',
  'prompt': [USER],
  'ability': 'math',
  'reward_model': {'style': 'rule', 'ground_truth': 'B'},
  'extra_info': {'index': 3, 'split': 'train', 'question': 'Which?'},
}
CHOICES = ['Rome', 'Paris', 'Oslo', 'Bern']


def warnings_of(*rows, tmp_path, schema=None):
  """Warnings on a file of these rows, with FILE for its path."""
  file = tmp_path / 'a.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)))
  source = FileSource(file, schema=schema)
  return [text.replace(str(file), 'FILE') for text in source.warnings]


@pytest.mark.parametrize(
  ('row', 'parts'),
  [
    (PLAIN | {'choices': CHOICES}, "'choices'"),
    (PLAIN | {'options': {'A': 'Rome', 'B': 'Paris'}}, "'options'"),
    (PLAIN | {'opa': 'a', 'opb': 'b', 'opc': 'c'}, "'opa', 'opb', 'opc'"),
    (PLAIN | {'A': 'Rome', 'B': 'Paris'}, "'A', 'B'"),
    (PLAIN | {'option_a': 'Rome', 'Choice2': 'x'}, "'Choice2', 'option_a'"),
    (PLAIN | {'context': 'It has a tower.'}, "'context'"),
    (PLAIN | {'Passage': 'It has a tower.'}, "'Passage'"),
    (PLAIN | {'table': [['city', 'country']]}, "'table'"),
    (PLAIN | {'input': 'Paris, Rome'}, "'input'"),
    (PLAIN | {'system': 'Answer in French.'}, "'system'"),
    (TRL | {'tools': [{'function': {'name': 'map'}}]}, "'tools'"),
    (VERL | {'images': [{'path': 'a.png'}]}, "'images'"),
    (PLAIN | {'image_1': 'a.png'}, "'image_1'"),
    # The schema of OlympiadBench reads text only.
    (
      {'question': 'Which?', 'final_answer': ['1'], 'context': ['A tower.']},
      "'context'",
    ),
    (TRL | {'prompt': [USER | {'images': [1]}]}, "'images' of messages"),
    (
      TRL
      | {
        'prompt': [
          USER,
          {'role': 'assistant', 'content': '', 'tool_calls': [{'name': 'f'}]},
          {'role': 'tool', 'content': '3', 'tool_call_id': 'x', 'name': 'f'},
        ]
      },
      "'tool_calls' of messages",
    ),
    (PLAIN | {'question': '<image>Which?'}, 'what is at <image>'),
    (PLAIN | {'question': 'See <image 1>.'}, 'what is at <image>'),
    (PLAIN | {'question': 'See ![map](https://a.b/c)'}, 'what is at ![…](…)'),
    (PLAIN | {'question': 'See <img src="a.png">'}, 'what is at <img …>'),
    (
      VERL | {'prompt': [USER | {'content': '<image>?'}], 'images': ['a.png']},
      "'images', what is at <image>",
    ),
  ],
)
def test_parts_of_questions_that_no_schema_reads_are_counted(
  row, parts, tmp_path
):
  (warning,) = warnings_of(row, row, tmp_path=tmp_path)
  assert warning.startswith(
    '2 of 2 rows have what usually is a part of the question and the schema '
  )
  assert warning.endswith(
    f' does not read: {parts} in 2 (first: row 1 of FILE)'
  )


def test_rows_are_counted_for_each_column(tmp_path):
  rows = [
    PLAIN,
    PLAIN | {'choices': CHOICES},
    PLAIN | {'context': 'A tower.', 'choices': CHOICES},
    PLAIN | {'context': None, 'choices': CHOICES},
  ]
  assert warnings_of(*rows, tmp_path=tmp_path) == [
    '3 of 4 rows have what usually is a part of the question and the schema plain'
    " does not read: 'choices' in 3 (first: row 2 of FILE), 'context' in 1 (first:"
    ' row 3 of FILE)'
  ]


def test_usual_columns_are_not_reported(tmp_path):
  names = (
    *('id', 'source', 'level', 'subject', 'split', 'data_source', 'type'),
    *('solution', 'unit', 'domain', 'url', 'generations', 'a', 'options_count'),
  )
  row = PLAIN | dict.fromkeys(names, 'x') | {'extra_info': {'choices': [1]}}
  assert warnings_of(row, tmp_path=tmp_path) == []
  assert warnings_of(VERL, VERL, tmp_path=tmp_path) == []
  files = [path for path in GOLDEN.rglob('*.*') if path.is_file()]
  assert len(files) > 10
  assert all(FileSource(file).warnings == [] for file in files)


def test_empty_columns_and_those_that_the_question_holds_are_not_reported(
  tmp_path,
):
  empty = None, '', ' ', [], {}, {'A': None}, [''], False, float('nan')
  row = PLAIN | {'question': 'Name a city'}
  rows = [row | {'options': value} for value in empty]
  assert warnings_of(*rows, tmp_path=tmp_path) == []
  question = 'Which is right?\n(A)  4 km (B) 15 km'
  for options in (['4 km', '15  km'], {'A': 4, 'B': 15}, ' (A) 4 km (B) 15 km'):
    row = {'question': question, 'answer': 'B', 'options': options}
    assert warnings_of(row, tmp_path=tmp_path) == []
  row |= {'options': ['4', '5']}  # 5 is a part of 15.
  assert len(warnings_of(row, tmp_path=tmp_path)) == 1
  messages = [{'role': 'system', 'content': 'Be brief.'}, USER]
  row = TRL | {'prompt': messages, 'system': 'Be brief.'}
  assert warnings_of(row, tmp_path=tmp_path) == []


def test_columns_that_a_schema_reads_are_not_reported(tmp_path):
  row = {'input': 'Which city is it?', 'options': 'Rome', 'context': 'A tower.'}
  for columns in (
    ('input', 'options', 'context'),
    ('context', 'input', 'options'),
  ):
    schema = custom_schema(*columns)
    assert warnings_of(row, schema=schema, tmp_path=tmp_path) == []
  schema = custom_schema('input', 'options')
  (warning,) = warnings_of(row, schema=schema, tmp_path=tmp_path)
  assert "the schema columns does not read: 'context' in 1" in warning
  row = {'question': 'q', 'final_answer': ['1'], 'context': 'A tower.'}
  assert warnings_of(row, tmp_path=tmp_path) == []


def test_suites_have_the_warnings_of_their_files(tmp_path):
  file = tmp_path / 'mine.jsonl'
  file.write_text(json.dumps(PLAIN | {'choices': CHOICES}))
  (suite,) = load_suites(str(file), tmp_path)
  (warning,) = suite.warnings
  assert "'choices' in 1 (first: row 1 of " in warning


def test_names_of_parts_are_different_and_in_lower_case():
  assert len(set(QUESTION_PARTS)) == len(QUESTION_PARTS)
  assert all(name == name.casefold() for name in QUESTION_PARTS)
