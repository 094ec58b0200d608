# SPDX-License-Identifier: Apache-2.0
"""Directory, special tokens and end tokens of a model's or adapters' tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from covrl.data import AddedToken
from covrl.data.columns import type_name
from covrl.pretrained.adapters import base_model_directory
from covrl.pretrained.json_files import (
  MAX_TOKENIZER_BYTES,
  parse_json,
  read_bytes,
  read_json,
)
from covrl.pretrained.resolve import resolve

_SPECIAL_TOKENS = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)


def tokenizer_directory(directory: epath.PathLike) -> epath.Path:
  """Directory of the tokenizer's files; see `load_tokenizer`."""
  directory = resolve(directory)
  return (
    directory if has_tokenizer(directory) else base_model_directory(directory)
  )


def has_tokenizer(directory: epath.Path) -> bool:
  """Whether a directory holds a tokenizer."""
  names = ('tokenizer.json', 'tokenizer.model')
  return any((directory / name).is_file() for name in names)


def has_chat_template(directory: epath.Path) -> bool:
  """Whether a directory holds a chat template."""
  return (directory / 'chat_template.jinja').is_file() or bool(
    read_fields(directory, 'tokenizer_config.json').get('chat_template')
  )


def end_tokens_of(directory: epath.Path) -> list[str | int]:
  """Tokens that end a response, by id or else by text.

  Args:
    directory: directory of the model or the adapters.
  """
  base = base_model_directory(directory)
  tokens: list[str | int] = []
  if directory != base:
    special_tokens = (
      special_tokens_of(directory) if has_tokenizer(directory) else {}
    )
    tokens += _stated_end_tokens(
      directory, ['generation_config.json'], special_tokens
    )
  tokens += _stated_end_tokens(
    base, ['generation_config.json', 'config.json'], special_tokens_of(base)
  )
  if not tokens:
    raise ValueError(
      f'{directory} must name the token that ends a response, by eos_token_id in'
      ' generation_config.json or eos_token in tokenizer_config.json, got neither'
    )
  return tokens


def _stated_end_tokens(
  directory: epath.Path,
  names: Sequence[str],
  special_tokens: Mapping[str, str],
) -> list[str | int]:
  """End tokens that the files of one directory state; empty for none.

  Args:
    directory: the directory.
    names: names of the files that may have `eos_token_id`, in order of precedence.
    special_tokens: special tokens by name.
  """
  for name in names:
    eos_ids = read_fields(directory, name).get('eos_token_id')
    if eos_ids is None:
      continue
    ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
      raise ValueError(
        f'{directory / name}: eos_token_id must be the id of a token or several,'
        f' got {str(eos_ids)[:40]}'
      )
    return list(ids)
  return [special_tokens['eos_token']] if 'eos_token' in special_tokens else []


def vocab_size_of(directory: epath.Path) -> int | None:
  """The model's vocabulary size, if `config.json` has it."""
  size = read_fields(directory, 'config.json').get('vocab_size')
  if size is not None and (type(size) is not int or size < 1):
    raise ValueError(
      f'{directory / "config.json"}: vocab_size must be a positive integer, got'
      f' {str(size)[:40]}'
    )
  return size


def check_added_tokens(
  directory: epath.Path, base: epath.Path, vocab_size: int
) -> None:
  """Refuses tokens that were added to the tokenizer of adapters alone.

  A tokenizer of a base model may have special tokens without an embedding, which
  mark images; one beside adapters has these as well.

  Args:
    directory: the directory of the adapters.
    base: the directory of the base model.
    vocab_size: the vocabulary size of the base model.

  Raises:
    ValueError: a token has no embedding.
  """
  added, base_added = map(_added_tokens, (directory, base))
  for text, token in added.items():
    if token >= vocab_size and base_added.get(text) != token:
      raise ValueError(
        f'{directory}: a tokenizer beside adapters must have'
        f" tokens of the base model's vocabulary of {vocab_size}, got {text!r:.80}"
        f' with the id {token}'
      )


def _added_tokens(directory: epath.Path) -> dict[str, int]:
  """Ids of the added tokens of a tokenizer, by text."""
  file = directory / 'tokenizer.json'
  if not file.is_file():
    return {t.text: t.id for t in sentencepiece_added_tokens(directory)}
  fields = parse_json(read_bytes(file, MAX_TOKENIZER_BYTES), str(file))
  return {
    str(token['content']): token['id']
    for token in fields.get('added_tokens') or ()
    if isinstance(token, Mapping)
    and 'content' in token
    and type(token.get('id')) is int
  }


