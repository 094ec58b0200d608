# SPDX-License-Identifier: Apache-2.0
"""Exports of runs with another tokenizer or other end tokens than their model."""

import json

import pytest
from pretrained.text_models import (
  END_OF_TEXT,
  TOKENIZERS,
  TURN_END,
  TURN_START,
  edit,
  save_text_adapters,
  save_text_model,
  swap_letters,
)

from covrl.data import JsonTokenizer, SentencePieceTokenizer
from covrl.data.chat import ChatTemplate
from covrl.models import Policy
from covrl.pretrained import (
  as_pretrained,
  load_chat_template,
  load_policy,
  load_tokenizer,
  model_files,
)
from covrl.pretrained.convert import OutputFormat
from covrl.pretrained.resolve import CONFIG_FILES

CHAT = [{'role': 'user', 'content': 'ab'}]
TEMPLATE = '\n{{ bos_token }}{{ messages[-1].content }}{{ eos_token }}\n'
TOKENIZER = (TOKENIZERS / 'bytes' / 'tokenizer.json').read_bytes()


@pytest.fixture
def model(tmp_path):
  """A model with two end tokens."""
  return save_text_model(
    tmp_path / 'model',
    generation_config={
      'eos_token_id': [TURN_END, END_OF_TEXT],
      'temperature': 0.6,
    },
  )


def export(model, tokenizer, target, output_format: OutputFormat = 'model'):
  """Writes the files of an export, without weights; returns their content."""
  policy = as_pretrained(
    Policy(load_policy(model).config), str(model), tokenizer, output_format
  )
  is_adapter = output_format == 'adapter'
  if is_adapter:
    save_text_adapters(target, model)
  else:
    target.mkdir()
  files = dict(policy.adapter_files if is_adapter else policy.files)
  for name, content in files.items():
    (target / name).write_bytes(content)
  return files


def files_of(model):
  """Content of a model's configuration and tokenizer files."""
  return {
    name: (model / name).read_bytes()
    for name in CONFIG_FILES
    if (model / name).exists()
  }


def test_the_files_of_the_model_are_exported_where_nothing_differs(
  model, tmp_path
):
  tokenizer = load_tokenizer(model)
  assert export(model, tokenizer, tmp_path / 'out') == files_of(model)
  assert export(model, tokenizer, tmp_path / 'adapters', 'adapter') == {}


@pytest.mark.parametrize(
  ('ends', 'pad'),
  [([TURN_START], None), ([END_OF_TEXT, TURN_START], 0), ([TURN_END], None)],
)
def test_responses_of_an_export_end_as_those_of_the_run(
  model, tmp_path, ends, pad
):
  tokenizer = JsonTokenizer(
    TOKENIZER, end_tokens=ends, pad_token=pad, vocab_size=320
  )
  files = export(model, tokenizer, tmp_path / 'out')
  assert json.loads(files.pop('generation_config.json')) == {
    'eos_token_id': ends,
    'pad_token_id': tokenizer.pad_id,
    'temperature': 0.6,
  }
  expected = files_of(model)
  del expected['generation_config.json']
  assert files == expected
  assert load_tokenizer(tmp_path / 'out').end_ids == tuple(ends)


@pytest.mark.parametrize('place', ['chat_template', 'tokenizer_config'])
def test_another_tokenizer_replaces_that_of_the_model(model, tmp_path, place):
  config = {'eos_token': '<|im_end|>', 'bos_token': '"<|im_start|>"'}
  if place == 'chat_template':
    (model / 'chat_template.jinja').write_text(TEMPLATE)
  else:
    (model / 'chat_template.jinja').unlink()
    config |= {'chat_template': TEMPLATE}
  edit(model / 'tokenizer_config.json', **config)
  edit(model / 'special_tokens_map.json', unk_token='<unk>')
  (model / 'merges.txt').write_text('')
  (tmp_path / 'tokenizer.json').write_bytes(TOKENIZER)
  swap_letters(tmp_path / 'tokenizer.json')
  tokenizer = JsonTokenizer.load(
    tmp_path / 'tokenizer.json', end_tokens=[TURN_START], vocab_size=320
  )
  files = export(model, tokenizer, tmp_path / 'out')
  assert sorted(files) == [
    'chat_template.jinja',
    'config.json',
    'generation_config.json',
    'tokenizer.json',
  ]
  exported = load_tokenizer(tmp_path / 'out')
  assert exported.to_bytes() == tokenizer.to_bytes()
  assert exported.end_ids == (TURN_START,)
  # The template has the special tokens with which the run formatted prompts.
  prompt = load_chat_template(model).render(CHAT)
  assert prompt == '\n"<|im_start|>"ab<|im_end|>'
  assert load_chat_template(tmp_path / 'out').render(CHAT) == prompt


