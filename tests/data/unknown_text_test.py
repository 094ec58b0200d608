# SPDX-License-Identifier: Apache-2.0
"""Text for which a `tokenizer.json` has no token is refused, and no other text."""

import itertools
import pathlib

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers

from covrl.data import JsonTokenizer, Problem, prompt_rows, token_rows

LETTERS = 'abc '
VOCAB = {letter: index for index, letter in enumerate(LETTERS)}
WITH_UNKNOWN = {**VOCAB, '<unk>': len(VOCAB)}
BYTES = [f'<0x{value:02X}>' for value in range(256)]
GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers' / 'bytes'


def bpe(vocab=VOCAB, **options):
  return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], **options))


def unigram(**options):
  pieces = [('<unk>', 0.0), *((letter, -2.0) for letter in LETTERS), ('ab', -3)]
  return tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, **options))


def words(kind, *more):
  vocab = {'[UNK]': 0, 'a': 1, 'b': 2, 'c': 3, **dict.fromkeys(more, 4)}
  tokenizer = tokenizers.Tokenizer(kind(vocab=vocab, unk_token='[UNK]'))
  tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  return tokenizer


def covrl_tokenizer(tokenizer):
  return JsonTokenizer(tokenizer.to_str().encode(), end_tokens=['a'])


def library_ids(tokenizer, text):
  return tokenizer.encode(text, add_special_tokens=False).ids


CHARACTER_TOKENIZERS = {
  'bpe': bpe(),
  'bpe with an unknown token': bpe(WITH_UNKNOWN, unk_token='<unk>'),
  'bpe with fused unknown tokens': bpe(
    WITH_UNKNOWN, unk_token='<unk>', fuse_unk=True
  ),
  'bpe without tokens of bytes': bpe(byte_fallback=True),
  'unigram': unigram(),
}


@pytest.mark.parametrize('name', CHARACTER_TOKENIZERS)
@given(text=st.text(st.sampled_from('abc é☃+'), max_size=12))
def test_text_is_encoded_if_all_characters_have_a_token(name, text):
  library = CHARACTER_TOKENIZERS[name]
  tokenizer = covrl_tokenizer(library)
  unknown = dict.fromkeys(letter for letter in text if letter not in LETTERS)
  if not unknown:
    assert tokenizer.encode(text) == library_ids(library, text)
    return
  with pytest.raises(ValueError) as caught:
    tokenizer.encode(text)
  subject, _, named = str(caught.value).partition(' without a token for ')
  assert subject == (
    f"a text must be of the tokenizer's vocabulary, got {text!r}"
  )
  if name != 'unigram':
    assert named == ', '.join(map(repr, unknown))
    return
  # The library fuses unknown characters that follow one another.
  parts = itertools.groupby(text, key=lambda letter: letter in unknown)
  runs = (''.join(letters) for is_unknown, letters in parts if is_unknown)
  assert named == ', '.join(map(repr, dict.fromkeys(runs)))


def test_characters_of_which_a_byte_is_missing_are_refused():
  some_bytes = bpe({**VOCAB, '<0xC3>': 4, '<0xA9>': 5}, byte_fallback=True)
  letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {'©'})
  byte_level = bpe({letter: index for index, letter in enumerate(letters)})
  byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  for library, known, unknown in (
    (some_bytes, 'aé', 'è'),
    (byte_level, 'aè☃', 'é'),
  ):
    tokenizer = covrl_tokenizer(library)
    assert tokenizer.encode(known) == library_ids(library, known)
    with pytest.raises(ValueError, match=f"without a token for '{unknown}'$"):
      tokenizer.encode(known + unknown)


def test_unigram_models_without_an_unknown_token_refuse_text():
  pieces = [('a', -1.0), ('bc', -2.0)]
  tokenizer = covrl_tokenizer(tokenizers.Tokenizer(models.Unigram(pieces)))
  assert tokenizer.encode('aa') == [0, 0]
  with pytest.raises(ValueError, match="got 'ax' without a token for 'x'"):
    tokenizer.encode('ax')
  # The library demands an unknown token for 'c', which is not a piece itself.
  with pytest.raises(ValueError, match='a text cannot be tokenized: Encounter'):
    tokenizer.encode('bc')


@pytest.mark.parametrize(
  ('library', 'text', 'unknown'),
  [
    (words(models.WordLevel), 'a  minus b plus', ['minus', 'plus']),
    (words(models.WordLevel), 'a ab', ['ab']),
    (words(models.WordPiece, '##b'), 'ab abd c', ['abd']),
    (words(models.WordPiece, '##b'), f'c a{"b" * 120}', [f'a{"b" * 19}…']),
  ],
)
def test_names_words_without_a_token(library, text, unknown):
  with pytest.raises(ValueError) as caught:
    covrl_tokenizer(library).encode(text)
  assert str(caught.value).endswith(
    f' without a token for {", ".join(map(repr, unknown))}'
  )


