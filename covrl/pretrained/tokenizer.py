# SPDX-License-Identifier: Apache-2.0
"""Loads the tokenizer and the chat template of a pretrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from covrl.data import (
  ChatTemplate,
  JsonTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
)
from covrl.data.columns import type_name
from covrl.pretrained.adapters import base_model_directory
from covrl.pretrained.json_files import (
  MAX_JSON_BYTES,
  MAX_TOKENIZER_BYTES,
  read_bytes,
  read_json,
)

_SPECIAL_TOKENS = (
  'bos_token',
  'eos_token',
  'unk_token',
  'sep_token',
  'pad_token',
  'cls_token',
  'mask_token',
)
# A conversation by which the token is found that a chat template writes after a turn
# of the model.
_SAMPLE_ANSWER = 'The sum is 42.'
_SAMPLE_TURNS = (
  {'role': 'user', 'content': 'What is 12 + 30?'},
  {'role': 'assistant', 'content': _SAMPLE_ANSWER},
)


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer of a model, or of an adapter's base model.

  `tokenizer.json` takes precedence over a sentencepiece `tokenizer.model`. Its
  post-processor alone determines whether prompts begin with a BOS token, as in
  the tokenizer's own encoding; with `tokenizer.model`, `add_bos_token` of
  `tokenizer_config.json` does, true unless given.

  The end tokens are those in `generation_config.json`, else in `config.json`,
  else the `eos_token` of `tokenizer_config.json`. The first of several is the
  one that the chat template writes after the model's turn, else `eos_token`:
  supervised training ends responses with it.

  Args:
    directory: see `load_pretrained`.

  Returns:
    A tokenizer with the model's vocabulary size.

  Raises:
    ValueError: the tokenizer is missing or has another vocabulary size, no file
      states the end tokens, or a file is malformed.
  """
  directory = base_model_directory(directory)
  tokenizer = _open_tokenizer(directory)
  if len(tokenizer.end_ids) > 1:
    for text in _turn_ends(directory):
      ids = [i for i in tokenizer.encode(text) if i in tokenizer.end_ids]
      if ids:
        return tokenizer.with_first_end(ids[0])
  return tokenizer


def unused_turn_end(
  directory: epath.PathLike, tokenizer: Tokenizer
) -> str | None:
  """Returns the end of a turn in the chat template that ends no response.

  Base models often have a chat template whose token after an answer is not among
  their end tokens. A response that is sampled from it goes on after that token.

  Args:
    directory: see `load_pretrained`.
    tokenizer: the model's tokenizer.

  Returns:
    The text after an answer; `None` if it has an end token or no control token, or
    there is no such text.
  """
  text = next(_template_turn_ends(base_model_directory(directory)), '')
  ids = tokenizer.encode(text)
  has_control = any(not tokenizer.decode([token]) for token in ids)
  if not has_control or not set(ids).isdisjoint(tokenizer.end_ids):
    return None
  return text.strip()


def load_chat_template(directory: epath.PathLike) -> ChatTemplate:
  """Loads the chat template of a model, or of an adapter's base model.

  Args:
    directory: see `load_pretrained`.

  Raises:
    ValueError: the model has no chat template, or a file is malformed.
  """
  directory = base_model_directory(directory)
  file = directory / 'chat_template.jinja'
  if file.is_file():
    try:
      source = read_bytes(file, MAX_JSON_BYTES).decode()
    except UnicodeDecodeError as error:
      raise ValueError(f'{file} must be UTF-8, got {error.reason}') from None
  else:
    file = directory / 'tokenizer_config.json'
    source = _template_of_config(directory)
  return ChatTemplate(source, _special_tokens(directory), file=str(file))


def _open_tokenizer(
  directory: epath.Path,
) -> JsonTokenizer | SentencePieceTokenizer:
  """The tokenizer with the end tokens in the order of the files."""
  special_tokens = _special_tokens(directory)
  end_tokens = _end_tokens(directory, special_tokens)
  vocab_size = _vocab_size(directory)
  file = directory / 'tokenizer.json'
  if file.is_file():
    try:
      return JsonTokenizer(
        read_bytes(file, MAX_TOKENIZER_BYTES),
        end_tokens=end_tokens,
        pad_token=special_tokens.get('pad_token'),
        vocab_size=vocab_size,
        special_tokens=(
          *special_tokens.values(),
          *_unnamed_special_tokens(directory),
        ),
      )
    except ValueError as error:
      raise ValueError(f'{file}: {error}') from None
  file = directory / 'tokenizer.model'
  if not file.is_file():
    raise ValueError(
      f'{directory} must hold tokenizer.json or tokenizer.model, got neither'
    )
  config = _read_fields(directory, 'tokenizer_config.json')
  adds_bos = config.get('add_bos_token')
  if adds_bos is not None and not isinstance(adds_bos, bool):
    raise ValueError(
      f'{directory / "tokenizer_config.json"}: add_bos_token must be true or'
      f' false, got {str(adds_bos)[:40]}'
    )
  try:
    tokenizer = SentencePieceTokenizer(
      read_bytes(file, MAX_TOKENIZER_BYTES),
      end_tokens,
      adds_bos=adds_bos is not False,
    )
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None
  if vocab_size not in (None, tokenizer.vocab_size):
    raise ValueError(
      f"{file} must have the model's {vocab_size} tokens, got"
      f' {tokenizer.vocab_size}'
    )
  return tokenizer


