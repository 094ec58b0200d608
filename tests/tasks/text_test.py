# SPDX-License-Identifier: Apache-2.0
"""Tasks from files of problems: prompts, rewards, mixtures and notes."""

import dataclasses
import json
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
from tasks.text_config import DATA, MODEL, config

from covrl.config import Config, ConfigError
from covrl.data import ConcatenatedSource, MixtureSource, Problem
from covrl.data.problems import question_key
from covrl.tasks.graders import answer_extractor, reference_response
from covrl.train import text_task


def test_prompts_use_the_models_chat_template():
  task = text_task(config('plain.jsonl'))
  assert len(task.train) == 5
  prompt = task.train[0].prompt
  assert prompt.startswith('<|im_start|>user\nA gardener plants 3 rows')
  assert prompt.endswith(
    '\nPlease reason step by step, and put your final answer within \\boxed{}.'
    '<|im_end|>\n<|im_start|>assistant\n'
  )


def test_prompts_use_a_configured_template():
  task = text_task(config('plain.jsonl', template='Q: {question}\nA:'))
  assert task.train[0].prompt.startswith('Q: A gardener')
  assert task.train[0].prompt.endswith('\\boxed{}.\nA:')


def test_instructions_of_a_file_can_be_removed():
  original, bare = (
    text_task(config('dapo_math_17k.parquet', bare_questions=bare))
    for bare in (False, True)
  )
  assert 'The last line of your response' in original.train[0].prompt
  assert 'The last line of your response' not in bare.train[0].prompt
  assert [reward.name for reward in original.rewards] == ['math_dapo']
  assert [reward.name for reward in bare.rewards] == ['math']
  assert reference_response(original.train[0]) == 'Answer: 6'
  assert reference_response(bare.train[0]) == '\\boxed{6}'


def test_each_source_has_the_reward_of_its_kind():
  task = text_task(
    config('verl.parquet,math.jsonl,eurus_2_rl_code.parquet', suites='math500')
  )
  assert {r.name: r.sources for r in task.rewards} == {
    'math': ('gardens', 'math.jsonl', 'math500'),
    'code': ('codecontests', 'taco'),
  }
  assert task.sources == (
    'gardens',
    'math.jsonl',
    'codecontests',
    'taco',
    'math500',
  )


def test_notes_name_the_sandbox_backend():
  task = text_task(config('kodcode.jsonl'))
  assert task.notes[-1].startswith(
    'programs are judged in the sandbox backend '
  )
  settings = config('kodcode.jsonl')
  settings.rewards.sandbox = 'unsandboxed'
  assert ' unsandboxed' in text_task(settings).notes[-1]
  backend: Any = 'docker'
  settings.rewards.sandbox = backend
  with pytest.raises(
    ValueError, match=r"backend must be one of .*, got 'docker'"
  ):
    text_task(settings)


def test_shaping_rewards_are_made_as_configured():
  settings = config('plain.jsonl')
  settings.rewards.format = '<think>.*</think>.*'
  settings.rewards.overlong_buffer = 4
  settings.rewards.function = 'train.scoring:begins_with_largest'
  task = text_task(settings)
  assert [r.name for r in task.rewards] == [
    'math',
    'format',
    'overlong',
    'function',
  ]
  assert [r.weight for r in task.rewards] == [1.0, 0.1, 1.0, 1.0]
  # Evaluations ignore shaping rewards.
  assert [r.shaping for r in task.rewards] == [False, True, True, True]


def test_weights_make_a_mixture_of_files():
  plain = text_task(config('plain.jsonl,math.jsonl')).train
  assert type(plain) is ConcatenatedSource
  mixed = text_task(config('plain.jsonl=3,math.jsonl')).train
  assert isinstance(mixed, MixtureSource)
  assert mixed.weights == (3.0, 1.0)
  # Shards share the weight of their pattern.
  shards = text_task(config('suites/aime2*.jsonl=1,plain.jsonl=2')).train
  assert isinstance(shards, MixtureSource)
  assert shards.weights == (0.5, 0.5, 2.0)
  # So do those of a pattern without a weight, which is 1.
  shards = text_task(config('suites/aime2*.jsonl,plain.jsonl=2')).train
  assert isinstance(shards, MixtureSource)
  assert shards.weights == (0.5, 0.5, 2.0)


def test_notes_count_dropped_problems():
  settings = config(
    'dapo_math_17k.parquet,math.jsonl', suites='math500,omni_math'
  )
  task = text_task(settings)
  starts = [
    f'{DATA}/dapo_math_17k.parquet: 5 of 6 problems; left out: 1 repeated',
    f'{DATA}/math.jsonl: 5 of 5 problems (schema MATH)',
    'math500: 5 problems (schema MATH-500)',
    'omni_math: 5 problems (schema OMNI-MATH)',
  ]
  for note, start in zip(task.notes, starts, strict=True):
    assert note.startswith(start)


