# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and chat templates of pretrained models."""

import json
import pathlib
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.pretrained import load_chat_template, load_tokenizer

TOKENIZERS = pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers'
KINDS = {
  kind: load_tokenizer(TOKENIZERS / kind) for kind in ('bytes', 'pieces')
}


def golden(kind):
  return json.loads((TOKENIZERS / kind / 'golden.json').read_text())


def copy_of(kind, tmp_path):
  return pathlib.Path(shutil.copytree(TOKENIZERS / kind, tmp_path / kind))


def edit(file, **fields):
  known = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(known | fields))


@pytest.mark.parametrize('kind', KINDS)
def test_ids_equal_those_of_the_library(kind):
  words = golden(kind)
  for text, ids in zip(words['texts'], words['ids'], strict=True):
    assert KINDS[kind].encode(text) == ids
    special = set(KINDS[kind].end_ids) & set(ids)
    if not special:
      assert KINDS[kind].decode(ids) == text


@pytest.mark.parametrize('kind', KINDS)
@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_any_text_round_trips(kind, text):
  # U+2581 is how pieces write a space, and they have no zero character.
  text = text.replace('\u2581', '').replace('\0', '')
  assert KINDS[kind].decode(KINDS[kind].encode(text)) == text


def test_unknown_characters_are_encoded_as_bytes():
  ids = KINDS['pieces'].encode('🙂')
  assert len(ids) >= len('🙂'.encode())
  assert KINDS['pieces'].decode(ids) == '🙂'


def test_several_end_tokens(tmp_path):
  assert KINDS['bytes'].end_ids == (302, 300)
  assert KINDS['bytes'].pad_id == 300
  assert KINDS['bytes'].bos_id is None
  assert KINDS['pieces'].end_ids == (2, 5)
  assert KINDS['pieces'].bos_id == 1
  copy = copy_of('bytes', tmp_path)
  (copy / 'generation_config.json').unlink()
  assert load_tokenizer(copy).end_ids == (302,)
  edit(copy / 'config.json', eos_token_id=7)
  assert load_tokenizer(copy).end_ids == (7,)


def test_special_tokens_are_encoded_and_decode_to_nothing():
  tokenizer = KINDS['bytes']
  ids = tokenizer.encode('x<|im_end|>y')
  assert tokenizer.end_ids[0] in ids
  assert tokenizer.decode(ids) == 'xy'


@pytest.mark.parametrize('kind', KINDS)
def test_vocabulary_size_is_that_of_the_model(kind, tmp_path):
  copy = copy_of(kind, tmp_path)
  size = json.loads((copy / 'config.json').read_text())['vocab_size']
  assert KINDS[kind].vocab_size == size
  # Ids beyond the tokenizer, of a padded embedding, have no text.
  if kind == 'bytes':
    assert KINDS[kind].decode([319]) == ''
  for wrong in (200, 4000):
    edit(copy / 'config.json', vocab_size=wrong)
    with pytest.raises(ValueError, match=rf"model's {wrong} tokens.*, got"):
      load_tokenizer(copy)


def test_adds_bos_as_the_files_specify(tmp_path):
  copy = copy_of('bytes', tmp_path)
  file = copy / 'tokenizer_config.json'
  edit(file, bos_token={'content': '<|im_start|>', 'special': True})
  assert load_tokenizer(copy).bos_id == 301
  edit(file, add_bos_token=False)
  assert load_tokenizer(copy).bos_id is None


def test_names_missing_files(tmp_path):
  copy = copy_of('pieces', tmp_path)
  (copy / 'tokenizer.model').unlink()
  with pytest.raises(ValueError, match=r'tokenizer\.json or tokenizer\.model'):
    load_tokenizer(copy)
  (copy / 'config.json').unlink()
  with pytest.raises(ValueError, match='must say what ends a response'):
    load_tokenizer(copy)


def test_renders_conversations_like_transformers(tmp_path):
  words = golden('bytes')
  template = load_chat_template(TOKENIZERS / 'bytes')
  assert template.render(words['chat']) == words['chat_text']
  shorter = template.render(words['chat'], add_generation_prompt=False)
  assert words['chat_text'] == shorter + '<|im_start|>assistant\n'
  # In tokenizer_config.json, as in older files: alone and among several.
  copy = copy_of('bytes', tmp_path)
  (copy / 'chat_template.jinja').unlink()
  for stated in (
    template.source,
    [{'name': 'default', 'template': template.source}],
  ):
    edit(copy / 'tokenizer_config.json', chat_template=stated)
    again = load_chat_template(copy)
    assert again.render(words['chat']) == words['chat_text']
    assert again.special_tokens['eos_token'] == '<|im_end|>'


def test_templates_can_refuse_and_be_refused(tmp_path):
  template = load_chat_template(TOKENIZERS / 'bytes')
  with pytest.raises(ValueError, match='refuses this: no such role: tool'):
    template.render([{'role': 'tool', 'content': ''}])
  with pytest.raises(ValueError, match='must have a chat_template'):
    load_chat_template(TOKENIZERS / 'pieces')
  copy = copy_of('bytes', tmp_path)
  (copy / 'chat_template.jinja').write_text('{% if %}')
  with pytest.raises(ValueError, match='must be jinja2 that renders'):
    load_chat_template(copy).render([])
  (copy / 'chat_template.jinja').write_text('{{ messages.__class__.mro() }}')
  with pytest.raises(ValueError, match='must be jinja2 that renders'):
    load_chat_template(copy).render([])
