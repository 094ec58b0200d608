# SPDX-License-Identifier: Apache-2.0
"""Tokenizers and chat templates of pretrained models."""

import json
import pathlib
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pretrained.text_models import remove_character

from covrl.data import Problem, token_rows
from covrl.pretrained import load_chat_template, load_tokenizer
from covrl.pretrained.tokenizer import unused_turn_end

TOKENIZERS = pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers'
LOADED = {
  kind: load_tokenizer(TOKENIZERS / kind) for kind in ('bytes', 'pieces')
}


def golden(kind):
  """Texts and ids of a golden tokenizer."""
  return json.loads((TOKENIZERS / kind / 'golden.json').read_text())


def copy_of(kind, tmp_path):
  """Copies a golden tokenizer, to be modified."""
  return pathlib.Path(shutil.copytree(TOKENIZERS / kind, tmp_path / kind))


def edit(file, **fields):
  """Replaces fields of a JSON file, or creates it."""
  old_fields = json.loads(file.read_text()) if file.exists() else {}
  file.write_text(json.dumps(old_fields | fields))


@pytest.mark.parametrize('kind', LOADED)
def test_ids_equal_those_of_the_library(kind):
  expected = golden(kind)
  for text, ids in zip(expected['texts'], expected['ids'], strict=True):
    assert LOADED[kind].encode(text) == ids
    special = set(LOADED[kind].end_ids) & set(ids)
    if not special:
      assert LOADED[kind].decode(ids) == text


@pytest.mark.parametrize('kind', LOADED)
@settings(max_examples=50, deadline=None)
@given(st.text(max_size=20))
def test_any_text_round_trips(kind, text):
  # Pieces write a space as U+2581, and have no zero character.
  text = text.replace('\u2581', '').replace('\0', '')
  assert LOADED[kind].decode(LOADED[kind].encode(text)) == text


def test_unknown_characters_are_encoded_as_bytes():
  ids = LOADED['pieces'].encode('🙂')
  assert len(ids) >= len('🙂'.encode())
  assert LOADED['pieces'].decode(ids) == '🙂'


def test_end_tokens_are_those_of_the_generation_config_or_else_the_config(
  tmp_path,
):
  assert LOADED['bytes'].end_ids == (302, 300)
  assert LOADED['bytes'].pad_id == 300
  assert LOADED['bytes'].bos_id is None
  assert LOADED['pieces'].end_ids == (2, 5)
  assert LOADED['pieces'].bos_id == 1
  copy = copy_of('bytes', tmp_path)
  (copy / 'generation_config.json').unlink()
  assert load_tokenizer(copy).end_ids == (302,)
  edit(copy / 'config.json', eos_token_id=7)
  assert load_tokenizer(copy).end_ids == (7,)


def test_special_tokens_are_encoded_and_decode_to_nothing():
  tokenizer = LOADED['bytes']
  ids = tokenizer.encode('x<|im_end|>y')
  assert tokenizer.end_ids[0] in ids
  assert tokenizer.decode(ids) == 'xy'


@pytest.mark.parametrize('kind', LOADED)
def test_vocabulary_size_is_that_of_the_model(kind, tmp_path):
  copy = copy_of(kind, tmp_path)
  size = json.loads((copy / 'config.json').read_text())['vocab_size']
  assert LOADED[kind].vocab_size == size
  # Ids beyond the tokenizer, of a padded embedding, have no text.
  if kind == 'bytes':
    assert LOADED[kind].decode([319]) == ''
  for wrong in (200, 4000):
    edit(copy / 'config.json', vocab_size=wrong)
    with pytest.raises(ValueError, match=rf"model's {wrong} tokens.*, got"):
      load_tokenizer(copy)


def test_ids_outside_the_vocabulary_are_refused(tmp_path):
  copy = copy_of('bytes', tmp_path)
  file = copy / 'tokenizer.json'
  fields = json.loads(file.read_text())
  (letter,) = (t for t, n in fields['model']['vocab'].items() if n == 65)
  fields['model']['vocab'][letter] = 100_000
  file.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match='got 303 with ids up to 100000'):
    load_tokenizer(copy)
  # Special tokens may have no embedding, where no text has them.
  fields['model']['vocab'][letter] = 65
  edit(copy / 'config.json', vocab_size=303)
  fields['added_tokens'].append(
    {**fields['added_tokens'][0], 'id': 303, 'content': '<image>'}
  )
  file.write_text(json.dumps(fields))
  tokenizer = load_tokenizer(copy)
  for prompt, solution in (('an <image>', 'b'), ('a', 'an <image>')):
    problem = Problem(
      prompt=prompt, solution=solution, reference='', source='s'
    )
    with pytest.raises(ValueError, match=r'in \[0, 303\), the vocab.*got 303'):
      token_rows([problem], tokenizer, 20)


