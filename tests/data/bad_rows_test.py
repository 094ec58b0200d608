# SPDX-License-Identifier: Apache-2.0
"""Missing, impossible and malformed values are refused with file and row."""

import json
import math
import os

import pyarrow
import pyarrow.parquet
import pytest

from covrl.data import (
  CountdownConfig,
  FileSource,
  ListSource,
  Problem,
  PromptStream,
  countdown_tokenizer,
  custom_schema,
  open_records,
)

GOOD = {'question': 'q', 'answer': '1'}
VERL = {
  'prompt': [{'role': 'user', 'content': 'q'}],
  'ability': 'math',
  'reward_model': {'ground_truth': '1'},
}


def error_of(tmp_path, *lines, schema=None):
  """The error of a file whose last line is invalid; it must name file and row.

  Lines are objects, or bytes as they are.
  """
  file = tmp_path / 'a.jsonl'
  text = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
  file.write_bytes(b'\n'.join(text))
  with pytest.raises(ValueError) as caught:
    FileSource(file, schema=schema)
  message = str(caught.value)
  assert f'row {len(lines)} of {file}' in message.replace('Row', 'row')
  assert '\n' not in message
  return message


@pytest.mark.parametrize('value', [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
  'row',
  [
    {'question': 'q'},
    {'problem': 'q', 'subject': 's', 'unique_id': 'u'},
    {'prompt': [{'role': 'user', 'content': 'q'}]},
  ],
)
def test_refuses_answers_that_are_not_finite(value, row, tmp_path):
  rows = row | {'answer': 1.0}, row | {'answer': value}
  message = error_of(tmp_path, *rows)
  assert "column 'answer'" in message
  assert f"must hold text or a finite number, got '{value}'" in message


@pytest.mark.parametrize('text', ['nan', 'NaN', '<NA>', 'null', ' NaT '])
def test_refuses_answers_that_are_words_for_missing_values(text, tmp_path):
  message = error_of(tmp_path, GOOD, GOOD | {'answer': text})
  assert 'must hold an answer, got' in message
  verl = VERL | {'reward_model': {'ground_truth': text}}
  assert 'must hold an answer' in error_of(tmp_path, VERL, verl)


def test_words_that_only_look_missing_are_answers(tmp_path):
  file = tmp_path / 'a.jsonl'
  rows = [GOOD | {'answer': text} for text in ('None', 'no', 'n', '0')]
  file.write_text('\n'.join(map(json.dumps, rows)))
  assert [p.reference for p in FileSource(file)] == ['None', 'no', 'n', '0']


def test_refuses_missing_numbers_of_data_frames(tmp_path):
  file = tmp_path / 'a.parquet'
  table = pyarrow.table({'question': ['q', 'r'], 'answer': [1.0, math.nan]})
  pyarrow.parquet.write_table(table, file)
  with pytest.raises(ValueError) as caught:
    FileSource(file)
  assert str(caught.value) == (
    f"column 'answer' of row 1 of {file} must hold text or a finite number,"
    " got 'nan'"
  )


def test_references_of_custom_schemas_must_be_finite_json(tmp_path):
  schema = custom_schema('question', 'answer')
  row = GOOD | {'answer': math.nan}
  assert 'finite number' in error_of(tmp_path, row, schema=schema)
  file = tmp_path / 'a.parquet'
  table = pyarrow.table({'question': ['q'], 'answer': [b'x']})
  pyarrow.parquet.write_table(table, file)
  with pytest.raises(ValueError, match=r'row 0 of .* must hold text, .* bytes'):
    FileSource(file, schema=schema)


def test_a_solution_does_not_replace_a_missing_answer(tmp_path):
  row = GOOD | {'solution': 'We add.'}
  message = error_of(tmp_path, row, row | {'answer': None})
  assert message.startswith(
    "the answers of a file must be in one column, got 'answer' in row 1"
  )
  other = {'problem': 'q', 'question': None, 'answer': '1'}
  assert 'questions of a file' in error_of(tmp_path, GOOD, other)


@pytest.mark.parametrize(
  'row',
  [
    {'question': 'q \ud800'},
    {'answer': '\udfff'},
    {'data_source': '\ud800'},
    {'solution': 'x\ud83d'},
  ],
)
def test_lone_surrogates_are_refused_with_row_and_column(row, tmp_path):
  (column,) = row
  message = error_of(tmp_path, GOOD, GOOD | row)
  assert message.startswith(f'column {column!r} of row 2 of ')
  assert 'valid Unicode without the lone surrogate' in message


def test_lone_surrogates_in_messages_and_bytes_are_refused(tmp_path):
  messages = [{'role': 'user', 'content': '\ud800'}]
  assert 'Unicode' in error_of(tmp_path, VERL, VERL | {'prompt': messages})
  line = b'{"question": "\xed\xa0\x80", "answer": "1"}'
  assert 'Unicode' in error_of(tmp_path, GOOD, line)
  with pytest.raises(ValueError, match='the prompt must be valid Unicode'):
    next(
      PromptStream(
        ListSource([Problem(prompt='\udc80', reference='', source='s')]),
        seed=0,
        prompts_per_draw=1,
        tokenizer=countdown_tokenizer(CountdownConfig()),
        max_prompt_length=8,
        prefetch=0,
      )
    )


@pytest.mark.parametrize(
  'line',
  [
    b'{',
    b'\xff',
    b'[' * 100_000,
    b'{"question": "q", "answer": ' + b'[' * 100_000,
    b'{"question": "q", "answer": ' + b'1' * 5000 + b'}',
    b'3',
    b'null',
    b'["question"]',
    b'{"question": "q", "answer": "1", "answer": "2"}',
    b'{"question": "q"}',
    b'{"question": "q", "answer": "1", "data_source": 5}',
    b'{"question": "q", "answer": {"a": 1}}',
    b'\x00',
    b'{"question": "q", "answer": "1"} {}',
  ],
)
def test_malformed_lines_are_refused_with_their_row(line, tmp_path):
  error_of(tmp_path, GOOD, line)


@pytest.mark.parametrize(
  'answer', ['\frac{1}{2}', '\text{a}', '\x07lpha', '2\times 3', 'x\neq 1']
)
def test_refuses_answers_with_broken_backslashes(answer, tmp_path):
  message = error_of(tmp_path, GOOD, GOOD | {'answer': answer})
  assert 'backslashes are doubled in JSON' in message
  boxed = {'problem': 'q', 'solution': '\\boxed{1}'}
  broken = boxed | {'solution': f'\\boxed{{{answer}}}'}
  assert 'backslashes' in error_of(tmp_path, boxed, broken)


@pytest.mark.parametrize(
  'answer', [5.0, {}, [], [5], [' '], ['$$'], ['1', ''], ['\frac12']]
)
def test_refuses_lists_of_answers_without_text(answer, tmp_path):
  error_of(tmp_path, {'question': 'q', 'final_answer': answer})


@pytest.mark.parametrize(
  'tests',
  [
    {'inputs': '12', 'outputs': '34'},
    {'inputs': ['1'], 'outputs': [None]},
    {'inputs': [{'a': 1}], 'outputs': ['1']},
    {'inputs': [['1', None]], 'outputs': ['1']},
    {'fn_name': 3, 'inputs': [[1]], 'outputs': [1]},
  ],
)
def test_refuses_code_tests_whose_inputs_or_outputs_are_not_text(
  tests, tmp_path
):
  truth = {'ground_truth': json.dumps(tests)}
  row = VERL | {'ability': 'code', 'reward_model': truth}
  assert "'reward_model.ground_truth'" in error_of(tmp_path, row)


def test_declarations_of_kodcode_may_be_absent(tmp_path):
  file = tmp_path / 'a.jsonl'
  row = {'question': 'q', 'test': 'assert 1', 'test_info': [None, {}, 'x']}
  file.write_text(json.dumps(row))
  assert FileSource(file)[0].prompt == 'q'


@pytest.mark.parametrize('style', ['model', 'LLM', 'llm_judge', 'rubric'])
@pytest.mark.parametrize('ability', ['math', 'code', 'writing'])
def test_refuses_ground_truth_for_a_judge(style, ability, tmp_path):
  def row(style):
    truth = '{"inputs": ["1"], "outputs": ["2"]}'
    model = {'style': style, 'ground_truth': truth}
    return VERL | {'ability': ability, 'reward_model': model}

  rows = [row(style) for style in ('rule', 'rule-lighteval/MATH_v2', None, 3)]
  message = error_of(tmp_path, *rows, row(style))
  assert message.startswith("column 'reward_model.style' of row 5 of ")
  assert message.endswith(
    " must be 'rule', as responses are compared with the ground truth and not"
    f' judged by a model, got {style!r}'
  )


def test_text_of_parquet_files_must_be_utf8(tmp_path):
  file = tmp_path / 'a.parquet'
  texts = pyarrow.array([b'q'] * 1500 + [b'\xff'], pyarrow.binary())
  texts = pyarrow.Array.from_buffers(
    pyarrow.string(), len(texts), texts.buffers()
  )
  answers = pyarrow.array(['1'] * len(texts))
  pyarrow.parquet.write_table(
    pyarrow.table({'question': texts, 'answer': answers}), file
  )
  with pytest.raises(ValueError, match=r'^row 1500 of .* must hold valid') as e:
    FileSource(file)
  assert '\n' not in str(e.value)
  assert open_records(file)[0] == GOOD


@pytest.mark.parametrize('suffix', ['jsonl', 'parquet', 'array_record'])
def test_refuses_pipes_and_directories_of_problems(suffix, tmp_path):
  pipe = tmp_path / f'a.{suffix}'
  os.mkfifo(pipe)
  folder = tmp_path / f'b.{suffix}'
  folder.mkdir()
  for path in (pipe, folder):
    with pytest.raises(ValueError, match=f'{path} must be a file of problems'):
      FileSource(path)


@pytest.mark.parametrize('suffix', ['parquet', 'array_record'])
@pytest.mark.parametrize(
  'content', [b'', b'PAR1', b'PAR1' + b'\x00' * 80 + b'PAR1', b'x' * 70_000]
)
def test_damaged_files_are_refused_with_their_name(suffix, content, tmp_path):
  file = tmp_path / f'a.{suffix}'
  file.write_bytes(content)
  with pytest.raises(ValueError) as caught:
    FileSource(file)
  assert str(file) in str(caught.value)
  assert '\n' not in str(caught.value)
