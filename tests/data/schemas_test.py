# SPDX-License-Identifier: Apache-2.0
"""Tests of dataset schemas: detection, parsing and error messages."""

import json
import pathlib
import re

import pytest

from covrl.data import SCHEMAS, FileSource, Problem, question_key
from covrl.data.columns import Row
from covrl.data.parsers import boxed_answer
from covrl.data.schemas import custom_schema, schema_by_name

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'data'
FILES = {
  'plain.jsonl': 'plain',
  'math.jsonl': 'MATH',
  'verl.parquet': 'verl',
  'dapo_math_17k.parquet': 'DAPO-Math-17k',
  'trl.jsonl': 'TRL',
  'eurus_2_rl_code.parquet': 'Eurus-2-RL-Code',
  'kodcode.jsonl': 'KodCode',
  'suites/math500.jsonl': 'MATH-500',
  'suites/aime24.jsonl': 'AIME',
  'suites/aime25.jsonl': 'AIME',
  'suites/amc.jsonl': 'AMC',
  'suites/omni_math.jsonl': 'OMNI-MATH',
  'suites/olympiadbench.jsonl': 'OlympiadBench',
  'suites/minerva.jsonl': 'Minerva',
  'suites/gsm8k.jsonl': 'GSM8K',
}


def read(*rows, schema=None, tmp_path):
  """The source of a file of these rows, and its problems."""
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  source = FileSource(path, schema=schema)
  return source, [source[n] for n in range(len(source))]


def error_of(*rows, tmp_path, schema=None):
  """The error of a file of these rows, with FILE for its path."""
  with pytest.raises(ValueError) as caught:
    read(*rows, schema=schema, tmp_path=tmp_path)
  return str(caught.value).replace(str(tmp_path / 'rows.jsonl'), 'FILE')


def test_every_schema_has_a_fixture():
  assert {schema.name for schema in SCHEMAS} == set(FILES.values())
  present = GOLDEN.rglob('*.*')
  assert {str(path.relative_to(GOLDEN)) for path in present} == set(FILES)


@pytest.mark.parametrize(('file', 'name'), FILES.items())
def test_detects_schemas(file, name):
  source = FileSource(GOLDEN / file)
  assert source.schema.name == name
  problems = [source[n] for n in range(len(source))]
  for problem in problems:
    assert isinstance(problem, Problem)
    assert problem.prompt.strip()
    assert problem.reference
    assert problem.source in source.names
    assert problem.key == question_key(problem.prompt)
    assert problem.location.endswith(f'of {GOLDEN / file}')


@pytest.mark.parametrize(
  ('file', 'reference'),
  [
    ('plain.jsonl', '17'),
    ('math.jsonl', r'\frac{2}{3}'),
    ('verl.parquet', '17'),
    ('dapo_math_17k.parquet', '6'),
    ('trl.jsonl', r'\frac{2}{3}'),
    ('suites/math500.jsonl', r'\frac{2}{3}'),
    ('suites/aime24.jsonl', '25'),
    ('suites/amc.jsonl', '4'),
    ('suites/omni_math.jsonl', '5'),
    ('suites/olympiadbench.jsonl', '2, -2'),
    ('suites/minerva.jsonl', '0.5'),
    ('suites/gsm8k.jsonl', '16966'),
  ],
)
def test_parses_references(file, reference):
  assert FileSource(GOLDEN / file)[0].reference == reference


def test_verl_rows_have_sources_pass_rates_and_messages():
  source = FileSource(GOLDEN / 'verl.parquet')
  assert source.names == ('gardens',)
  assert [source[n].pass_rate for n in range(5)] == [0, 0.25, 0.5, 0.75, 1]
  assert source[0].messages == ({'role': 'user', 'content': source[0].prompt},)


def test_dapo_questions_have_their_instruction_in_the_messages_alone():
  problem = FileSource(GOLDEN / 'dapo_math_17k.parquet')[0]
  assert problem.prompt.startswith('How many positive divisors')
  assert problem.prompt.endswith('itself?')
  content = problem.messages[-1]['content']
  assert content.startswith('Solve the following math problem step by step.')
  assert problem.kind == 'math_dapo'


def test_verl_files_may_mix_mathematics_and_code(tmp_path):
  def row(ability, truth):
    return {
      'data_source': f'numina_{ability}',
      'prompt': [
        {'role': 'system', 'content': 'Think.'},
        {'role': 'user', 'content': 'Q'},
      ],
      'ability': ability,
      'reward_model': {'ground_truth': truth},
    }

  tests = json.dumps({'inputs': ['1'], 'outputs': ['2']})
  source, problems = read(
    row('math', '4'), row('code', tests), tmp_path=tmp_path
  )
  assert source.schema.name == 'verl'
  assert [problem.kind for problem in problems] == ['math', 'code']
  assert problems[1].reference == [{'stdin': '1', 'stdout': '2'}]
  assert len(problems[1].messages) == 2