def test_a_model_without_a_tokenizer_gets_that_of_the_run(model, tmp_path):
  for name in ('tokenizer.json', 'tokenizer_config.json'):
    (model / name).unlink()
  tokenizer = JsonTokenizer(TOKENIZER, end_tokens=[7], vocab_size=320)
  export(model, tokenizer, tmp_path / 'out')
  exported = load_tokenizer(tmp_path / 'out')
  assert exported.to_bytes() == TOKENIZER
  assert exported.end_ids == (7,)


@pytest.mark.parametrize('adds_bos', [True, False])
def test_prompts_of_an_export_begin_as_those_of_the_run(tmp_path, adds_bos):
  """A file of sentencepiece does not determine this."""
  model = save_text_model(
    tmp_path / 'model',
    'pieces',
    generation_config={'eos_token_id': [2, 5]},
    tokenizer_config={'add_bos_token': not adds_bos, 'model_max_length': 9},
  )
  tokenizer = SentencePieceTokenizer(
    (model / 'tokenizer.model').read_bytes(), [2, 5], adds_bos=adds_bos
  )
  files = export(model, tokenizer, tmp_path / 'out')
  assert load_tokenizer(tmp_path / 'out').bos_id == tokenizer.bos_id
  config = json.loads(files['tokenizer_config.json'])
  assert config == {'add_bos_token': adds_bos, 'model_max_length': 9}


def test_a_bos_token_that_the_file_does_not_add_is_refused(model, tmp_path):
  tokenizer = JsonTokenizer(
    TOKENIZER, end_tokens=[TURN_END], bos_token=TURN_START, vocab_size=320
  )
  with pytest.raises(
    ValueError, match='BOS token 301 and a file that adds none'
  ):
    export(model, tokenizer, tmp_path / 'out')


def test_adapters_have_the_end_tokens_of_the_run_beside_them(model, tmp_path):
  tokenizer = JsonTokenizer(
    TOKENIZER,
    end_tokens=[TURN_END, TURN_START, END_OF_TEXT],
    vocab_size=320,
  )
  files = export(model, tokenizer, tmp_path / 'adapters', 'adapter')
  assert files.keys() == {'generation_config.json'}
  assert load_tokenizer(tmp_path / 'adapters').end_ids == tokenizer.end_ids


def test_adapters_whose_base_ends_other_responses_are_refused(model, tmp_path):
  tokenizer = JsonTokenizer(TOKENIZER, end_tokens=[TURN_END], vocab_size=320)
  with pytest.raises(
    ValueError, match=r'--adapter, \[302, 300\], got \[302\]; write all weights'
  ):
    export(model, tokenizer, tmp_path / 'adapters', 'adapter')


def test_adapters_have_another_tokenizer_of_the_run_beside_them(
  model, tmp_path
):
  (tmp_path / 'tokenizer.json').write_bytes(TOKENIZER)
  swap_letters(tmp_path / 'tokenizer.json')
  tokenizer = JsonTokenizer.load(
    tmp_path / 'tokenizer.json',
    end_tokens=[TURN_END, END_OF_TEXT],
    vocab_size=320,
  )
  export(model, tokenizer, tmp_path / 'adapters', 'adapter')
  exported = load_tokenizer(tmp_path / 'adapters')
  assert exported.to_bytes() == tokenizer.to_bytes()
  assert exported.end_ids == (TURN_END, END_OF_TEXT)
  template = load_chat_template(tmp_path / 'adapters')
  assert template.render(CHAT) == load_chat_template(model).render(CHAT)


def test_special_tokens_of_an_exported_template_may_be_any_characters():
  template = ChatTemplate(
    '{{ bos_token }}{{ messages[0].content }}',
    special_tokens={'bos_token': '😀"\\<s>'},
  )
  messages = [{'role': 'user', 'content': 'a'}]
  exported = ChatTemplate(model_files._self_contained(template))
  assert exported.render(messages) == template.render(messages) == '😀"\\<s>a'
