# SPDX-License-Identifier: Apache-2.0
"""Tests of tokenizers: round trips, reproducibility, error messages."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.data import (
  CountdownConfig,
  JsonTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
  check_tokenizer,
  countdown_tokenizer,
  train_sentencepiece,
)
from covrl.data.generated.countdown_problem import vocabulary

CONFIG = CountdownConfig(max_value=20, max_target=30)
COUNTDOWN = countdown_tokenizer(CONFIG)


def json_file() -> bytes:
  """The file of a tokenizer with six words and two special tokens."""
  special = {
    'single_word': False,
    'lstrip': False,
    'rstrip': False,
    'normalized': False,
    'special': True,
  }
  words = ['<unk>', 'a', 'b', 'c', '+', '=']
  return json.dumps(
    {
      'version': '1.0',
      'added_tokens': [
        {'id': 6, 'content': '<s>', **special},
        {'id': 7, 'content': '</s>', **special},
      ],
      'pre_tokenizer': {'type': 'WhitespaceSplit'},
      'model': {
        'type': 'WordLevel',
        'vocab': {word: index for index, word in enumerate(words)},
        'unk_token': '<unk>',
      },
    }
  ).encode()


@given(st.lists(st.sampled_from(vocabulary(CONFIG)), max_size=20))
def test_countdown_texts_round_trip(words):
  text = ' '.join(words)
  ids = COUNTDOWN.encode(text)
  assert len(ids) == len(words)
  assert COUNTDOWN.decode(ids) == text


@given(st.lists(st.integers(0, COUNTDOWN.vocab_size - 1), max_size=20))
def test_special_tokens_decode_to_nothing(ids):
  special = {COUNTDOWN.pad_id, COUNTDOWN.bos_id, *COUNTDOWN.end_ids}
  plain = [piece for piece in ids if piece not in special]
  assert COUNTDOWN.decode(ids) == COUNTDOWN.decode(plain)


def test_special_tokens_are_not_words():
  words = set(COUNTDOWN.encode(' '.join(vocabulary(CONFIG))))
  special = {COUNTDOWN.pad_id, COUNTDOWN.bos_id, *COUNTDOWN.end_ids}
  assert len(special) == 3
  assert not words & special
  # One more id is for unknown words.
  assert COUNTDOWN.vocab_size == len(words) + 4


def test_training_is_reproducible(tmp_path):
  again = countdown_tokenizer(CONFIG)
  assert again.to_bytes() == COUNTDOWN.to_bytes()
  assert again.fingerprint == COUNTDOWN.fingerprint
  assert len(again.fingerprint) == 64
  other = countdown_tokenizer(CountdownConfig(max_target=31))
  assert other.fingerprint != COUNTDOWN.fingerprint
  path = tmp_path / 'model'
  path.write_bytes(COUNTDOWN.to_bytes())
  loaded = SentencePieceTokenizer.load(path)
  assert loaded.fingerprint == COUNTDOWN.fingerprint
  assert loaded.encode('3 + 7') == COUNTDOWN.encode('3 + 7')


def test_refuses_unknown_words():
  with pytest.raises(ValueError, match=r"vocabulary, got '3 \+ 31'"):
    COUNTDOWN.encode('3 + 31')


def test_trains_subword_models():
  texts = ['the cat sat on the mat', 'the rat sat on the cat'] * 20
  tokenizer = train_sentencepiece(texts, vocab_size=24, model_type='bpe')
  assert tokenizer.vocab_size == 24
  assert tokenizer.decode(tokenizer.encode('the mat sat')) == 'the mat sat'


def test_refuses_invalid_training_texts_and_models():
  with pytest.raises(
    ValueError, match="vocab_size must be given with model_type 'bpe'"
  ):
    train_sentencepiece(['a b'], model_type='bpe')
  with pytest.raises(ValueError, match='must have words, got none'):
    train_sentencepiece(['  '])
  with pytest.raises(ValueError, match='got 3 other bytes'):
    SentencePieceTokenizer(b'abc')


def test_json_tokenizer_encodes_and_decodes(tmp_path):
  path = tmp_path / 'tokenizer.json'
  path.write_bytes(json_file())
  tokenizer = JsonTokenizer.load(path, end_tokens=['</s>'], bos_token='<s>')
  assert tokenizer.vocab_size == 8
  assert tokenizer.encode('a + b') == [1, 4, 2]
  assert tokenizer.decode([6, 1, 4, 2, 7]) == 'a + b'
  assert (tokenizer.bos_id, tokenizer.end_ids, tokenizer.pad_id) == (6, (7,), 7)
  assert tokenizer.to_bytes() == json_file()
  plain = JsonTokenizer(
    json_file(), end_tokens=['</s>', 'c'], pad_token='<unk>'
  )
  assert (plain.bos_id, plain.end_ids, plain.pad_id) == (None, (7, 3), 0)
  assert plain.fingerprint == tokenizer.fingerprint


def test_refuses_invalid_json_tokenizers():
  with pytest.raises(ValueError, match="token '<eos>', got one of 8"):
    JsonTokenizer(json_file(), end_tokens=['<eos>'])
  with pytest.raises(ValueError, match='end_tokens must name at least one'):
    JsonTokenizer(json_file(), end_tokens=[])
  with pytest.raises(
    ValueError, match=r'file must be a tokenizer\.json, got 2'
  ):
    JsonTokenizer(b'{}', end_tokens=['</s>'])


@pytest.mark.parametrize(
  'tokenizer', [COUNTDOWN, JsonTokenizer(json_file(), end_tokens=['</s>'])]
)
def test_refuses_the_tokenizer_of_another_policy(tokenizer: Tokenizer):
  check_tokenizer(tokenizer, tokenizer.vocab_size)
  for size in (tokenizer.vocab_size - 1, tokenizer.vocab_size + 1):
    with pytest.raises(ValueError, match=f"policy's {size} tokens, got one of"):
      check_tokenizer(tokenizer, size)


@pytest.mark.parametrize('end_ids', [(), [], 3, None])
def test_refuses_tokenizers_without_a_token_that_ends_responses(
  monkeypatch, end_ids
):
  monkeypatch.setattr(type(COUNTDOWN), 'end_ids', end_ids)
  with pytest.raises(
    ValueError, match='end_ids of a tokenizer must be a tuple'
  ):
    check_tokenizer(COUNTDOWN, COUNTDOWN.vocab_size)
