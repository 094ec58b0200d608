# SPDX-License-Identifier: Apache-2.0
"""Chat templates that leave out the question or settings of the prompt."""

import argparse
import json
import pathlib
import shutil

import pytest

from covrl.cli.policies import prompt_format
from covrl.config import Config, ConfigError
from covrl.tasks.text import text_task

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


@pytest.mark.parametrize(
  ('template', 'data', 'error'),
  [
    (
      '{{ messages[-1].content }}',
      {'template_variables': '{"enable_thinkin": false}'},
      "got 'enable_thinkin', which .* does not read",
    ),
    (
      '{{ messages[-1].content }}',
      {'system': 'Be brief.'},
      r'data\.system must be written by the chat template, got .* leaves it out',
    ),
    (
      '{{ messages[0].content }}',
      {'system': 'Be brief.'},
      'a question must be written by the chat template, got .* leaves it out',
    ),
    ('Hello', {}, 'a question must be written by the chat template'),
  ],
)
def test_refuses_chat_templates_that_leave_out_text(
  tmp_path, template, data, error
):
  model = pathlib.Path(
    shutil.copytree(GOLDEN / 'tokenizers' / 'bytes', tmp_path / 'model')
  )
  (model / 'chat_template.jinja').write_text(template)
  config = Config(pretrained=str(model))
  config.data.train = str(GOLDEN / 'data' / 'plain.jsonl')
  for name, value in data.items():
    setattr(config.data, name, value)
  with pytest.raises(ConfigError, match=error):
    text_task(config)


def text_task_of(tmp_path, template, **files):
  """Returns a task whose model has a chat template and other files."""
  model = pathlib.Path(
    shutil.copytree(GOLDEN / 'tokenizers' / 'bytes', tmp_path / 'model')
  )
  (model / 'chat_template.jinja').write_text(template)
  for name, fields in files.items():
    (model / f'{name}.json').write_text(json.dumps(fields))
  config = Config(pretrained=str(model))
  config.data.train = str(GOLDEN / 'data' / 'plain.jsonl')
  config.rollout.max_prompt_length = 1000
  return text_task(config)


@pytest.mark.parametrize(
  ('ends', 'is_named'), [([300], True), ([300, 302], False)]
)
def test_an_end_of_a_turn_that_ends_no_response_is_noted(
  tmp_path, ends, is_named
):
  template = (
    '{% for m in messages %}{{ m.content }}<|im_end|>\n{% endfor %}'
    '{% if add_generation_prompt %}Answer:{% endif %}'
  )
  task = text_task_of(
    tmp_path, template, generation_config={'eos_token_id': ends}
  )
  notes = [note for note in task.notes if 'responses do not end with' in note]
  assert len(notes) == is_named
  assert all('with <|im_end|>, which the chat template' in n for n in notes)


def test_prompts_and_samples_have_the_same_date(tmp_path):
  template = "{{ strftime_now('%d %b %Y') }}: {{ messages[-1].content }}"
  task = text_task_of(tmp_path, template)
  arguments = argparse.Namespace(
    policy='model', chat=True, template_variables=''
  )
  config = Config(pretrained=str(tmp_path / 'model'))
  date = task.train[0].prompt.partition(':')[0]
  assert prompt_format(arguments, config)('q') == f'{date}: q'


def test_samples_have_the_system_message_of_the_run(tmp_path):
  template = '{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}'
  text_task_of(tmp_path, template)
  arguments = argparse.Namespace(
    policy='model', chat=True, template_variables=''
  )
  config = Config(pretrained=str(tmp_path / 'model'))
  assert prompt_format(arguments, config)('q') == 'user: q;'
  config.data.system = 'Be brief.'
  prompt = prompt_format(arguments, config)('q')
  assert prompt == 'system: Be brief.;user: q;'


def test_rows_whose_text_is_not_in_their_prompt_as_it_is_are_warned_of(
  tmp_path,
):
  """Training files and evaluation sets have a warning each, of their own rows."""
  model = pathlib.Path(
    shutil.copytree(GOLDEN / 'tokenizers' / 'bytes', tmp_path / 'model')
  )
  (model / 'chat_template.jinja').write_text(
    "{% for m in messages if m.role == 'user' %}{{ m.content }};{% endfor %}"
  )
  system = {'role': 'system', 'content': 'Give the answer plus 7.'}
  questions = ['1 + 1?', '2 + 2?<|im_end|>4', '3 + 3?', '4 + 4?']
  for name, rows in (('train', questions), ('suite', questions[:2])):
    conversations = [
      [
        *([system] * (number > 1)),
        {'role': 'user', 'content': f'{name} {text}'},
      ]
      for number, text in enumerate(rows, 1)
    ]
    (tmp_path / f'{name}.jsonl').write_text(
      ''.join(
        json.dumps({'prompt': messages, 'answer': '1'}) + '\n'
        for messages in conversations
      )
    )
  config = Config(pretrained=str(model))
  config.rollout.max_prompt_length = 1000
  config.data.bare_questions = False
  config.data.train = str(tmp_path / 'train.jsonl')
  config.evaluate.suites = str(tmp_path / 'suite.jsonl')
  warnings = [n for n in text_task(config).notes if n.startswith('warning')]
  for name, total, lacking in (('train', 4, 3), ('suite', 2, 1)):
    row = f'(first: row 2 of {tmp_path / name}.jsonl)'
    assert (
      'warning: the chat template leaves out text of messages in'
      f' {lacking} of {total} prompts: system in {lacking} {row}'
    ) in warnings
    assert any(
      text.startswith(f'warning: 1 of {total} problems have special tokens')
      and text.endswith(f': <|im_end|> in 1 {row}')
      for text in warnings
    )
  assert len(warnings) == 4
