# SPDX-License-Identifier: Apache-2.0
"""Tokenizers, chat templates and end tokens beside adapters."""

import json
import shutil

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

from covrl.cli import main
from covrl.pretrained import load_chat_template, load_policy, load_tokenizer
from covrl.pretrained.tokenizer import unused_turn_end

CHAT = [{'role': 'user', 'content': 'ab'}]
TEMPLATE = (
  '{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}'
  '{% if add_generation_prompt %}Answer:{% endif %}'
)


@pytest.fixture
def model(tmp_path):
  """A model with one end token, that of a text."""
  return save_text_model(
    tmp_path / 'model', generation_config={'eos_token_id': END_OF_TEXT}
  )


@pytest.fixture
def adapters(model, tmp_path):
  """Adapters on the model, without other files beside them."""
  return save_text_adapters(tmp_path / 'adapters', model)


def add_tokenizer(adapters, **config):
  """Puts another tokenizer with these fields of its config beside adapters."""
  shutil.copy(TOKENIZERS / 'bytes' / 'tokenizer.json', adapters)
  swap_letters(adapters / 'tokenizer.json')
  edit(adapters / 'tokenizer_config.json', **config)


def test_adapters_without_a_tokenizer_have_that_of_their_base_model(
  model, adapters
):
  assert {file.name for file in adapters.iterdir()} == {
    'adapter_config.json',
    'adapter_model.safetensors',
  }
  tokenizer = load_tokenizer(adapters)
  assert tokenizer.to_bytes() == load_tokenizer(model).to_bytes()
  assert tokenizer.end_ids == (END_OF_TEXT,)
  assert load_chat_template(adapters) == load_chat_template(model)
  # Fields of a tokenizer that is not there state no end tokens.
  edit(adapters / 'tokenizer_config.json', eos_token='<|im_end|>')
  assert load_tokenizer(adapters).end_ids == (END_OF_TEXT,)
  assert load_chat_template(adapters) == load_chat_template(model)


def test_a_tokenizer_beside_adapters_is_used(model, adapters):
  add_tokenizer(adapters, eos_token='<|im_end|>')
  tokenizer = load_tokenizer(adapters)
  a, b = load_tokenizer(model).encode('ab c')[:2]
  assert tokenizer.encode('a') == [b]
  assert tokenizer.encode('b') == [a]
  assert tokenizer.vocab_size == 320
  # Its end token comes before that of the base model, which ends responses, too.
  assert tokenizer.end_ids == (TURN_END, END_OF_TEXT)
  assert tokenizer.pad_id == TURN_END
  edit(adapters / 'generation_config.json', eos_token_id=[TURN_START])
  assert load_tokenizer(adapters).end_ids == (TURN_START, END_OF_TEXT)
  # Without a template beside them, the base model's has the tokenizer's tokens.
  (model / 'chat_template.jinja').write_text(TEMPLATE)
  assert load_chat_template(adapters).render(CHAT) == 'ab<|im_end|>Answer:'


def test_end_tokens_beside_adapters_need_no_tokenizer(adapters):
  edit(adapters / 'generation_config.json', eos_token_id=TURN_END)
  assert load_tokenizer(adapters).end_ids == (TURN_END, END_OF_TEXT)


@pytest.mark.parametrize(
  'file', ['chat_template.jinja', 'tokenizer_config.json']
)
def test_a_chat_template_beside_adapters_is_used(model, adapters, file):
  if file == 'chat_template.jinja':
    (adapters / file).write_text(TEMPLATE)
  else:
    edit(adapters / file, chat_template=TEMPLATE)
  # The special tokens in it are those of the tokenizer, the base model's.
  template = load_chat_template(adapters)
  assert template.render(CHAT) == 'ab<|im_end|>Answer:'
  assert template.file == str(adapters / file)
  # The turn's end in the template is not among the end tokens.
  tokenizer = load_tokenizer(adapters)
  assert unused_turn_end(adapters, tokenizer) == '<|im_end|>'
  edit(adapters / 'generation_config.json', eos_token_id=[TURN_START, TURN_END])
  tokenizer = load_tokenizer(adapters)
  assert tokenizer.end_ids == (TURN_END, TURN_START, END_OF_TEXT)
  assert unused_turn_end(adapters, tokenizer) is None


def test_tokens_that_were_added_beside_adapters_alone_are_refused(
  model, adapters
):
  edit(model / 'config.json', vocab_size=303)
  add_tokenizer(adapters, eos_token='<|im_end|>')
  assert load_tokenizer(adapters).vocab_size == 303
  file = adapters / 'tokenizer.json'
  fields = json.loads(file.read_text())
  fields['added_tokens'].append(
    {**fields['added_tokens'][0], 'id': 303, 'content': '<turn>'}
  )
  file.write_text(json.dumps(fields))
  for load in (load_tokenizer, load_policy):
    with pytest.raises(
      ValueError, match=r"of 303, got '<turn>' with the id 303$"
    ):
      load(adapters)
  # Those of the base model's tokenizer may have no embedding, as of images.
  shutil.copy(file, model)
  assert load_tokenizer(adapters).vocab_size == 303


def test_merged_and_copied_adapters_keep_their_tokenizer(
  model, adapters, tmp_path, capsys
):
  edit(model / 'generation_config.json', temperature=0.6)
  add_tokenizer(adapters, eos_token='<|im_end|>')
  (adapters / 'chat_template.jinja').write_text(TEMPLATE)
  expected, template = load_tokenizer(adapters), load_chat_template(adapters)
  main(['convert', str(adapters), str(tmp_path / 'merged')])
  main(['convert', str(adapters), str(tmp_path / 'copy'), '--adapter'])
  capsys.readouterr()
  for name in ('merged', 'copy'):
    tokenizer = load_tokenizer(tmp_path / name)
    assert tokenizer.to_bytes() == expected.to_bytes()
    assert tokenizer.end_ids == expected.end_ids == (TURN_END, END_OF_TEXT)
    loaded_template = load_chat_template(tmp_path / name)
    assert loaded_template.render(CHAT) == template.render(CHAT)
    generation = (tmp_path / name / 'generation_config.json').read_text()
    assert json.loads(generation)['temperature'] == 0.6
  shutil.rmtree(model)
  assert load_tokenizer(tmp_path / 'merged').end_ids == expected.end_ids