def _turn_ends(directory: epath.Path) -> Iterator[str]:
  """Texts that contain the end of a turn, in order of precedence."""
  yield from _template_turn_ends(directory)
  yield _special_tokens(directory).get('eos_token', '')


def _template_turn_ends(directory: epath.Path) -> Iterator[str]:
  """The text that the chat template writes after an answer, if there is any."""
  try:
    template = load_chat_template(directory)
    text = template.render(_SAMPLE_TURNS, add_generation_prompt=False)
    yield text.rpartition(_SAMPLE_ANSWER)[2]
  except ValueError:
    # Not every model has a chat template, and not every template takes this
    # conversation.
    pass


def _template_of_config(directory: epath.Path) -> str:
  """The chat template in `tokenizer_config.json`."""
  file = directory / 'tokenizer_config.json'
  source = _read_fields(directory, file.name).get('chat_template')
  if isinstance(source, list):
    # Several named templates; `default` is the one without tools.
    if not all(
      isinstance(entry, Mapping) and {'name', 'template'} <= entry.keys()
      for entry in source
    ):
      raise ValueError(
        f'{file}: chat_template must list templates with name and template, got'
        f' {str(source)[:80]}'
      )
    templates = {str(entry['name']): entry['template'] for entry in source}
    source = templates.get('default')
  if source is None:
    raise ValueError(
      f'{file} must have a chat_template for conversations, got none'
    )
  if not isinstance(source, str):
    raise ValueError(
      f'{file}: chat_template must be text, got {type_name(source)}'
    )
  return source


def _end_tokens(
  directory: epath.Path, special_tokens: Mapping[str, str]
) -> list[str | int]:
  """Tokens that end a response, by id or else by text.

  Args:
    directory: directory of the model.
    special_tokens: special tokens by name.
  """
  for name in ('generation_config.json', 'config.json'):
    eos_ids = _read_fields(directory, name).get('eos_token_id')
    if eos_ids is None:
      continue
    ids = eos_ids if isinstance(eos_ids, list) else [eos_ids]
    if not ids or not all(type(token) is int and token >= 0 for token in ids):
      raise ValueError(
        f'{directory / name}: eos_token_id must be the id of a token or several,'
        f' got {str(eos_ids)[:40]}'
      )
    return list(dict.fromkeys(ids))
  if 'eos_token' not in special_tokens:
    raise ValueError(
      f'{directory} must name the token that ends a response, by eos_token_id in'
      ' generation_config.json or eos_token in tokenizer_config.json, got neither'
    )
  return [special_tokens['eos_token']]


def _vocab_size(directory: epath.Path) -> int | None:
  """The model's vocabulary size, if `config.json` has it."""
  size = _read_fields(directory, 'config.json').get('vocab_size')
  if size is not None and (type(size) is not int or size < 1):
    raise ValueError(
      f'{directory / "config.json"}: vocab_size must be a positive integer, got'
      f' {str(size)[:40]}'
    )
  return size


def _special_tokens(directory: epath.Path) -> dict[str, str]:
  """Text of the special tokens by name, as chat templates name them."""
  text_by_name: dict[str, str] = {}
  # Older models have the tokens in a separate file.
  for file in ('special_tokens_map.json', 'tokenizer_config.json'):
    fields = _read_fields(directory, file)
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


def _unnamed_special_tokens(directory: epath.Path) -> list[str]:
  """Text of the special tokens that no template names.

  They are in lists of additional tokens, and among the added ones.
  """
  texts: list[str] = []
  for file in ('special_tokens_map.json', 'tokenizer_config.json'):
    fields = _read_fields(directory, file)
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


def _read_fields(directory: epath.Path, name: str) -> Mapping[str, Any]:
  """Fields of a JSON file, empty if the file is missing."""
  file = directory / name
  return read_json(file)[0] if file.exists() else {}
