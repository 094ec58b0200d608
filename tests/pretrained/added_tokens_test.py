# SPDX-License-Identifier: Apache-2.0
"""Special tokens in files beside a sentencepiece `tokenizer.model`."""

import json

import pytest
from pretrained.text_models import TOKENIZERS, edit

from covrl.data import JsonTokenizer, SentencePieceTokenizer
from covrl.models import Policy, tiny
from covrl.pretrained import as_pretrained, load_tokenizer

MODEL = (TOKENIZERS / 'pieces' / 'tokenizer.model').read_bytes()
PLAIN = SentencePieceTokenizer(MODEL)
SIZE = PLAIN.vocab_size
# A piece whose text is not one of a chat template.
PIECE = PLAIN.encode('a')[-1]
START, END = '<|im_start|>', '<|im_end|>'


def write(directory, ids, vocab_size=SIZE, **fields):
  """Writes a tokenizer with added tokens; their other fields are `fields`."""
  directory.mkdir(exist_ok=True)
  (directory / 'tokenizer.model').write_bytes(MODEL)
  edit(directory / 'config.json', vocab_size=vocab_size, eos_token_id=2)
  decoder = {
    str(token): {'content': text, 'special': True, **fields}
    for text, token in ids.items()
  }
  edit(directory / 'tokenizer_config.json', added_tokens_decoder=decoder)
  return directory


@pytest.mark.parametrize('start_id', [PIECE, SIZE + 1])
def test_special_tokens_within_and_beyond_the_pieces_are_encoded_as_such(
  tmp_path, start_id
):
  ids = {START: start_id, END: SIZE}
  tokenizer = load_tokenizer(write(tmp_path, ids, SIZE + 2))
  assert tokenizer.vocab_size == SIZE + 2
  text = f'{START}user b{END}'
  encoded = tokenizer.encode(text)
  assert encoded == [start_id, *PLAIN.encode('user b'), SIZE]
  assert tokenizer.decode(encoded) == 'user b'
  assert isinstance(tokenizer, SentencePieceTokenizer)
  assert {START, END} <= set(tokenizer.special_tokens)
  assert tokenizer.fingerprint != PLAIN.fingerprint


def test_older_files_name_tokens_too(tmp_path):
  write(tmp_path, {}, SIZE + 2)
  edit(tmp_path / 'added_tokens.json', **{START: SIZE, END: SIZE + 1})
  edit(tmp_path / 'special_tokens_map.json', eos_token=END)
  tokenizer = load_tokenizer(tmp_path)
  encoded = tokenizer.encode(f'{START}user b{END}')
  assert encoded == [SIZE, *PLAIN.encode('user b'), SIZE + 1]
  # Tokens that no file calls special have a text.
  assert tokenizer.decode(encoded) == f'{START} user b'


def test_pieces_that_files_call_special_are_encoded_as_such(tmp_path):
  write(tmp_path, {})
  edit(tmp_path / 'tokenizer_config.json', additional_special_tokens=['b'])
  tokenizer = load_tokenizer(tmp_path)
  (token,) = tokenizer.encode('b')
  assert PLAIN.decode([token]) == 'b'
  assert tokenizer.decode([token]) == ''


def test_end_tokens_may_be_added_ones(tmp_path):
  write(tmp_path, {END: SIZE}, SIZE + 1)
  (tmp_path / 'config.json').write_text(json.dumps({'vocab_size': SIZE + 1}))
  edit(tmp_path / 'tokenizer_config.json', eos_token=END)
  assert load_tokenizer(tmp_path).end_ids == (SIZE,)


@pytest.mark.parametrize('strips', [False, True])
def test_whitespace_beside_tokens_is_part_of_them_where_files_say_so(
  tmp_path, strips
):
  write(tmp_path, {START: SIZE}, SIZE + 1, lstrip=strips, rstrip=strips)
  encoded = load_tokenizer(tmp_path).encode(f'a  {START}  b')
  before, after = ('a', 'b') if strips else ('a  ', '  b')
  assert encoded == [*PLAIN.encode(before), SIZE, *PLAIN.encode(after)]


def test_text_behind_a_token_has_no_added_space_if_legacy_is_false(tmp_path):
  write(tmp_path, {START: SIZE}, SIZE + 1)
  edit(tmp_path / 'tokenizer_config.json', legacy=False)
  encoded = load_tokenizer(tmp_path).encode(f'a{START}a</s>a b')
  inner = PLAIN.encode('ba')[len(PLAIN.encode('b')) :]
  assert encoded == [
    *(*PLAIN.encode('a'), SIZE, *inner, 2),
    *(*inner, *PLAIN.encode('b')),
  ]


@pytest.mark.parametrize(
  ('ids', 'size', 'message'),
  [
    ({START: SIZE + 1}, SIZE, None),
    ({START: SIZE}, SIZE + 2, None),
    ({START: 2}, SIZE, None),
    ({'</s>': 7}, SIZE, 'a text and an id of their own'),
    ({'': SIZE}, SIZE, 'a text and an id of their own'),
    ({}, SIZE + 1, f"the model's {SIZE + 1} tokens, got {SIZE}"),
    ({START: SIZE}, SIZE - 1, f"the model's {SIZE - 1} tokens"),
    ({START: 10**6}, 10**6, 'tokens'),
    ({'\ud800': SIZE}, SIZE + 1, 'a token must be valid Unicode'),
    ({START: '-1'}, SIZE, 'must have ids, and tokens with a content'),
    ({1: SIZE}, SIZE, 'must have ids, and tokens with a content'),
  ],
)
def test_files_that_cannot_be_right_are_refused(tmp_path, ids, size, message):
  write(tmp_path, ids, size)
  if message is None:
    load_tokenizer(tmp_path)
    return
  with pytest.raises(ValueError, match=message):
    load_tokenizer(tmp_path)


def test_files_that_disagree_are_refused(tmp_path):
  write(tmp_path, {START: SIZE}, SIZE + 2)
  edit(tmp_path / 'added_tokens.json', **{START: SIZE + 1})
  with pytest.raises(ValueError, match='must have the ids of added_tokens_dec'):
    load_tokenizer(tmp_path)
  edit(tmp_path / 'added_tokens.json', **{START: SIZE, END: SIZE})
  with pytest.raises(ValueError, match='an id of their own'):
    load_tokenizer(tmp_path)


def test_exports_keep_added_tokens(tmp_path):
  ids = {START: PIECE, END: SIZE}
  directory = write(tmp_path / 'run', ids, SIZE + 1, rstrip=True)
  edit(directory / 'tokenizer_config.json', legacy=False)
  tokenizer = load_tokenizer(directory)
  # A base model with the same pieces, another one, and none.
  same = write(tmp_path / 'same', {'<|eot|>': SIZE}, SIZE + 1)
  for base in (str(same), str(TOKENIZERS / 'bytes'), ''):
    policy = as_pretrained(Policy(tiny(SIZE + 1)), base, tokenizer)
    target = tmp_path / f'to-{len(base)}'
    target.mkdir()
    for name, content in policy.files.items():
      (target / name).write_bytes(content)
    edit(target / 'config.json', vocab_size=SIZE + 1)
    exported = load_tokenizer(target)
    assert not isinstance(exported, JsonTokenizer)
    assert exported.fingerprint == tokenizer.fingerprint
    text = f'b{START} a{END}'
    assert exported.encode(text) == tokenizer.encode(text)
