# SPDX-License-Identifier: Apache-2.0
"""Errors of tasks of text: settings, reference answers and files that are refused."""

import json
import shutil

import pytest
from pretrained.text_models import remove_character
from tasks.text_config import DATA, MODEL, config

from covrl.config import ConfigError
from covrl.rewards import JudgeError, Scoring, cached_judge
from covrl.tasks import verify
from covrl.train import text_task


def scoring(task):
  return Scoring(task.rewards, sources=task.sources, workers=1, timeout=60.0)


def test_refuses_programs_without_a_sandbox(monkeypatch):
  def find_none(*_):
    raise JudgeError('a sandbox backend must work here, got errors: why')

  monkeypatch.setattr('covrl.rewards.sandbox.judge.find_launcher', find_none)
  cached_judge.cache_clear()
  try:
    with pytest.raises(JudgeError, match='a sandbox backend must work'):
      text_task(config('kodcode.jsonl'))
    # Mathematical problems need no sandbox.
    text_task(config('plain.jsonl'))
  finally:
    cached_judge.cache_clear()


def test_refuses_problems_of_which_a_character_has_no_token(tmp_path):
  model = shutil.copytree(MODEL, tmp_path / 'model')
  remove_character(model / 'tokenizer.json', '+')
  (tmp_path / 'a.jsonl').write_text(
    '{"question": "3 minus 4?", "answer": "-1"}\n'
    '{"question": "3 + 4?", "answer": "7"}\n'
  )
  settings = config()
  settings.pretrained = str(model)
  settings.data.train = str(tmp_path / 'a.jsonl')
  with pytest.raises(ValueError) as caught:
    text_task(settings)
  sentence = str(caught.value)
  assert sentence.startswith(f'row 2 of {tmp_path}/a.jsonl: a text must be of')
  assert sentence.endswith(" without a token for '+'")


def test_refuses_a_source_of_two_kinds(tmp_path):
  def row(ability, truth):
    return {
      'data_source': 'same',
      'prompt': [{'role': 'user', 'content': f'{ability}?'}],
      'ability': ability,
      'reward_model': {'ground_truth': truth},
    }

  tests = json.dumps({'inputs': ['1'], 'outputs': ['2']})
  for name, line in (('a', row('math', '4')), ('b', row('code', tests))):
    (tmp_path / f'{name}.jsonl').write_text(json.dumps(line))
  settings = config()
  settings.data.train = f'{tmp_path}/a.jsonl,{tmp_path}/b.jsonl'
  with pytest.raises(ValueError) as caught:
    text_task(settings)
  assert str(caught.value) == (
    "the source 'same' must be of one kind of problems, got math before and"
    f' code in {tmp_path}/b.jsonl'
  )


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'pretrained': ''}, 'pretrained must name a model'),
    ({'train': 'a.jsonl'}, r'a\.jsonl must be a file of problems'),
    (
      {'train': 'a*.jsonl'},
      r'must name files, got .*a\*\.jsonl, which matches none',
    ),
    ({'train': 'a.jsonl=x'}, r"if it has a weight, got 'a\.jsonl=x'"),
    ({'train': 'a.jsonl=nan'}, r"if it has a weight, got 'a\.jsonl=nan'"),
    ({'train': 'a.jsonl=inf'}, r"if it has a weight, got 'a\.jsonl=inf'"),
    ({'train': 'a.jsonl=-1'}, r"if it has a weight, got 'a\.jsonl=-1'"),
    ({'schema': 'gsm9k'}, "schema must be one of .*, got 'gsm9k'"),
    ({'suites': 'math5000'}, 'did you mean math500'),
    ({'template': 'Q:'}, r'must have \{question\} in it'),
  ],
)
def test_invalid_settings_are_refused_in_one_sentence(change, sentence):
  settings = config('plain.jsonl')
  for name, value in change.items():
    section = settings
    if name != 'pretrained':
      section = settings.evaluate if name == 'suites' else settings.data
    setattr(section, name, value)
  with pytest.raises(ValueError, match=sentence) as caught:
    text_task(settings)
  assert '\n' not in str(caught.value)


def test_references_of_all_fixtures_are_graded_correct():
  names = 'plain.jsonl,math.jsonl,verl.parquet,dapo_math_17k.parquet,trl.jsonl'
  task = text_task(
    config(
      f'{names},kodcode.jsonl,eurus_2_rl_code.parquet',
      suites='math500,aime24,aime25,amc,omni_math,olympiadbench,minerva,gsm8k',
      deduplicate=False,
      overlap_words=0,
    )
  )
  with scoring(task) as scorer:
    assert verify.check_references(task, scorer, programs=4) == []


