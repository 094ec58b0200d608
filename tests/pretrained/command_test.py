# SPDX-License-Identifier: Apache-2.0
"""Commands applied to the directory of a pretrained model."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from pretrained.fixtures import (
  MODELS,
  assert_trees_equal,
  copy_of,
  tensors_of,
)
from pretrained.text_models import remove_character

from covrl.cli import main
from covrl.config import Config, ConfigError
from covrl.data import JsonTokenizer
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.models import Policy, tiny
from covrl.pretrained import (
  load_policy,
  load_pretrained,
  load_tokenizer,
  max_positions,
  save_pretrained,
)
from covrl.serve.policy import ServedPolicy
from covrl.train.setup.initial_policy import check_lengths
from covrl.train.setup.model_lengths import model_lengths
from covrl.train.setup.restore import OpenedRun

TOKENIZER = (
  pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers' / 'bytes'
)


def error_of(capsys, *arguments):
  """Runs a command that is refused; returns its standard error."""
  capsys.readouterr()
  with pytest.raises(SystemExit) as ended:
    main([str(argument) for argument in arguments])
  assert ended.value.code == 2
  return capsys.readouterr().err


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random Llama with a tokenizer and a chat template."""
  policy = Policy(tiny(320))
  directory = tmp_path_factory.mktemp('pretrained') / 'model'
  save_pretrained(directory, policy, policy.init(jax.random.key(0)))
  for file in TOKENIZER.iterdir():
    if file.name not in ('config.json', 'golden.json'):
      (directory / file.name).write_bytes(file.read_bytes())
  return directory


def test_sample_uses_a_pretrained_model(model, capsys):
  options = ['--count=2', '--max_length=4', '--seed=3']
  main(['sample', str(model), 'What is 1 + 1?', *options])
  output_without_chat = capsys.readouterr().out
  assert output_without_chat.count(' nats  ') == 2
  main(['sample', str(model), 'What is 1 + 1?', '--chat', *options])
  assert capsys.readouterr().out != output_without_chat


@pytest.mark.parametrize('sampling', ['--temperature=0.5', '--top_k=3'])
def test_log_probabilities_of_a_prompt_and_of_a_file_are_the_policys(
  model, tmp_path, capsys, sampling
):
  options = ['--count=3', '--max_length=4', sampling]
  main(['sample', str(model), 'What is 1 + 1?', '--seed=3', *options])
  printed = re.findall(r'log-probability +(\S+) nats ', capsys.readouterr().out)
  file = tmp_path / 'prompts.jsonl'
  file.write_text(json.dumps({'prompt': 'What is 1 + 1?', 'seed': 3}))
  main(['sample', str(model), f'--file={file}', *options])
  responses = json.loads(capsys.readouterr().out)['responses']
  logprobs = [response['logprob'] for response in responses]
  np.testing.assert_allclose([float(x) for x in printed], logprobs, atol=1e-3)
  # They are not those of the distribution that was sampled from.
  others = [response['sampling_logprob'] for response in responses]
  assert (np.abs(np.subtract(logprobs, others)) > 0.01).all()


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      ['--template_variables={}'],
      '--template_variables must be given with --chat',
    ),
    (['--chat', '--template_variables=['], 'must be a JSON object such as'),
  ],
)
def test_template_variables_need_a_template(options, message, model, capsys):
  with pytest.raises(SystemExit):
    main(['sample', str(model), 'What?', *options])
  assert message in capsys.readouterr().err


def test_chat_needs_a_template(model, tmp_path, capsys):
  without_template = tmp_path / 'bare'
  shutil.copytree(model, without_template)
  (without_template / 'chat_template.jinja').unlink(missing_ok=True)
  settings = json.loads(
    (without_template / 'tokenizer_config.json').read_text()
  )
  settings.pop('chat_template', None)
  (without_template / 'tokenizer_config.json').write_text(json.dumps(settings))
  error = error_of(
    capsys, 'sample', without_template, 'What?', '--chat', '--max_length=2'
  )
  assert error.endswith(
    'must have a chat_template for conversations, got none\n'
  )
  main(
    ['sample', str(without_template), 'What?', '--max_length=2', '--count=1']
  )
  assert re.match(
    r'log-probability +-\d+\.\d{3} nats  ', capsys.readouterr().out
  )