def test_names_the_first_characters_only():
  with pytest.raises(ValueError) as caught:
    covrl_tokenizer(bpe()).encode('a' * 100 + '0123456789')
  assert str(caught.value) == (
    f"a text must be of the tokenizer's vocabulary, got '{'a' * 80}…' without a"
    " token for '0', '1', '2', '3', '4', …"
  )


@pytest.mark.parametrize(
  ('part', 'text'),
  [
    (normalizers.NFKC(), 'ａⓑ\u00a0ｃ'),
    (normalizers.Lowercase(), 'A Bc'),
    (
      normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()]),
      'äb̧ c',
    ),
    (normalizers.Replace('☃', ''), 'a☃b'),
    (normalizers.Strip(), '\n\ta b\n'),
    (normalizers.BertNormalizer(), '\x00Á\ufffdb\tc'),
    (pre_tokenizers.WhitespaceSplit(), '\ta\n\nb\u2003c'),
    (pre_tokenizers.BertPreTokenizer(), '\ta\n\nb\u2003c'),
    (pre_tokenizers.Split('☃', 'removed'), 'a☃b c'),
    (pre_tokenizers.CharDelimiterSplit('|'), 'a|b|c'),
  ],
)
@pytest.mark.parametrize('library', [bpe, unigram])
def test_what_is_changed_or_removed_before_is_not_unknown(part, text, library):
  tokenizer = library()
  if isinstance(part, normalizers.Normalizer):
    tokenizer.normalizer = part
  else:
    tokenizer.pre_tokenizer = part
  ids = covrl_tokenizer(tokenizer).encode(text)
  assert ids == library_ids(tokenizer, text)
  assert ids
  assert tokenizer.token_to_id('<unk>') not in ids


def test_blanks_may_be_written_as_another_character():
  tokenizer = bpe({'a': 0, 'b': 1, '▁': 2})
  tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
  assert covrl_tokenizer(tokenizer).encode('a b') == [2, 0, 2, 1]


@pytest.mark.parametrize(
  'library',
  [
    bpe(WITH_UNKNOWN, unk_token='<unk>'),
    bpe({**WITH_UNKNOWN, 'd': 5}, unk_token='d'),
    unigram(),
  ],
)
@pytest.mark.parametrize('strips', [False, True])
def test_an_unknown_token_that_the_text_names_is_one_as_before(library, strips):
  library = tokenizers.Tokenizer.from_str(library.to_str())
  library.add_special_tokens([AddedToken('<unk>', lstrip=strips)])
  tokenizer = covrl_tokenizer(library)
  for text in ('<unk>', 'a <unk> b<unk>'):
    ids = tokenizer.encode(text)
    assert ids == library_ids(library, text)
    assert library.token_to_id('<unk>') in ids
  with pytest.raises(ValueError, match="without a token for 'x'"):
    tokenizer.encode('a <unk> x')


def test_special_tokens_of_other_files_are_not_unknown():
  file = bpe({**WITH_UNKNOWN, '</s>': 5}, unk_token='<unk>').to_str().encode()
  tokenizer = JsonTokenizer(
    file, end_tokens=['</s>'], special_tokens=['</s>', '<unk>']
  )
  assert tokenizer.encode('a</s><unk>') == [0, 5, 4]
  with pytest.raises(ValueError, match="without a token for 'x'"):
    tokenizer.encode('a</s>x<unk>')
  assert tokenizer.with_first_end(0).encode('a</s>') == [0, 5]


@pytest.mark.parametrize('kind', ['bytes', 'byte fallback'])
@given(text=st.text(max_size=20))
def test_any_text_has_tokens_where_all_bytes_have_one(kind, text):
  if kind == 'bytes':
    file = (GOLDEN / 'tokenizer.json').read_text()
  else:
    vocab = {piece: index for index, piece in enumerate([*LETTERS, *BYTES])}
    file = bpe(vocab, byte_fallback=True).to_str()
  tokenizer = JsonTokenizer(file.encode(), end_tokens=['a'])
  library = tokenizers.Tokenizer.from_str(file)
  assert tokenizer.encode(text) == library_ids(library, text)


def test_unknown_tokens_are_decoded():
  tokenizer = covrl_tokenizer(bpe(WITH_UNKNOWN, unk_token='<unk>'))
  assert tokenizer.decode([0, 4]).replace(' ', '') == 'a<unk>'
  assert tokenizer.vocab_size == 5


def test_rows_name_the_problem_of_the_text():
  tokenizer = covrl_tokenizer(bpe())
  for prompt, solution in (('a+b', 'c'), ('a b', 'c+')):
    problem = Problem(
      prompt=prompt,
      reference=None,
      source='letters',
      solution=solution,
      location='row 3 of a.jsonl',
    )
    with pytest.raises(
      ValueError, match=r"^row 3 of a\.jsonl: a text must .* token for '\+'$"
    ):
      token_rows([problem], tokenizer, 8)
  problem = Problem(prompt='a+b', reference=None, source='letters')
  with pytest.raises(ValueError, match=r'^a text must be of'):
    prompt_rows([problem], tokenizer, 8)