def task_with_wrong_references(tmp_path, num_wrong, num_right):
  """Returns a task with unparsable references."""
  rows = [
    {'question': f'q{n}', 'answer': '}' if n < num_wrong else f'{n}'}
    for n in range(num_wrong + num_right)
  ]
  file = tmp_path / 'a.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)))
  settings = config()
  settings.data.train = str(file)
  return text_task(settings)


def test_wrong_references_are_counted_and_located(tmp_path):
  task = task_with_wrong_references(tmp_path, 1, 199)
  with scoring(task) as scorer:
    (note,) = verify.check_references(task, scorer, programs=0)
  assert note.startswith(
    '1 of 200 reference answers of a.jsonl are graded as wrong when they are the'
    f" responses: column 'answer' of row 1 of {tmp_path}/a.jsonl, "
  )
  assert 'unparsable' in note


def test_more_than_one_percent_wrong_references_are_refused(tmp_path):
  task = task_with_wrong_references(tmp_path, 3, 197)
  with scoring(task) as scorer, pytest.raises(ValueError) as caught:
    verify.check_references(task, scorer, programs=0)
  assert str(caught.value).startswith(
    'at least 99% of the reference answers of a source must be graded as correct,'
    ' got 197 of 200 of a.jsonl; wrong: '
  )
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'answer',
  [
    '["1", "2"]',
    "['5']",
    '["-\\\\frac{2}{3}"]',
    'The answer is 5',
    'Answer: 5',
    '{"answer": "5"}',
    '\\\\frac{2}{3}',
  ],
)
def test_references_that_no_boxed_answer_equals_are_refused(answer, tmp_path):
  # Each equals itself, but no response with \\boxed{5} or \\boxed{\\frac{2}{3}} would be right.
  (tmp_path / 'a.jsonl').write_text(
    json.dumps({'question': 'q', 'answer': answer})
  )
  settings = config()
  settings.data.train = str(tmp_path / 'a.jsonl')
  task = text_task(settings)
  with (
    scoring(task) as scorer,
    pytest.raises(
      ValueError, match=r"got 0 of 1 .* column 'answer' of row 1 of"
    ),
  ):
    verify.check_references(task, scorer, programs=1)


@pytest.mark.parametrize(
  ('text', 'sentence'),
  [
    ('{', 'must be a JSON object such as'),
    ('[]', 'must be a JSON object such as'),
    ('enable_thinking=false', 'must be a JSON object such as'),
    ('{"messages": []}', 'must not have messages'),
  ],
)
def test_invalid_template_variables_are_refused(text, sentence):
  settings = config('plain.jsonl', template_variables=text)
  with pytest.raises(ConfigError, match=sentence):
    text_task(settings)


def test_template_variables_need_a_chat_template():
  settings = config(
    'plain.jsonl', template='{question}', template_variables='{"a": 1}'
  )
  with pytest.raises(ConfigError, match=r'must be absent with data\.template'):
    text_task(settings)


@pytest.mark.parametrize(
  'line',
  [
    b'\xff',
    b'[' * 100_000,
    b'{"key": "k", "correct": [NaN]}',
    b'{"key": "k", "correct": [75]}',
    b'{"key": "k", "correct": ["1"]}',
  ],
)
def test_malformed_pass_rates_are_named(line, tmp_path):
  file = tmp_path / 'a.jsonl'
  file.write_bytes(b'{"key": "k", "correct": [1]}\n' + line)
  with pytest.raises(ConfigError, match=f'row 2 of {file}'):
    text_task(config('verl.parquet', pass_rates=str(file)))


def test_a_reference_program_that_fails_its_tests_is_refused(tmp_path):
  row = json.loads((DATA / 'kodcode.jsonl').read_text())
  row['solution'] = 'def reads_back(word):\n  return True\n'
  (tmp_path / 'a.jsonl').write_text(json.dumps(row))
  settings = config()
  settings.data.train = str(tmp_path / 'a.jsonl')
  task = text_task(settings)
  with (
    scoring(task) as scorer,
    pytest.raises(ValueError, match=r"got 0 of 1 .* column 'test' of row 1 of"),
  ):
    verify.check_references(task, scorer, programs=1)