def test_added_tokens_keep_their_ids_or_are_refused(tmp_path):
  """The library gives them the next free id and ignores the id in the file."""
  copy = copy_of('bytes', tmp_path)
  file = copy / 'tokenizer.json'
  fields = json.loads(file.read_text())
  last = fields['added_tokens'][-1]
  fields['added_tokens'].append({**last, 'id': 310, 'content': '<far>'})
  file.write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=r"'<far>' with 310 in place of 303"):
    load_tokenizer(copy)


def test_add_bos_token_is_true_or_false(tmp_path):
  copy = copy_of('pieces', tmp_path)
  (copy / 'tokenizer_config.json').write_text('{"add_bos_token": "false"}')
  with pytest.raises(ValueError, match='must be true or false, got false'):
    load_tokenizer(copy)


def test_tokenizer_models_add_bos_unless_the_config_disables_it(tmp_path):
  copy = copy_of('pieces', tmp_path)
  file = copy / 'tokenizer_config.json'
  edit(file, add_bos_token=True)
  assert load_tokenizer(copy).bos_id == 1
  edit(file, add_bos_token=False)
  assert load_tokenizer(copy).bos_id is None


def test_control_tokens_between_turns_are_encoded():
  tokenizer = LOADED['pieces']
  first, second = tokenizer.encode('one'), tokenizer.encode('two')
  assert tokenizer.encode('<s>one</s>two') == [1, *first, 2, *second]


@pytest.mark.parametrize(
  'setting',
  [
    {
      'truncation': {
        'direction': 'Right',
        'max_length': 4,
        'strategy': 'LongestFirst',
        'stride': 0,
      }
    },
    {
      'padding': {
        'strategy': {'Fixed': 64},
        'direction': 'Left',
        'pad_to_multiple_of': None,
        'pad_id': 300,
        'pad_type_id': 0,
        'pad_token': '<|endoftext|>',
      }
    },
    {'dropout': 0.9},
  ],
)
def test_truncation_padding_and_dropout_do_not_change_ids(setting, tmp_path):
  copy = copy_of('bytes', tmp_path)
  file = copy / 'tokenizer.json'
  if 'dropout' in setting:
    edit(file, model=json.loads(file.read_text())['model'] | setting)
  else:
    edit(file, **setting)
  tokenizer, expected = load_tokenizer(copy), golden('bytes')
  for text, ids in zip(expected['texts'], expected['ids'], strict=True):
    assert tokenizer.encode(text) == ids


def end_of_turn(directory):
  """The last target of supervised training."""
  tokenizer = load_tokenizer(directory)
  solved = Problem(prompt='a', reference='', source='', solution='b')
  rows = token_rows([solved], tokenizer, 8)
  return rows.targets[0][rows.loss_mask[0]][-1], tokenizer.end_ids


def test_supervised_targets_end_with_the_end_of_a_turn(tmp_path):
  copy = copy_of('bytes', tmp_path)
  edit(copy / 'generation_config.json', eos_token_id=[301, 300, 302])
  # The token with which the chat template ends a turn.
  assert end_of_turn(copy) == (302, (302, 301, 300))
  edit(copy / 'tokenizer_config.json', eos_token='<|endoftext|>')
  assert end_of_turn(copy) == (302, (302, 301, 300))
  (copy / 'chat_template.jinja').unlink()
  assert end_of_turn(copy) == (300, (300, 301, 302))
  # A token at which sampling does not end is not trained.
  edit(copy / 'tokenizer_config.json', eos_token='a')
  assert end_of_turn(copy) == (301, (301, 300, 302))


def test_the_end_of_a_turn_is_found_without_a_token_for_the_line_break(
  tmp_path,
):
  copy = copy_of('bytes', tmp_path)
  edit(copy / 'generation_config.json', eos_token_id=[301, 300, 302])
  remove_character(copy / 'tokenizer.json', 'Ċ')
  tokenizer = load_tokenizer(copy)
  with pytest.raises(ValueError, match=r"without a token for '\\n'"):
    tokenizer.encode('<|im_end|>\n')
  assert tokenizer.end_ids == (302, 301, 300)
  assert unused_turn_end(copy, tokenizer) is None
  edit(copy / 'generation_config.json', eos_token_id=[300])
  assert unused_turn_end(copy, load_tokenizer(copy)) == '<|im_end|>'
  # No token has the text of this end.
  template = copy / 'chat_template.jinja'
  template.write_text(template.read_text().replace('<|im_end|>', '\\n.'))
  assert unused_turn_end(copy, load_tokenizer(copy)) is None