def test_eurus_tests_use_standard_input_or_calls():
  programs = FileSource(GOLDEN / 'eurus_2_rl_code.parquet')
  assert programs.names == ('codecontests', 'taco')
  assert programs[0].reference[1] == {
    'stdin': '30 12\n',
    'stdout': '42\n',
  }
  assert programs[1].reference == [
    {'call': 'halves', 'args': [[2, 4]], 'result': [1, 2]},
    {'call': 'halves', 'args': [[10]], 'result': [5]},
  ]


@pytest.mark.parametrize(
  ('outputs', 'results'),
  [
    ([[1], [2]], [1, 2]),
    ([[1], [2, 3]], [[1], [2, 3]]),
    ([1, 2], [1, 2]),
    ([[], [2]], [[], [2]]),
  ],
)
def test_unwraps_results_if_all_are_wrapped(outputs, results, tmp_path):
  truth = {'fn_name': 'f', 'inputs': [[0], [1]], 'outputs': outputs}
  row = {
    'prompt': [{'role': 'user', 'content': 'q'}],
    'ability': 'code',
    'reward_model': {'ground_truth': json.dumps(truth)},
  }
  _, (problem,) = read(row, tmp_path=tmp_path)
  assert [test['result'] for test in problem.reference] == results


def test_kodcode_prompts_have_the_declaration():
  problem = FileSource(GOLDEN / 'kodcode.jsonl')[0]
  assert problem.prompt.endswith('Declare it as:\ndef reads_back(word):')
  assert 'from solution import' in problem.reference[0]['asserts']
  assert problem.solution is not None
  assert problem.pass_rate == 0.9


@pytest.mark.parametrize(
  ('row', 'schema'),
  [
    ({'question': 'q', 'answer': 'a'}, 'plain'),
    ({'problem': 'q', 'answer': 'a'}, 'plain'),
    ({'prompt': 'q', 'solution': 'a'}, 'plain'),
    ({'problem': 'q', 'solution': r's \boxed{1}'}, 'MATH'),
    ({'problem': 'q', 'solution': r's \fbox{1}'}, 'MATH'),
    ({'problem': 'q', 'solution': r's \boxed{1}', 'answer': '1'}, 'plain'),
    ({'question': 'q', 'answer': 's\n#### 1'}, 'GSM8K'),
    ({'Problem': 'q', 'Solution': 's', 'Answer': 3}, 'AIME'),
    ({'prompt': [{'role': 'user', 'content': 'q'}], 'label': '1'}, 'TRL'),
    ({'question': 'q', 'answer': '1', 'url': 'x/2023_AMC_10B'}, 'AMC'),
  ],
)
def test_detects_variants_of_schemas(row, schema, tmp_path):
  source, (problem,) = read(row, tmp_path=tmp_path)
  assert source.schema.name == schema
  assert problem.prompt == 'q'


@pytest.mark.parametrize(
  ('answer', 'text'),
  [
    (142.0, '142'),
    (7, '7'),
    (0.5, '0.5'),
    (' x ', 'x'),
    (1e23, str(10**23)),  # int(1e23) is 99999999999999991611392
    (10**400, str(10**400)),
  ],
)
def test_numbers_become_their_shortest_text(answer, text, tmp_path):
  _, (problem,) = read({'problem': 'q', 'answer': answer}, tmp_path=tmp_path)
  assert problem.reference == text


def test_refuses_rows_of_another_schema_than_the_first(tmp_path):
  rows = {'question': 'q', 'answer': '#### 1'}, {'question': 'q', 'answer': '1'}
  assert error_of(*rows, tmp_path=tmp_path) == (
    "column 'answer' of row 2 of FILE must have the final answer after"
    " '####', got '1'"
  )


# A valid row, an invalid one after it, and the message, by name.
INVALID_ROWS = {
  'a missing column': (
    {'problem': 'q', 'answer': '1'},
    {'problem': 'q'},
    "row 2 of FILE must have the column 'answer' or 'solution', got 'problem'",
  ),
  'a null': (
    {'problem': 'q', 'answer': '1'},
    {'problem': 'q', 'answer': None},
    "column 'answer' of row 2 of FILE must hold a value, got null",
  ),
  'an empty question': (
    {'problem': 'q', 'answer': '1'},
    {'problem': ' ', 'answer': '1'},
    "column 'problem' of row 2 of FILE must hold text that is not blank, got ' '",
  ),
  'an answer that is a list': (
    {'problem': 'q', 'answer': '1'},
    {'problem': 'q', 'answer': ['1']},
    "column 'answer' of row 2 of FILE must hold text or a number, got a list",
  ),
  'an open box': (
    {'problem': 'q', 'solution': '\\boxed{1}'},
    {'problem': 'q', 'solution': '\\boxed{1'},
    "column 'solution' of row 2 of FILE must have the final answer in a"
    " balanced \\boxed{}, got '\\\\boxed{1'",
  ),
  'a pass rate in percent': (
    {'problem': 'q', 'answer': '1', 'pass_rate': 1},
    {'problem': 'q', 'answer': '1', 'pass_rate': 75},
    "column 'pass_rate' of row 2 of FILE must be a fraction from 0 to 1,"
    " got '75'",
  ),
  'a conversation without a user': (
    {'prompt': [{'role': 'user', 'content': 'q'}], 'answer': '1'},
    {'prompt': [{'role': 'system', 'content': 'q'}], 'answer': '1'},
    "column 'prompt' of row 2 of FILE must be a conversation with a user"
    ' message that is not empty, got a list',
  ),
  'a float that has lost digits': (
    {'problem': 'q', 'answer': 1.0},
    {'problem': 'q', 'answer': 12345678901234567890.0},
    "column 'answer' of row 2 of FILE must hold text or an integer where a number"
    " has over 15 digits, got '1.2345678901234567e+19'",
  ),
  'a conversation that holds the response': (
    {'prompt': [{'role': 'user', 'content': 'q'}], 'answer': '1'},
    {
      'prompt': [
        {'role': 'user', 'content': 'q'},
        {'role': 'assistant', 'content': '1'},
      ],
      'answer': '1',
    },
    "column 'prompt' of row 2 of FILE must be a conversation that ends before a"
    ' response, got a list',
  ),
  'a conversation with an empty question': (
    {'prompt': [{'role': 'user', 'content': 'q'}], 'answer': '1'},
    {'prompt': [{'role': 'user', 'content': ' '}], 'answer': '1'},
    "column 'prompt' of row 2 of FILE must be a conversation with a user"
    ' message that is not empty, got a list',
  ),
  'a message without content': (
    {'prompt': [{'role': 'user', 'content': 'q'}], 'answer': '1'},
    {'prompt': [{'role': 'user'}], 'answer': '1'},
    "column 'prompt' of row 2 of FILE must be messages that each have a role"
    ' and a content of text, got a list',
  ),
}


