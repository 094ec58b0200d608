# SPDX-License-Identifier: Apache-2.0
"""Tasks from files of problems, and errors about invalid files."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest

from covrl.config import Config, ConfigError
from covrl.data import ConcatenatedSource, MixtureSource, Problem
from covrl.rewards import JudgeError, Scoring, cached_judge
from covrl.tasks import verify
from covrl.tasks.graders import answer_extractor, reference_response
from covrl.train import text_task

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
DATA = GOLDEN / 'data'
MODEL = GOLDEN / 'tokenizers' / 'bytes'


def config(train='', suites='', **data):
  made = Config(pretrained=str(MODEL))
  made.rollout.max_prompt_length = 1024
  made.data.train = ','.join(
    str(DATA / name) for name in train.split(',') if name
  )
  made.data = dataclasses.replace(made.data, **data)
  made.evaluate.suites = suites
  made.evaluate.suite_directory = str(DATA / 'suites')
  return made


def scoring(task):
  return Scoring(task.rewards, sources=task.sources, workers=1, timeout=60.0)


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
  framed, bare = (
    text_task(config('dapo_math_17k.parquet', bare_questions=bare))
    for bare in (False, True)
  )
  assert 'The last line of your response' in framed.train[0].prompt
  assert 'The last line of your response' not in bare.train[0].prompt
  assert [reward.name for reward in framed.rewards] == ['math_dapo']
  assert [reward.name for reward in bare.rewards] == ['math']
  assert reference_response(framed.train[0]) == 'Answer: 6'
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
  made = config('kodcode.jsonl')
  made.rewards.judge = 'unsandboxed'
  assert ' unsandboxed' in text_task(made).notes[-1]
  for field in ('judge',):
    setattr(made.rewards, field, 'docker')
  with pytest.raises(
    ValueError, match=r"backend must be one of .*, got 'docker'"
  ):
    text_task(made)


def test_refuses_programs_without_a_sandbox(monkeypatch):
  def none(*_):
    raise JudgeError('programs need a sandbox, got none: why')

  monkeypatch.setattr('covrl.rewards.sandbox.judge.find_launcher', none)
  cached_judge.cache_clear()
  try:
    with pytest.raises(JudgeError, match='programs need a sandbox'):
      text_task(config('kodcode.jsonl'))
    # Mathematics needs none.
    text_task(config('plain.jsonl'))
  finally:
    cached_judge.cache_clear()


def test_configured_shaping_rewards():
  made = config('plain.jsonl')
  made.rewards.format = '<think>.*</think>.*'
  made.rewards.overlong_buffer = 4
  made.rewards.function = 'train.scoring:begins_with_largest'
  task = text_task(made)
  assert [r.name for r in task.rewards] == [
    'math',
    'format',
    'overlong',
    'function',
  ]
  assert [r.weight for r in task.rewards] == [1.0, 0.1, 1.0, 1.0]
  # Evaluations ignore shaping rewards.
  assert [r.shaping for r in task.rewards] == [False, True, True, True]


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
  made = config()
  made.data.train = f'{tmp_path}/a.jsonl,{tmp_path}/b.jsonl'
  with pytest.raises(ValueError) as caught:
    text_task(made)
  assert str(caught.value) == (
    "the source 'same' must be of one kind of problems, got math before and"
    f' code in {tmp_path}/b.jsonl'
  )


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


def test_notes_count_dropped_problems():
  made = config('dapo_math_17k.parquet,math.jsonl', suites='math500,omni_math')
  task = text_task(made)
  names = [
    f'{DATA}/dapo_math_17k.parquet: 5 of 6 problems; left out: 1 twice',
    f'{DATA}/math.jsonl: 5 of 5 problems (layout MATH)',
    'math500: 5 problems (layout MATH-500)',
    'omni_math: 5 problems (layout OMNI-MATH)',
  ]
  for note, start in zip(task.notes, names, strict=True):
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
  made = config(suites='omni_math', overlap_words=9)
  made.data.train = str(tmp_path / 'a.jsonl')
  (note, _) = text_task(made).notes
  assert 'left out: 1 also in omni_math (first: row 1' in note
  made.data.overlap_words = 0
  assert len(text_task(made).train) == 2


def test_long_prompts_are_dropped():
  made = config('plain.jsonl')
  task = text_task(made)
  lengths = [len(task.tokenizer.encode(task.train[n].prompt)) for n in range(5)]
  made.rollout.max_prompt_length = max(lengths) - 1
  (note,) = text_task(made).notes
  assert f'longer than {max(lengths) - 1} tokens' in note
  assert len(text_task(made).train) == sum(n < max(lengths) for n in lengths)


def test_problems_are_filtered_by_pass_rate(tmp_path):
  made = config('verl.parquet', min_pass_rate=0.2, max_pass_rate=0.8)
  assert len(text_task(made).train) == 3
  # Measured anew, by `covrl evaluate`.
  keys = [text_task(config('verl.parquet')).train[n].key for n in range(5)]
  results = [
    # Responses without a score are left out.
    {'key': keys[0], 'greedy': 1, 'correct': [1, None, 0, None, None]},
    {'key': keys[2], 'greedy': 1, 'correct': []},
    {'key': keys[3], 'greedy': None, 'correct': []},
  ]
  file = tmp_path / 'train.jsonl'
  file.write_text('\n'.join(map(json.dumps, results)))
  made.data.pass_rates = str(file)
  task = text_task(made)
  assert [task.train[n].key for n in range(len(task.train))] == [
    keys[0],
    keys[1],
    keys[3],
  ]
  file.write_text('{}\n')
  with pytest.raises(ConfigError) as caught:
    text_task(made)
  assert str(caught.value) == (
    'data.pass_rates must be results written by covrl evaluate, got something'
    f' else in row 1 of {file}'
  )


@pytest.mark.parametrize(
  ('change', 'sentence'),
  [
    ({'pretrained': ''}, 'needs a pretrained model'),
    ({'train': 'a.jsonl'}, r'a\.jsonl must be a file of problems'),
    ({'train': 'a*.jsonl'}, r'must name files, no file matches .*a\*\.jsonl'),
    ({'train': 'a.jsonl=x'}, r"if it has a weight, got 'a\.jsonl=x'"),
    ({'train': 'a.jsonl=nan'}, r"if it has a weight, got 'a\.jsonl=nan'"),
    ({'train': 'a.jsonl=inf'}, r"if it has a weight, got 'a\.jsonl=inf'"),
    ({'train': 'a.jsonl=-1'}, r"if it has a weight, got 'a\.jsonl=-1'"),
    ({'layout': 'gsm9k'}, "layout must be one of .*, got 'gsm9k'"),
    ({'suites': 'math5000'}, 'did you mean math500'),
    ({'template': 'Q:'}, r'must have \{question\} in it'),
  ],
)
def test_invalid_settings_are_refused_in_one_sentence(change, sentence):
  made = config('plain.jsonl')
  for name, value in change.items():
    holder = made
    if name != 'pretrained':
      holder = made.evaluate if name == 'suites' else made.data
    setattr(holder, name, value)
  with pytest.raises(ValueError, match=sentence) as caught:
    text_task(made)
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
  with scoring(task) as judges:
    assert verify.check_references(task, judges, programs=4) == []


def task_with_wrong_references(tmp_path, wrong, right):
  """Returns a task with unparsable references."""
  rows = [
    {'question': f'q{n}', 'answer': '}' if n < wrong else f'{n}'}
    for n in range(wrong + right)
  ]
  file = tmp_path / 'a.jsonl'
  file.write_text('\n'.join(map(json.dumps, rows)))
  made = config()
  made.data.train = str(file)
  return text_task(made)


def test_wrong_references_are_counted_and_located(tmp_path):
  task = task_with_wrong_references(tmp_path, 1, 199)
  with scoring(task) as judges:
    (note,) = verify.check_references(task, judges, programs=0)
  assert note.startswith(
    '1 of 200 reference answers of a.jsonl are not judged right when they are'
    f" given: column 'answer' of row 1 of {tmp_path}/a.jsonl, "
  )
  assert 'unparsable' in note


def test_more_than_one_percent_wrong_references_are_refused(tmp_path):
  task = task_with_wrong_references(tmp_path, 3, 197)
  with scoring(task) as judges, pytest.raises(ValueError) as caught:
    verify.check_references(task, judges, programs=0)
  assert str(caught.value).startswith(
    'at most 1% of the reference answers of a source may fail to be judged'
    ' right, 3 of 200 reference answers of a.jsonl are not'
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
def test_references_in_the_notation_of_a_file_are_refused(answer, tmp_path):
  # A model writes \\boxed{5}; graded by themselves these are all right.
  (tmp_path / 'a.jsonl').write_text(
    json.dumps({'question': 'q', 'answer': answer})
  )
  made = config()
  made.data.train = str(tmp_path / 'a.jsonl')
  task = text_task(made)
  with (
    scoring(task) as judges,
    pytest.raises(ValueError, match=r"1 of 1 .* column 'answer' of row 1 of"),
  ):
    verify.check_references(task, judges, programs=1)


def test_chat_templates_have_configured_variables(tmp_path):
  model = pathlib.Path(shutil.copytree(MODEL, tmp_path / 'model'))
  (model / 'chat_template.jinja').write_text(
    '{{ messages[-1].content }}{{ "<think></think>" if enable_thinking is'
    ' false }}{{ effort }}'
  )
  made = config('plain.jsonl', math_instruction='')
  made.pretrained = str(model)
  plain = text_task(made).train[0].prompt
  made.data.template_variables = '{"enable_thinking": false, "effort": "low"}'
  assert text_task(made).train[0].prompt == f'{plain}<think></think>low'


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
  made = config('plain.jsonl', template_variables=text)
  with pytest.raises(ConfigError, match=sentence):
    text_task(made)


def test_template_variables_need_a_chat_template():
  made = config(
    'plain.jsonl', template='{question}', template_variables='{"a": 1}'
  )
  with pytest.raises(ConfigError, match=r'which data\.template replaces'):
    text_task(made)


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
  made = config()
  made.data.train = str(tmp_path / 'a.jsonl')
  task = text_task(made)
  with (
    scoring(task) as judges,
    pytest.raises(ValueError, match=r"1 of 1 .* column 'test' of row 1 of"),
  ):
    verify.check_references(task, judges, programs=1)


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
  (suite,) = task.evaluation(Config().evaluate)
  assert (suite.samples, suite.temperature) == (32, 0.6)
  changed = dataclasses.replace(
    Config().evaluate, suite_samples=0, suite_problems=2, suite_temperature=1.0
  )
  (suite,) = task.evaluation(changed)
  assert (suite.samples, suite.temperature, len(suite.problems)) == (0, 1.0, 2)
  assert np.all([p.prompt.endswith('assistant\n') for p in suite.problems])
