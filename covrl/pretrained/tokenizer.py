# SPDX-License-Identifier: Apache-2.0
"""Loads the tokenizer and the chat template of a pretrained model."""

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
from covrl.pretrained.adapters import base_model_directory

_SPECIAL_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token')


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer of a model, or of an adapter's base model.

  `tokenizer.json` takes precedence over a sentencepiece `tokenizer.model`. The
  end tokens are those in `generation_config.json`, else in `config.json`, else
  in `tokenizer_config.json`.

  Args:
    directory: see `load_pretrained`.

  Returns:
    A tokenizer with the model's vocabulary size.

  Raises:
    ValueError: the tokenizer is missing or has another vocabulary size, or no
      file states the end tokens.
  """
  directory = base_model_directory(directory)
  config = _read_fields(directory, 'tokenizer_config.json')
  vocab_size = _read_fields(directory, 'config.json').get('vocab_size')
  end_tokens = _end_tokens(directory, config)
  file = directory / 'tokenizer.json'
  if file.is_file():
    bos_token = _text(config.get('bos_token'))
    try:
      return JsonTokenizer(
        file.read_bytes(),
        end_tokens=end_tokens,
        bos_token=bos_token if config.get('add_bos_token', True) else None,
        pad_token=_text(config.get('pad_token')),
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
  """Loads the chat template of a model, or of an adapter's base model.

  Args:
    directory: see `load_pretrained`.

  Raises:
    ValueError: the model has no chat template.
  """
  directory = base_model_directory(directory)
  config = _read_fields(directory, 'tokenizer_config.json')
  file = directory / 'chat_template.jinja'
  source = file.read_text() if file.is_file() else config.get('chat_template')
  if isinstance(source, list):
    # Several named templates; `default` is the one without tools.
    templates = {entry['name']: entry['template'] for entry in source}
    source = templates.get('default')
  if source is None:
    raise ValueError(
      f'{directory / "tokenizer_config.json"}: must have a chat_template for'
      ' conversations, and has none'
    )
  special = {name: _text(config.get(name)) for name in _SPECIAL_TOKENS}
  return ChatTemplate(
    source, {name: text for name, text in special.items() if text is not None}
  )


def _end_tokens(
  directory: epath.Path, config: Mapping[str, Any]
) -> list[str | int]:
  """Tokens that end a response, by id or else by text.

  Args:
    directory: directory of the model.
    config: the fields of `tokenizer_config.json`.
  """
  for name in ('generation_config.json', 'config.json'):
    found = _read_fields(directory, name).get('eos_token_id')
    if found is not None:
      return list(found) if isinstance(found, list) else [found]
  text = _text(config.get('eos_token'))
  if text is None:
    raise ValueError(
      f'{directory} must say what ends a response: an eos_token_id in'
      ' generation_config.json or an eos_token in tokenizer_config.json'
    )
  return [text]


def _read_fields(directory: epath.Path, name: str) -> Mapping[str, Any]:
  """Fields of a JSON file, empty if the file is missing."""
  file = directory / name
  return json.loads(file.read_text()) if file.is_file() else {}


def _text(token: Any) -> str | None:
  """Text of a token, which some files wrap in a dictionary."""
  return token['content'] if isinstance(token, Mapping) else token