def test_problems_of_evaluation_suites_are_dropped(tmp_path):
  rows = [
    json.loads(line)
    for line in (DATA / 'suites' / 'omni_math.jsonl').read_text().splitlines()
  ]
  leaked = {'question': f'Hard! {rows[2]["problem"]}', 'answer': '1'}
  (tmp_path / 'a.jsonl').write_text(
    json.dumps(leaked) + '\n' + json.dumps({'question': 'q', 'answer': '1'})
  )
  settings = config(suites='omni_math', overlap_words=9)
  settings.data.train = str(tmp_path / 'a.jsonl')
  (note, _) = text_task(settings).notes
  assert 'left out: 1 also in omni_math (first: row 1' in note
  settings.data.overlap_words = 0
  assert len(text_task(settings).train) == 2


@pytest.mark.parametrize('role', ['system', 'user', 'assistant'])
def test_conversations_with_evaluation_questions_are_dropped(role, tmp_path):
  suite = DATA / 'suites' / 'omni_math.jsonl'
  (leaked, *_) = map(json.loads, suite.read_text().splitlines())
  others = [{'role': 'user', 'content': f'What is {n} + 1?'} for n in (1, 2)]
  message = {'role': role, 'content': f'Task: {leaked["problem"]} Now think.'}
  rows = [[message, others[0]], [others[0], message, others[1]], [others[1]]]
  file = tmp_path / 'a.jsonl'
  file.write_text(
    '\n'.join(json.dumps({'prompt': row, 'answer': '2'}) for row in rows)
  )
  settings = config(suites='omni_math', deduplicate=False)
  settings.data.train = str(file)
  note = text_task(settings).notes[0]
  assert '1 of 3 problems; left out: 2 also in omni_math (first: row 1' in note
  # Bare questions are without earlier messages; those of instructions are removed.
  settings.data.bare_questions = True
  notes = text_task(settings).notes
  assert '3 of 3 problems' in notes[0]
  (warning,) = (note for note in notes if note.startswith('warning: '))
  number, row = (1, 2) if role == 'system' else (2, 1)
  assert f'questions of {number} of 3 problems are without the other' in warning
  assert f'(first: row {row} of {file})' in warning


def test_long_prompts_are_dropped():
  settings = config('plain.jsonl')
  task = text_task(settings)
  lengths = [len(task.tokenizer.encode(task.train[n].prompt)) for n in range(5)]
  settings.rollout.max_prompt_length = max(lengths) - 1
  (note,) = text_task(settings).notes
  assert f'longer than {max(lengths) - 1} tokens' in note
  assert len(text_task(settings).train) == sum(
    n < max(lengths) for n in lengths
  )


def test_problems_are_filtered_by_pass_rate(tmp_path):
  settings = config('verl.parquet', min_pass_rate=0.2, max_pass_rate=0.8)
  assert len(text_task(settings).train) == 3
  # Pass rates that `covrl evaluate` has measured take precedence.
  keys = [text_task(config('verl.parquet')).train[n].key for n in range(5)]
  results = [
    # Responses without a score are left out.
    {'key': keys[0], 'greedy': 1, 'correct': [1, None, 0, None, None]},
    {'key': keys[2], 'greedy': 1, 'correct': []},
    {'key': keys[3], 'greedy': None, 'correct': []},
  ]
  file = tmp_path / 'train.jsonl'
  file.write_text('\n'.join(map(json.dumps, results)))
  settings.data.pass_rates = str(file)
  task = text_task(settings)
  assert [task.train[n].key for n in range(len(task.train))] == [
    keys[0],
    keys[1],
    keys[3],
  ]
  file.write_text('{}\n')
  with pytest.raises(ConfigError) as caught:
    text_task(settings)
  assert str(caught.value) == (
    'data.pass_rates must be results written by covrl evaluate, got something'
    f' else in row 1 of {file}'
  )


def test_pass_rates_that_differ_for_one_question_are_refused(tmp_path):
  def row(value, question):
    turns = (f'Let x = {value}.', 'user'), ('Yes.', 'assistant')
    messages = [
      {'role': role, 'content': text}
      for text, role in (*turns, (question, 'user'))
    ]
    return {'prompt': messages, 'answer': str(value)}

  train, file = tmp_path / 'train.jsonl', tmp_path / 'rates.jsonl'
  rows = [row(3, 'What is x?'), row(7, 'What is x?'), row(3, 'What is 2x?')]
  train.write_text('\n'.join(map(json.dumps, rows)))
  settings = config(str(train), deduplicate=False, min_pass_rate=0.9)
  settings.data.pass_rates = str(file)
  key, other_key = question_key('What is x?'), question_key('What is 2x?')
  rates = [(key, 1), (other_key, 1), (key, 1)]

  def write(rates):
    lines = ({'key': k, 'greedy': 0, 'correct': [c]} for k, c in rates)
    file.write_text('\n'.join(map(json.dumps, lines)))

  write(rates)
  assert len(text_task(settings).train) == 3
  write([*rates, (key, 0)])
  with pytest.raises(ConfigError) as caught:
    text_task(settings)
  assert str(caught.value) == (
    'data.pass_rates must have one rate for each question, got 1 in row 1 and 0'
    f' in row 4 of {file} for the key {key!r}; leave out all but one of its'
    ' rows'
  )