@pytest.mark.parametrize(
  ('solution', 'answer'),
  [
    (r'so $\boxed 2$', '2'),
    (r'so $\boxed {2}$', '2'),
    (r'so $\fbox{2}$', '2'),
    (r'so $\boxed\frac12$', r'\frac12'),
    (r'so $\boxed{\frac{1}{2}}$ or \boxed{3', r'\frac{1}{2}'),
  ],
)
def test_boxed_answers_of_solutions_are_parsed_as_those_of_responses(
  solution, answer
):
  row = Row({'problem': 'q', 'solution': solution}, 'row 1')
  assert boxed_answer(row, 'solution') == answer


@pytest.mark.parametrize('case', INVALID_ROWS)
def test_errors_name_file_row_and_column(case, tmp_path):
  *rows, message = INVALID_ROWS[case]
  assert error_of(*rows, tmp_path=tmp_path) == message


@pytest.mark.parametrize(
  'truth',
  [
    'no json',
    '{}',
    '{"inputs": [], "outputs": []}',
    '[1]',
    '{"inputs": ["1"], "outputs": []}',
    '{"inputs":["1"],"outputs":["2"],"outputs":["3"]}',
  ],
)
def test_refuses_invalid_code_tests(truth, tmp_path):
  row = {
    'prompt': [{'role': 'user', 'content': 'q'}],
    'ability': 'code',
    'reward_model': {'ground_truth': truth},
  }
  assert error_of(row, tmp_path=tmp_path) == (
    "column 'reward_model.ground_truth' of row 1 of FILE must be JSON, with every"
    " name once and as many 'inputs' as 'outputs', at least one, got"
    f' {truth if len(truth) <= 40 else truth[:40] + "…"!r}'
  )


def test_refuses_unknown_columns(tmp_path):
  message = error_of({'instruction': 'q', 'output': 'a'}, tmp_path=tmp_path)
  assert re.fullmatch(
    r'row 1 of FILE must have the columns of a schema \(Eurus.*, plain\),'
    r" such as 'question' and 'answer', got 'instruction', 'output'",
    message,
  )


def test_schemas_can_be_given_by_name(tmp_path):
  row = {'question': 'q', 'answer': 'a #### 1'}
  _, (problem,) = read(row, schema='plain', tmp_path=tmp_path)
  assert problem.reference == 'a #### 1'
  with pytest.raises(ValueError, match=r"one of Eurus.*, plain, got 'gsm9k'"):
    schema_by_name('gsm9k')


def test_numbers_with_more_digits_than_a_float_are_refused_as_answers(tmp_path):
  file = tmp_path / 'file.jsonl'
  row = '{"question": "q", "answer": %s, "other": 0.12345678901234567891}\n'
  for number in ('0.1', '3.141592653589793', '0.30000000000000004', '1e-7'):
    file.write_text(row % number)
    assert FileSource(file)[0].reference == str(float(number))
  file.write_text(row % '3.14159265358979323846')
  with pytest.raises(
    ValueError, match=r"'answer' .* a number has over 17 digits"
  ):
    FileSource(file)
  # Also within the lists and objects of a schema of one's own.
  schema = custom_schema('question', 'answer')
  for reference in ('[0.1, %s]', '{"value": [%s]}'):
    file.write_text(row % reference % '3.14159265358979323846')
    with pytest.raises(ValueError, match='a number has over 17 digits'):
      FileSource(file, schema=schema)
    file.write_text(row % reference % '3.14')
    assert '3.14' in str(FileSource(file, schema=schema)[0].reference)
