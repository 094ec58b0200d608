# SPDX-License-Identifier: Apache-2.0
"""Incremental text equals whole decoding; stop strings are found exactly."""

import hypothesis
import pytest
from hypothesis import strategies as st
from serve.conftest import GOLDEN, TOKENIZER

from covrl.data import train_sentencepiece
from covrl.data.generated.countdown import CountdownConfig, countdown_tokenizer
from covrl.pretrained import load_tokenizer
from covrl.rollout import NewTokens
from covrl.serve.text import IncrementalText, ResponseText, check_stop_string

PIECES = load_tokenizer(GOLDEN / 'pieces')
WORDS = countdown_tokenizer(CountdownConfig())
SUBWORDS = train_sentencepiece(
  ['the cat sat on the mat', 'the rat sat'] * 20,
  vocab_size=24,
  model_type='bpe',
)
TOKENIZERS = {
  'bytes': TOKENIZER,
  'pieces': PIECES,
  'words': WORDS,
  'subwords': SUBWORDS,
}
TEXTS = [
  'Grüße, 漢字 and 🙂🙂.\n\n  The sum of 12 and 30 is 42. ',
  'the cat sat on the mat the rat sat ' * 5,
  '3 + 7 = 10 = 10 + 3 ' * 5,
]


def new_tokens(ids, reason=None):
  """Returns tokens with log-probabilities of −1 and −2."""
  return NewTokens(list(ids), [-1.0] * len(ids), [-2.0] * len(ids), reason)


def chunks(ids, sizes):
  """Splits tokens into parts of the sizes, repeated."""
  start, index = 0, 0
  while start < len(ids):
    size = sizes[index % len(sizes)]
    yield ids[start : start + size]
    start, index = start + size, index + 1


def encodings():
  """Yields names of tokenizers with the ids of texts that they can encode."""
  for name, tokenizer in TOKENIZERS.items():
    for text in TEXTS:
      try:
        yield name, tokenizer.encode(text)
      except ValueError:
        continue


@pytest.mark.parametrize('sizes', [(1,), (2, 5), (7,), (400,)])
def test_text_equals_the_decoded_tokens(sizes):
  for name, ids in encodings():
    text, parts = IncrementalText(TOKENIZERS[name]), ['']
    for part in chunks(ids, sizes):
      text.append(part)
      assert text.text.startswith(parts[-1])
      assert '\ufffd' not in text.text
      parts.append(text.text)
    text.finish()
    assert text.text == TOKENIZERS[name].decode(ids)
    # Only the last tokens are decoded again.
    assert len(text._ids) <= 80


@hypothesis.given(
  ids=st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=60),
  size=st.integers(1, 9),
)
def test_text_of_any_tokens_equals_the_decoded_tokens(ids, size):
  text = IncrementalText(TOKENIZER)
  for part in chunks(ids, (size,)):
    text.append(part)
  text.finish()
  assert text.text == TOKENIZER.decode(ids)


def by_token(tokenizer, ids, stop_strings):
  """Number of tokens and text at the first stop string, token by token."""
  for count in range(1, len(ids) + 1):
    text = tokenizer.decode(ids[:count])
    stop_start = min(
      (text.find(s) for s in stop_strings if s in text), default=None
    )
    if stop_start is not None:
      return count, text[:stop_start], 'stop'
  return len(ids), tokenizer.decode(ids), 'length'


@hypothesis.given(
  text=st.text('ab \n漢🙂', max_size=40),
  stop_strings=st.lists(st.text('ab \n漢', min_size=1, max_size=4), max_size=3),
  size=st.integers(1, 9),
)
def test_stop_strings_are_found_at_the_token_that_completes_them(
  text, stop_strings, size
):
  ids = TOKENIZER.encode(text)
  if not ids:
    return
  response, streamed, count, reason = (
    ResponseText(TOKENIZER, stop_strings),
    '',
    0,
    None,
  )
  parts = list(chunks(ids, (size,)))
  for i, part in enumerate(parts):
    finish_reason = 'length' if i + 1 == len(parts) else None
    delta = response.append(new_tokens(part, finish_reason))
    streamed += delta.text
    count += len(delta.tokens)
    assert len(delta.offsets) == len(delta.tokens) == len(delta.policy_logprobs)
    reason = delta.finish_reason
    if reason is not None:
      break
  assert (count, streamed, reason) == by_token(TOKENIZER, ids, stop_strings)


def test_beginnings_of_stop_strings_are_held_back():
  response = ResponseText(TOKENIZER, ['\n\n', 'END'])
  texts = [
    response.append(new_tokens(TOKENIZER.encode(text))).text
    for text in ('a\n', 'b', 'E', 'N', 'x', '\n', '\n')
  ]
  assert texts == ['a', '\nb', '', '', 'ENx', '', '']


def test_a_token_that_ends_the_response_has_no_text():
  ids = TOKENIZER.encode('abc')
  delta = ResponseText(TOKENIZER).append(new_tokens(ids, 'stop'))
  assert delta.text == TOKENIZER.decode(ids[:-1])
  assert delta.tokens == ids
  assert delta.finish_reason == 'stop'


@pytest.mark.parametrize(
  ('name', 'stop_string'),
  [
    ('bytes', '\n\n'),
    ('bytes', 'Grü'),
    ('bytes', ' '),
    ('words', '= 10'),
    ('words', ' '),
    ('subwords', 'at s'),
  ],
)
def test_possible_stop_strings_are_accepted(name, stop_string):
  check_stop_string(TOKENIZERS[name], stop_string)


@pytest.mark.parametrize(
  ('name', 'stop_string'),
  [
    ('bytes', ''),
    ('bytes', '<|im_end|>'),
    ('words', 'hello'),
    ('words', '\n'),
    ('subwords', 'dog'),
  ],
)
def test_stop_strings_that_no_tokens_decode_to_are_refused(name, stop_string):
  with pytest.raises(ValueError, match=r'stop strings must .* got'):
    check_stop_string(TOKENIZERS[name], stop_string)


def test_refuses_stop_strings_that_are_not_unicode():
  with pytest.raises(ValueError, match='a stop string must be valid Unicode'):
    check_stop_string(TOKENIZERS['words'], '\ud800')