def test_chat_templates_have_configured_variables(tmp_path):
  model = pathlib.Path(shutil.copytree(MODEL, tmp_path / 'model'))
  (model / 'chat_template.jinja').write_text(
    '{{ messages[-1].content }}{{ "<think></think>" if enable_thinking is'
    ' false }}{{ effort }}'
  )
  settings = config('plain.jsonl', math_instruction='')
  settings.pretrained = str(model)
  default_prompt = text_task(settings).train[0].prompt
  settings.data.template_variables = (
    '{"enable_thinking": false, "effort": "low"}'
  )
  assert (
    text_task(settings).train[0].prompt == f'{default_prompt}<think></think>low'
  )


def test_answers_are_extracted_for_votes():
  def read(kind, response):
    problem = Problem(prompt='', reference='', source='', kind=kind)
    reader = answer_extractor(problem)
    return None if reader is None else reader(response)

  assert read('math', 'so \\boxed{ \\dfrac12}.') == '\\dfrac12'
  assert read('math', 'so 5') is None
  assert read('math_dapo', 'Answer: 5') == '5'
  assert (
    answer_extractor(Problem(prompt='', reference=[], source='', kind='code'))
    is None
  )


def test_a_task_for_evaluation_needs_no_training_files():
  task = text_task(config(suites='aime24'))
  assert len(task.train) == 0
  (suite,) = task.evaluation_suites(Config().evaluate)
  assert (suite.samples, suite.temperature) == (32, 0.6)
  changed = dataclasses.replace(
    Config().evaluate, suite_samples=0, suite_problems=2, suite_temperature=1.0
  )
  (suite,) = task.evaluation_suites(changed)
  assert (suite.samples, suite.temperature, len(suite.problems)) == (0, 1.0, 2)
  assert np.all([p.prompt.endswith('assistant\n') for p in suite.problems])


def test_answers_that_may_be_missing_values_are_noted(tmp_path):
  """'None' is Python's name of a missing value, and an answer."""

  def notes(*answers):
    file = tmp_path / 'a.jsonl'
    rows = [
      json.dumps({'question': f'Question {number}?', 'answer': answer})
      for number, answer in enumerate(answers)
    ]
    file.write_text('\n'.join(rows))
    settings = config(suites=str(file), overlap_words=0)
    settings.data.train = str(file)
    return [n for n in text_task(settings).notes if n.startswith('warning')]

  assert notes('none', '3', 'None of these') == []
  warnings = notes('3', 'None', '4', 'None')
  assert len(warnings) == 2  # of the training problems and of the suite
  for warning in warnings:
    assert "2 of 4 answers are the text 'None'" in warning
    assert "(first: column 'answer' of row 2 of " in warning


def test_patterns_of_numbered_files_must_match_all_of_the_numbers(
  tmp_path,
):
  names = [f'train-{number:05}-of-00003.jsonl' for number in range(3)]
  for name in names:
    shutil.copy(DATA / 'plain.jsonl', tmp_path / name)
  settings = config(deduplicate=False)

  def length(*patterns):
    settings.data.train = ','.join(str(tmp_path / p) for p in patterns)
    return len(text_task(settings).train)

  assert length('train-*.jsonl') == 15
  assert length('train-0000*-of-00003.jsonl') == 15
  assert length('*0-of-00003.jsonl') == 5
  (tmp_path / names[1]).unlink()
  with pytest.raises(ValueError, match='must be 3 files, got 2, without numb'):
    length('train-*.jsonl')
  assert length(names[0], names[2]) == 10


def test_columns_that_may_hold_a_part_of_the_question_are_noted(tmp_path):
  for name in ('train', 'suite'):
    rows = [
      {'question': f'{name} {n}?', 'choices': ['x', 'y'], 'answer': n}
      for n in range(3)
    ]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  settings = config(suites=str(tmp_path / 'suite.jsonl'))
  settings.data.train = str(tmp_path / 'train.jsonl')
  notes = text_task(settings).notes
  for name in ('train', 'suite'):
    assert (
      'warning: 3 of 3 rows have what usually is a part of the question and the'
      " schema plain does not read: 'choices' in 3 (first: row 1 of"
      f' {tmp_path / name}.jsonl)'
    ) in notes
