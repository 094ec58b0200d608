# SPDX-License-Identifier: Apache-2.0
"""Rebuilds a tokenizer's files from the metadata of a GGUF file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import tokenizers
from tokenizers import (
  AddedToken,
  Regex,
  normalizers,
  pre_tokenizers,
  processors,
)

from covrl.pretrained.gguf.metadata import Metadata
from covrl.pretrained.gguf.sentencepiece import sentencepiece_model

_KEY_PREFIX = 'tokenizer.ggml'
# Types of tokens, as in sentencepiece: normal ones are 1, bytes are 6.
_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

# Pattern of the words of a text, in the notation of the library tokenizers; `%s` is the
# number of digits of a word, in which tokenizers differ.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD_PATTERN = (
  rf'{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}%s'
  r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)


class _TextPreparation(NamedTuple):
  """Preparation of texts by a family of byte-level tokenizers.

  Attributes:
    pattern: pattern of words; empty for that of GPT-2.
    single_digits: whether each digit is a word, before the pattern applies.
    normalises: whether texts are brought to Unicode's form NFC.
    whole_words: whether words in the vocabulary are taken without merging.
    adds_bos: whether texts begin with a BOS token, unless the file states otherwise.
  """

  pattern: str = ''
  single_digits: bool = False
  normalises: bool = False
  whole_words: bool = False
  adds_bos: bool = False


_LLAMA3 = _TextPreparation(
  _WORD_PATTERN % '{1,3}', whole_words=True, adds_bos=True
)
_PREPARATIONS: Mapping[str, _TextPreparation] = {
  'gpt-2': _TextPreparation(),
  'llama-bpe': _LLAMA3,
  'llama3': _LLAMA3,
  'llama-v3': _LLAMA3,
  'qwen2': _TextPreparation(_WORD_PATTERN % '', normalises=True),
  'deepseek-r1-qwen': _TextPreparation(_WORD_PATTERN % '', normalises=True),
  'smollm': _TextPreparation(single_digits=True),
}


def tokenizer_files(metadata: Metadata, vocab_size: int) -> dict[str, bytes]:
  """Files of a tokenizer, by name, as in a directory of transformers.

  Args:
    metadata: the metadata of a GGUF file.
    vocab_size: number of rows of the embedding.

  Raises:
    ValueError: the tokenizer is of another kind or larger, or a field is missing or
      malformed; the message names the field.
  """
  model_type = metadata.text(f'{_KEY_PREFIX}.model')
  tokens = metadata.texts(f'{_KEY_PREFIX}.tokens')
  if len(tokens) > vocab_size:
    raise ValueError(
      f'{metadata.file}: {_KEY_PREFIX}.tokens must be at most {vocab_size}, the rows'
      f' of token_embd.weight, got {len(tokens)}'
    )
  types = metadata.integers(f'{_KEY_PREFIX}.token_type')
  if len(types) != len(tokens):
    raise metadata.error(f'{_KEY_PREFIX}.token_type', f'{len(tokens)} types')
  if model_type == 'gpt2':
    adds_bos = _adds_bos(metadata, _text_preparation(metadata).adds_bos)
    tokenizer = _make_byte_level_tokenizer(metadata, tokens, types, adds_bos)
    files = {'tokenizer.json': tokenizer.to_str().encode()}
    class_name = 'PreTrainedTokenizerFast'
  elif model_type == 'llama':
    adds_bos = _adds_bos(metadata, True)
    files = {'tokenizer.model': sentencepiece_model(metadata, tokens, types)}
    class_name = 'LlamaTokenizer'
  else:
    raise metadata.error(f'{_KEY_PREFIX}.model', 'gpt2 or llama')
  special_tokens = {
    f'{name}_token': tokens[token_id]
    for name, token_id in _special_ids(metadata, tokens).items()
  }
  config = {
    'tokenizer_class': class_name,
    'add_bos_token': adds_bos,
    'clean_up_tokenization_spaces': False,
    **special_tokens,
  }
  files['tokenizer_config.json'] = _to_json(config)
  files['generation_config.json'] = _to_json(
    _generation_config(metadata, tokens)
  )
  template = metadata.text('tokenizer.chat_template', '')
  if template:
    files['chat_template.jinja'] = template.encode()
  return files


def _to_json(fields: Mapping[str, Any]) -> bytes:
  return f'{json.dumps(fields, indent=2, ensure_ascii=False)}\n'.encode()


def _text_preparation(metadata: Metadata) -> _TextPreparation:
  """Preparation of texts by the tokenizer of a file."""
  name = metadata.text(f'{_KEY_PREFIX}.pre')
  if name not in _PREPARATIONS:
    raise metadata.error(
      f'{_KEY_PREFIX}.pre', f'one of {", ".join(_PREPARATIONS)}'
    )
  return _PREPARATIONS[name]


def _adds_bos(metadata: Metadata, default: bool) -> bool:
  """Whether texts begin with a BOS token."""
  if metadata.flag(f'{_KEY_PREFIX}.add_eos_token', False):
    raise metadata.error(f'{_KEY_PREFIX}.add_eos_token', 'false')
  return metadata.flag(f'{_KEY_PREFIX}.add_bos_token', default)


def _token_id(metadata: Metadata, name: str, tokens: list[str]) -> int | None:
  """Id of a special token, or `None`."""
  field = f'{_KEY_PREFIX}.{name}_token_id'
  token_id = metadata.integer(field, None)
  if token_id is not None and token_id >= len(tokens):
    raise metadata.error(field, f'below {len(tokens)}, the number of tokens')
  return token_id


def _special_ids(metadata: Metadata, tokens: list[str]) -> dict[str, int]:
  """Ids of special tokens, by their names in transformers."""
  names = {'bos': 'bos', 'eos': 'eos', 'unk': 'unknown', 'pad': 'padding'}
  ids = {
    name: _token_id(metadata, field, tokens) for name, field in names.items()
  }
  return {
    name: token_id for name, token_id in ids.items() if token_id is not None
  }


def _generation_config(metadata: Metadata, tokens: list[str]) -> dict[str, Any]:
  """Fields of generation_config.json: the tokens that end a response."""
  # Some models end a turn (eot, eom) with another token than a text (eos).
  end_ids = [
    _token_id(metadata, name, tokens) for name in ('eos', 'eot', 'eom')
  ]
  unique_end_ids = list(
    dict.fromkeys(token_id for token_id in end_ids if token_id is not None)
  )
  if not unique_end_ids:
    raise metadata.error(f'{_KEY_PREFIX}.eos_token_id', 'the id of a token')
  special_ids = _special_ids(metadata, tokens)
  return {
    'eos_token_id': unique_end_ids
    if len(unique_end_ids) > 1
    else unique_end_ids[0],
    **{
      f'{name}_token_id': special_ids[name]
      for name in ('bos', 'pad')
      if name in special_ids
    },
  }


def _make_byte_level_tokenizer(
  metadata: Metadata, tokens: list[str], types: list[int], adds_bos: bool
) -> tokenizers.Tokenizer:
  """A byte-level BPE tokenizer, like those of GPT-2, Llama 3 and Qwen."""
  preparation = _text_preparation(metadata)
  vocabulary: dict[str, int] = {}
  for token_id, text in enumerate(tokens):
    # Unused tokens fill the embedding; they have no text.
    if types[token_id] != _UNUSED:
      if text in vocabulary:
        raise ValueError(
          f'{metadata.file}: {_KEY_PREFIX}.tokens must be distinct, got'
          f' {text[:40]!r} twice'
        )
      vocabulary[text] = token_id
  model = tokenizers.models.BPE(
    vocabulary,
    _merges(metadata, vocabulary),
    fuse_unk=False,
    byte_fallback=False,
    ignore_merges=preparation.whole_words,
  )
  tokenizer = tokenizers.Tokenizer(model)
  if preparation.normalises:
    tokenizer.normalizer = normalizers.NFC()
  tokenizer.pre_tokenizer = _pre_tokenizer(preparation)
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  _add_special_tokens(tokenizer, tokens, types)
  byte_level = processors.ByteLevel(trim_offsets=False)
  tokenizer.post_processor = byte_level
  if adds_bos:
    bos_id = _token_id(metadata, 'bos', tokens)
    if bos_id is None:
      raise metadata.error(f'{_KEY_PREFIX}.bos_token_id', 'the id of a token')
    template = processors.TemplateProcessing(
      single=f'{tokens[bos_id]}:0 $A:0',
      pair=f'{tokens[bos_id]}:0 $A:0 {tokens[bos_id]}:1 $B:1',
      special_tokens=[(tokens[bos_id], bos_id)],
    )
    tokenizer.post_processor = processors.Sequence([byte_level, template])
  return tokenizer


def _pre_tokenizer(
  preparation: _TextPreparation,
) -> pre_tokenizers.PreTokenizer:
  """A pre-tokenizer that splits a text into words, and writes words as bytes."""
  steps: list[Any] = []
  if preparation.single_digits:
    steps.append(pre_tokenizers.Digits(individual_digits=True))
  if preparation.pattern:
    steps.append(pre_tokenizers.Split(Regex(preparation.pattern), 'isolated'))
  steps.append(
    pre_tokenizers.ByteLevel(
      add_prefix_space=False, use_regex=not preparation.pattern
    )
  )
  return pre_tokenizers.Sequence(steps)


def _merges(
  metadata: Metadata, vocabulary: Mapping[str, int]
) -> list[tuple[str, str]]:
  """Pairs of tokens to merge, in order."""
  field = f'{_KEY_PREFIX}.merges'
  merges: list[tuple[str, str]] = []
  for index, text in enumerate(metadata.texts(field)):
    # The first token has at least one character, which may be a blank.
    separator = text.find(' ', 1)
    left, right = text[:separator], text[separator + 1 :]
    is_known = {left, right, left + right} <= vocabulary.keys()
    if separator < 0 or not is_known:
      raise ValueError(
        f'{metadata.file}: element {index} of {field} must be two tokens that'
        f' make a third, got {text[:80]!r}'
      )
    merges.append((left, right))
  return merges


def _add_special_tokens(
  tokenizer: tokenizers.Tokenizer, tokens: list[str], types: list[int]
) -> None:
  """Marks tokens that are never split, and those without text."""
  for kinds, special in (
    ((_CONTROL, _UNKNOWN), True),
    ((_USER_DEFINED,), False),
  ):
    added_tokens = [
      AddedToken(text, special=special, normalized=False)
      for text, kind in zip(tokens, types, strict=True)
      if kind in kinds and text
    ]
    if special:
      tokenizer.add_special_tokens(added_tokens)
    else:
      tokenizer.add_tokens(added_tokens)