@pytest.mark.parametrize(
  ('file', 'fields'),
  [
    ('tokenizer_config.json', {'additional_special_tokens': ['Ġ']}),
    ('special_tokens_map.json', {'additional_special_tokens': ['Ġ']}),
    ('tokenizer_config.json', {'extra_special_tokens': [{'content': 'Ġ'}]}),
    (
      'tokenizer_config.json',
      {'added_tokens_decoder': {'220': {'content': 'Ġ', 'special': True}}},
    ),
  ],
)
def test_special_tokens_may_be_listed_without_names(file, fields, tmp_path):
  copy = copy_of('bytes', tmp_path)
  if not (copy / file).exists():
    (copy / file).write_text('{}')
  # The piece of a blank, which the vocabulary has without a mark.
  assert len(load_tokenizer(copy).encode('Ġ')) > 1
  edit(copy / file, **fields)
  tokenizer = load_tokenizer(copy)
  (token,) = tokenizer.encode('Ġ')
  assert tokenizer.decode([token]) == ''


def test_special_tokens_may_be_in_a_file_of_their_own(tmp_path):
  copy = copy_of('bytes', tmp_path)
  (copy / 'tokenizer_config.json').unlink()
  (copy / 'generation_config.json').unlink()
  edit(copy / 'special_tokens_map.json', eos_token={'content': '<|endoftext|>'})
  assert load_tokenizer(copy).end_ids == (300,)
  assert load_chat_template(copy).special_tokens == {
    'eos_token': '<|endoftext|>'
  }


MALFORMED = {
  'tokenizer_config.json': [
    b'{',
    b'[]',
    b'"x"',
    b'\xff\xfe',
    b'[' * 100_000,
    b'{"bos_token": []}',
    b'{"eos_token": {"text": "a"}}',
    b'{"chat_template": 3}',
    b'{"chat_template": [3]}',
  ],
  'generation_config.json': [
    b'nul',
    b'{"eos_token_id": []}',
    b'{"eos_token_id": "2"}',
    b'{"eos_token_id": 1.5}',
    b'{"eos_token_id": [true]}',
    b'{"eos_token_id": -1}',
  ],
  'config.json': [b'{"vocab_size": "many"}', b'{"vocab_size": 0}', b'3'],
  'tokenizer.json': [b'{}', b'', b'\xff', b'{"model": null}'],
  'chat_template.jinja': [b'\xff', b'{% if %}', b'{{ 1 / 0 }}'],
}


@pytest.mark.parametrize(
  ('name', 'content'), [(n, c) for n, all_ in MALFORMED.items() for c in all_]
)
def test_malformed_files_are_named_in_one_sentence(name, content, tmp_path):
  copy = copy_of('bytes', tmp_path)
  if b'chat_template' in content:
    (copy / 'chat_template.jinja').unlink()
  (copy / name).write_bytes(content)

  def read():
    load_tokenizer(copy)
    load_chat_template(copy).render([])

  with pytest.raises(ValueError) as caught:
    read()
  assert str(copy / name) in str(caught.value)
  assert '\n' not in str(caught.value)


def test_names_missing_files(tmp_path):
  copy = copy_of('pieces', tmp_path)
  (copy / 'tokenizer.model').unlink()
  with pytest.raises(ValueError, match=r'tokenizer\.json or tokenizer\.model'):
    load_tokenizer(copy)
  (copy / 'config.json').unlink()
  with pytest.raises(
    ValueError, match='must name the token that ends a response'
  ):
    load_tokenizer(copy)


def test_renders_conversations_like_transformers(tmp_path):
  expected = golden('bytes')
  template = load_chat_template(TOKENIZERS / 'bytes')
  assert template.render(expected['chat']) == expected['chat_text']
  shorter = template.render(expected['chat'], add_generation_prompt=False)
  assert expected['chat_text'] == shorter + '<|im_start|>assistant\n'
  # In tokenizer_config.json, as in older files: alone and among several.
  copy = copy_of('bytes', tmp_path)
  (copy / 'chat_template.jinja').unlink()
  for template_field in (
    template.source,
    [{'name': 'default', 'template': template.source}],
  ):
    edit(copy / 'tokenizer_config.json', chat_template=template_field)
    reloaded = load_chat_template(copy)
    assert reloaded.render(expected['chat']) == expected['chat_text']
    assert reloaded.special_tokens['eos_token'] == '<|im_end|>'


def test_refusals_by_templates_and_invalid_templates_are_errors(tmp_path):
  template = load_chat_template(TOKENIZERS / 'bytes')
  with pytest.raises(ValueError, match='got its refusal: no such role: tool'):
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