def test_text_without_a_token_is_refused_in_one_sentence(
  model, tmp_path, capsys
):
  directory = shutil.copytree(model, tmp_path / 'model')
  remove_character(directory / 'tokenizer.json', '+')
  suite = tmp_path / 'suite.jsonl'
  suite.write_text(
    '{"question": "3 minus 4?", "answer": "-1"}\n'
    '{"question": "3 + 4?", "answer": "7"}\n'
  )
  refusal = "a text must be of the tokenizer's vocabulary, got "
  for arguments in (
    ['sample', directory, '3 + 4'],
    ['sample', directory, '3 + 4', '--chat'],
    ['evaluate', directory, f'--suite={suite}'],
  ):
    error = error_of(capsys, *arguments).splitlines()[-1]
    assert error.endswith(" without a token for '+'")
    location = f'row 2 of {suite}: ' if arguments[0] == 'evaluate' else ''
    assert error.startswith(f'covrl: {location}{refusal}')


def test_notes_on_chats_and_suites_are_printed_without_training(
  model, tmp_path, capsys, monkeypatch
):
  directory = shutil.copytree(model, tmp_path / 'model')
  # The end of a turn is not an end token.
  (directory / 'generation_config.json').write_text('{"eos_token_id": [300]}')
  suite = tmp_path / 'suite.jsonl'
  suite.write_text('{"question": "What?", "answer": "None"}\n' * 2)
  prompts = tmp_path / 'prompts.jsonl'
  prompts.write_text('{"prompt": "What?"}')
  # Nothing is sampled.
  monkeypatch.setattr(
    'covrl.train.setup.sample.sample_responses', lambda *_, **__: [('r', -1.0)]
  )
  monkeypatch.setattr(
    'covrl.serve.sample_lines',
    lambda engine, tokenizer, lines, **_: (
      {'line': number} for number, _ in enumerate(lines, 1)
    ),
  )
  monkeypatch.setattr(ServedPolicy, 'engine', lambda *_, **__: None)
  monkeypatch.setattr(
    OpenedRun, 'evaluate', lambda opened, **_: evaluated(opened)
  )
  note = 'responses do not end with <|im_end|>, which the chat template writes'
  for arguments in (['What?'], [f'--file={prompts}']):
    for chat in ([], ['--chat']):
      main(['sample', str(directory), *arguments, *chat])
      printed = capsys.readouterr()
      assert printed.err.count(note) == len(chat)
      assert printed.out.count('\n') == 1
  main(
    ['evaluate', str(directory), f'--suite={suite}', '--max_prompt_length=320']
  )
  printed = capsys.readouterr()
  for text in (
    note,
    "warning: 2 of 2 answers are the text 'None'",
    '2 problems (schema',
    '1 of which repeat a question of the set',
  ):
    assert printed.err.count(text) == 1
    assert text not in printed.out


def evaluated(opened):
  """An evaluation without responses, of the suites of an opened policy."""
  results = [
    SuiteResult(
      suite=suite,
      greedy=np.zeros(len(suite.problems)),
      correct=np.zeros((len(suite.problems), 0)),
      responses=[[''] for _ in suite.problems],
    )
    for suite in opened.task.suites
  ]
  return Evaluation(results=tuple(results), entropy=0.0)


@pytest.fixture
def short_model(model, tmp_path):
  """The model with 32 positions."""
  directory = shutil.copytree(model, tmp_path / 'short')
  fields = json.loads((directory / 'config.json').read_text())
  fields['max_position_embeddings'] = 32
  (directory / 'config.json').write_text(json.dumps(fields))
  return directory


@pytest.mark.parametrize(
  ('name', 'changes', 'positions'),
  [
    ('qwen2', {}, 64),
    ('llama3', {}, 64),
    ('qwen2_yarn', {}, 64),
    # Extended by YaRN; the file states the length before.
    ('qwen2_yarn', {'max_position_embeddings': 16}, 64),
    ('qwen2', {'max_position_embeddings': None}, None),
    (
      'qwen2',
      {'rope_scaling': {'rope_type': 'linear', 'factor': 4.0}},
      256,
    ),
  ],
)
def test_number_of_positions_includes_the_extension_by_rope_scaling(
  name, changes, positions, tmp_path
):
  directory = MODELS / name
  if changes:
    directory = copy_of(name, tmp_path)
    fields = json.loads((directory / 'config.json').read_text())
    (directory / 'config.json').write_text(json.dumps(fields | changes))
  assert max_positions(directory) == positions