def special_tokens_of(directory: epath.Path) -> dict[str, str]:
  """Text of the special tokens by name, as chat templates name them."""
  text_by_name: dict[str, str] = {}
  # Older models have the tokens in a separate file.
  for file in ('special_tokens_map.json', 'tokenizer_config.json'):
    fields = read_fields(directory, file)
    extra = fields.get('extra_special_tokens')
    token_by_name = {
      **(extra if isinstance(extra, Mapping) else {}),
      **{name: fields[name] for name in _SPECIAL_TOKENS if name in fields},
    }
    for name, token in token_by_name.items():
      text = token.get('content') if isinstance(token, Mapping) else token
      if token is None:
        text_by_name.pop(name, None)
      elif isinstance(text, str):
        text_by_name[name] = text
      else:
        raise ValueError(
          f'{directory / file}: {name} must be the text of a token, got'
          f' {type_name(token)}'
        )
  return text_by_name


def unnamed_special_tokens(directory: epath.Path) -> list[str]:
  """Text of the special tokens that no template names.

  They are in lists of additional tokens, and among the added ones.
  """
  texts: list[str] = []
  for file in ('special_tokens_map.json', 'tokenizer_config.json'):
    fields = read_fields(directory, file)
    added = fields.get('added_tokens_decoder')
    tokens: list[Any] = [
      token
      for token in (added.values() if isinstance(added, Mapping) else ())
      if isinstance(token, Mapping) and token.get('special') is True
    ]
    for name in ('additional_special_tokens', 'extra_special_tokens'):
      entries = fields.get(name)
      tokens += entries if isinstance(entries, list) else []
    contents = [
      token.get('content') if isinstance(token, Mapping) else token
      for token in tokens
    ]
    texts += [text for text in contents if isinstance(text, str)]
  return texts


def sentencepiece_added_tokens(directory: epath.Path) -> list[AddedToken]:
  """Tokens that files beside a sentencepiece model add to it, or rename.

  They are in `added_tokens_decoder`, and in the older file `added_tokens.json`.

  Raises:
    ValueError: an entry is malformed, or both files disagree.
  """
  file = directory / 'tokenizer_config.json'
  decoder = read_fields(directory, file.name).get('added_tokens_decoder') or {}
  if not isinstance(decoder, Mapping):
    raise ValueError(
      f'{file}: added_tokens_decoder must have tokens by id, got'
      f' {type_name(decoder)}'
    )
  tokens = [
    _added_token(id_text, fields, file) for id_text, fields in decoder.items()
  ]
  ids = {token.text: token.id for token in tokens}
  file = directory / 'added_tokens.json'
  for text, token in read_fields(directory, file.name).items():
    if type(token) is not int or token < 0 or ids.get(text, token) != token:
      raise ValueError(
        f'{file}: tokens must have the ids of added_tokens_decoder, or others from'
        f' 0, got {text!r:.80} with {str(token)[:40]}'
      )
    if text not in ids:
      tokens.append(AddedToken(id=token, text=text, special=False))
  return tokens


def _added_token(id_text: str, fields: object, file: epath.Path) -> AddedToken:
  """A token of `added_tokens_decoder`."""
  content = fields.get('content') if isinstance(fields, Mapping) else None
  if (
    not isinstance(fields, Mapping)
    or not isinstance(content, str)
    or not (id_text.isascii() and id_text.isdecimal())
    or fields.get('single_word') is True
  ):
    raise ValueError(
      f'{file}: added_tokens_decoder must have ids, and tokens with a content and'
      f' without single_word, got {id_text!r:.40} with {str(fields)[:80]}'
    )
  return AddedToken(
    id=int(id_text),
    text=content,
    special=fields.get('special') is True,
    strips_left=fields.get('lstrip') is True,
    strips_right=fields.get('rstrip') is True,
  )


def read_fields(directory: epath.Path, name: str) -> Mapping[str, Any]:
  """Fields of a JSON file, empty if the file is missing."""
  file = directory / name
  return read_json(file)[0] if file.exists() else {}
