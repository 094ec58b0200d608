# SPDX-License-Identifier: Apache-2.0
"""The tokenizer and the chat template of a pretrained model's directory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from covrl.data import (
  ChatTemplate,
  JsonTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
)
from covrl.pretrained.adapters import base_of

_SPECIAL = ('bos_token', 'eos_token', 'unk_token', 'pad_token')


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
  """The tokenizer of a directory, with all tokens that end its responses.

  `tokenizer.json` is preferred to a sentencepiece `tokenizer.model`. What ends
  a response is said by `generation_config.json`, then `config.json`, then
  `tokenizer_config.json`. An adapter has that of its model.

  Args:
    directory: as for `load_pretrained`.

  Returns:
    A tokenizer of the model's vocabulary.

  Raises:
    ValueError: there is none, it is of another vocabulary, or nothing says
      what ends a response.
  """
  directory = base_of(directory)
  about = _fields(directory, 'tokenizer_config.json')
  vocab_size = _fields(directory, 'config.json').get('vocab_size')
  end_tokens = _end_tokens(directory, about)
  file = directory / 'tokenizer.json'
  if file.is_file():
    bos_token = _text(about.get('bos_token'))
    try:
      return JsonTokenizer(
        file.read_bytes(),
        end_tokens=end_tokens,
        bos_token=bos_token if about.get('add_bos_token', True) else None,
        pad_token=_text(about.get('pad_token')),
        vocab_size=vocab_size,
      )
    except ValueError as error:
      raise ValueError(f'{file}: {error}') from None
  file = directory / 'tokenizer.model'
  if not file.is_file():
    raise ValueError(
      f'{directory} must hold tokenizer.json or tokenizer.model, and holds'
      ' neither'
    )
  tokenizer = SentencePieceTokenizer(
    file.read_bytes(),
    [token for token in end_tokens if isinstance(token, int)],
  )
  if vocab_size not in (None, tokenizer.vocab_size):
    raise ValueError(
      f"{file}: must have the model's {vocab_size} tokens, got"
      f' {tokenizer.vocab_size}'
    )
  return tokenizer


def load_chat_template(directory: epath.PathLike) -> ChatTemplate:
  """The chat template of a directory.

  Args:
    directory: as for `load_pretrained`.

  Raises:
    ValueError: it has none.
  """
  directory = base_of(directory)
  about = _fields(directory, 'tokenizer_config.json')
  file = directory / 'chat_template.jinja'
  source = file.read_text() if file.is_file() else about.get('chat_template')
  if isinstance(source, list):
    # Several, by name; the one for plain conversations is called default.
    named = {each['name']: each['template'] for each in source}
    source = named.get('default')
  if source is None:
    raise ValueError(
      f'{directory / "tokenizer_config.json"}: must have a chat_template for'
      ' conversations, and has none'
    )
  special = {name: _text(about.get(name)) for name in _SPECIAL}
  return ChatTemplate(
    source, {name: text for name, text in special.items() if text is not None}
  )


def _end_tokens(
  directory: epath.Path, about: Mapping[str, Any]
) -> list[str | int]:
  """Tokens that end a response, by id where a file says so."""
  for name in ('generation_config.json', 'config.json'):
    found = _fields(directory, name).get('eos_token_id')
    if found is not None:
      return list(found) if isinstance(found, list) else [found]
  text = _text(about.get('eos_token'))
  if text is None:
    raise ValueError(
      f'{directory} must say what ends a response: an eos_token_id in'
      ' generation_config.json or an eos_token in tokenizer_config.json'
    )
  return [text]


def _fields(directory: epath.Path, name: str) -> Mapping[str, Any]:
  """A JSON file's fields; none if it is not there."""
  file = directory / name
  return json.loads(file.read_text()) if file.is_file() else {}


def _text(token: Any) -> str | None:
  """A token's text, which some files wrap in a dictionary."""
  return token['content'] if isinstance(token, Mapping) else token