def test_responses_fit_into_the_positions(short_model, capsys, monkeypatch):
  limits = []

  def sample(*args, rollout, **kwargs):
    limits.append(rollout.max_response_length)
    return []

  monkeypatch.setattr('covrl.train.setup.sample.sample_responses', sample)
  prompt = 'What is 1 + 1?'
  length = len(load_tokenizer(short_model).encode(prompt))
  main(['sample', str(short_model), prompt])
  main(['sample', str(short_model), prompt, f'--max_length={32 - length}'])
  assert limits == [32 - length, 32 - length]
  assert error_of(
    capsys, 'sample', short_model, prompt, f'--max_length={33 - length}'
  ).endswith(
    f'--max_length must be at most {32 - length}, the 32 positions of {short_model}'
    f' without the {length} tokens of the prompt, got {33 - length}\n'
  )
  assert error_of(capsys, 'sample', short_model, prompt * 9).endswith(
    f'the prompt must have fewer tokens than {short_model} has positions (32), got'
    f' {9 * length}\n'
  )


@pytest.mark.parametrize(
  ('given_lengths', 'lengths'),
  [
    ((None, None), (16, 16)),
    ((20, None), (20, 12)),
    ((None, 28), (4, 28)),
    ((30, 2), (30, 2)),
  ],
)
def test_default_lengths_fit_into_the_positions(
  short_model, given_lengths, lengths
):
  actual = model_lengths(str(short_model), given_lengths, (2048, 8192))
  assert actual == lengths


@pytest.mark.parametrize(
  ('given_lengths', 'message'),
  [
    (
      (None, 32),
      r'^--max_length must be below 32, the positions of .* got 32$',
    ),
    ((40, None), r'^--max_prompt_length must be below 32, .* got 40$'),
    (
      (30, 3),
      r'^--max_prompt_length \+ --max_length must be at most 32, .* got 30 \+ 3$',
    ),
    ((None, 0), r'^--max_length must be at least 1, got 0$'),
  ],
)
def test_given_lengths_must_fit_into_the_positions(
  short_model, given_lengths, message
):
  with pytest.raises(ValueError, match=message):
    model_lengths(str(short_model), given_lengths, (2048, 8192))


def test_a_recipe_must_fit_into_the_positions(short_model):
  config = Config(pretrained=str(short_model))
  config.rollout.max_prompt_length, config.rollout.max_response_length = 20, 12
  check_lengths(config, str(short_model))
  config.rollout.max_response_length = 13
  with pytest.raises(ConfigError, match=r'at most 32, the positions of .* 20'):
    check_lengths(config, str(short_model))


def test_convert_exports_a_model(tmp_path, capsys):
  main(
    [
      'convert',
      str(MODELS / 'llama3'),
      str(tmp_path / 'wide'),
      '--dtype=float32',
    ]
  )
  wide = tensors_of(tmp_path / 'wide')
  for name, tensor in tensors_of(MODELS / 'llama3').items():
    assert wide[name].dtype == np.float32
    np.testing.assert_array_equal(wide[name], tensor.astype(np.float32))
  main(['convert', str(tmp_path / 'wide'), str(tmp_path / 'copy'), '--orbax'])
  assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / 'copy')
  assert not list((tmp_path / 'copy').glob('*.safetensors'))
  policy, params = load_pretrained(tmp_path / 'wide')
  again, params_again = load_pretrained(tmp_path / 'copy')
  assert again == policy
  assert_trees_equal(params, params_again)
  assert load_policy(tmp_path / 'copy').files == policy.files


def test_export_keeps_tokenizer_and_generation_settings(model, tmp_path):
  policy, params = load_pretrained(model)
  save_pretrained(tmp_path / 'out', policy, params)
  file = (tmp_path / 'out' / 'tokenizer.json').read_bytes()
  assert JsonTokenizer(file, end_tokens=['<|im_end|>']).end_ids == (302,)
  settings = json.loads(
    (tmp_path / 'out' / 'generation_config.json').read_text()
  )
  assert settings == {'eos_token_id': [302, 300]}


def test_reports_invalid_models_in_one_sentence(tmp_path, capsys, monkeypatch):
  def offline(name, **options):
    raise LocalEntryNotFoundError(f'{name} is not here. Try again later.')

  monkeypatch.setattr('huggingface_hub.snapshot_download', offline)
  with pytest.raises(SystemExit):
    main(['convert', 'someone/missing', str(tmp_path / 'out')])
  error = capsys.readouterr().err
  assert error.endswith('from the hub: someone/missing is not here\n')
  assert not (tmp_path / 'out').exists()
