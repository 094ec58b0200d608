# SPDX-License-Identifier: Apache-2.0
"""Configuration and tokenizer files of models, of adapters and of exports."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from covrl.data import JsonTokenizer, SentencePieceTokenizer, Tokenizer
from covrl.data.chat import ChatTemplate
from covrl.pretrained.adapters import base_model_directory
from covrl.pretrained.json_files import parse_json
from covrl.pretrained.resolve import (
  TOKENIZER_FILES,
  read_config_files,
  resolve,
)
from covrl.pretrained.tokenizer import load_chat_template, load_tokenizer
from covrl.pretrained.tokenizer_files import (
  end_tokens_of,
  has_chat_template,
  has_tokenizer,
  tokenizer_directory,
)

_GENERATION_CONFIG = 'generation_config.json'
_CHAT_TEMPLATE = 'chat_template.jinja'


def read_model_files(directory: epath.PathLike) -> dict[str, bytes]:
  """Reads the configuration and tokenizer files of a model or of adapters, by name.

  The files of adapters are those of their base model, in which tokenizer, chat
  template and end tokens are those that `load_tokenizer` and `load_chat_template`
  take from beside the adapters.

  Args:
    directory: see `load_pretrained`.

  Raises:
    ValueError: a file is malformed, or the tokenizer beside adapters does not fit
      the base model.
  """
  directory = resolve(directory)
  base = base_model_directory(directory)
  files = read_config_files(base)
  if directory == base:
    return files
  beside = read_config_files(directory)
  if has_tokenizer(directory):
    template = _template(base)
    files = _without_tokenizer(files)
    files |= {name: beside[name] for name in TOKENIZER_FILES if name in beside}
    if template is not None and not has_chat_template(directory):
      files[_CHAT_TEMPLATE] = template.source.encode()
  if has_chat_template(directory) and (template := _template(directory)):
    files[_CHAT_TEMPLATE] = template.source.encode()
  if has_tokenizer(directory) or _GENERATION_CONFIG in beside:
    files = _with_generation_fields(files, eos_token_id=_end_ids(directory))
  return files


def with_tokenizer(
  files: Mapping[str, bytes], pretrained: str, tokenizer: Tokenizer
) -> dict[str, bytes]:
  """Returns a model's files with the tokenizer and end tokens of a run.

  Where only end or padding tokens differ from those of the model, they are written
  to `generation_config.json`, whose other fields remain. Another tokenizer replaces
  all files of the model's, except for the chat template.

  Args:
    files: files of the model; empty for none.
    pretrained: the model; empty for none.
    tokenizer: the tokenizer of the run.

  Raises:
    ValueError: the tokenizer adds a BOS token, or none, unlike its file.
  """
  content, source = tokenizer.to_bytes(), None
  is_same = content == files.get('tokenizer.json', files.get('tokenizer.model'))
  if is_same:
    # A source may name no end tokens.
    with contextlib.suppress(ValueError):
      source = load_tokenizer(pretrained)
    # Other files add tokens to a sentencepiece model.
    is_same = source is None or source.fingerprint == tokenizer.fingerprint
  if is_same:
    files = dict(files)
  else:
    source = None
    template = _template(pretrained) if pretrained else None
    files = _without_tokenizer(files)
    is_json = isinstance(tokenizer, JsonTokenizer)
    files['tokenizer.json' if is_json else 'tokenizer.model'] = content
    if isinstance(tokenizer, SentencePieceTokenizer):
      files = _with_added_tokens(files, tokenizer)
    if template is not None:
      files[_CHAT_TEMPLATE] = _self_contained(template).encode()
  if source is None or source.bos_id != tokenizer.bos_id:
    files = _with_bos(files, tokenizer)
  ids = tokenizer.end_ids, tokenizer.pad_id
  if source is None or (source.end_ids, source.pad_id) != ids:
    files = _with_generation_fields(
      files,
      eos_token_id=list(tokenizer.end_ids),
      pad_token_id=tokenizer.pad_id,
    )
  return files


def files_beside_adapters(
  files: Mapping[str, bytes], pretrained: epath.PathLike
) -> dict[str, bytes]:
  """Returns the files to write beside adapters, which the base model has otherwise.

  Args:
    files: files of the base model with the adapters, see `read_model_files`.
    pretrained: the base model, or adapters on it.
  """
  base_files = read_config_files(base_model_directory(pretrained))
  tokenizer_files = {name: files.get(name) for name in TOKENIZER_FILES}
  names = [
    name
    for name in (_GENERATION_CONFIG, _CHAT_TEMPLATE)
    if files.get(name) != base_files.get(name)
  ]
  if tokenizer_files != {
    name: base_files.get(name) for name in tokenizer_files
  }:
    names += [*tokenizer_files, _CHAT_TEMPLATE]
  return {name: files[name] for name in names if name in files}


def check_adapter_ends(pretrained: str, tokenizer: Tokenizer) -> None:
  """Checks that adapters can be written whose responses end as those of a run.

  The end tokens of the base model end responses of its adapters, too.

  Args:
    pretrained: the base model, or adapters on it.
    tokenizer: the tokenizer of the run.

  Raises:
    ValueError: an end token of the base model ends no response of the run.
  """
  base_ids = _end_ids(base_model_directory(pretrained))
  if not set(base_ids) <= set(tokenizer.end_ids):
    raise ValueError(
      f'end tokens of the run must include those of {pretrained} with --adapter,'
      f' {base_ids}, got {list(tokenizer.end_ids)}; write all weights, without'
      ' --adapter'
    )


def _end_ids(directory: epath.Path) -> list[int]:
  """Ids of the end tokens; of a model without a tokenizer, those stated by id."""
  if has_tokenizer(tokenizer_directory(directory)):
    return list(load_tokenizer(directory).end_ids)
  try:
    tokens = end_tokens_of(directory)
  except ValueError:
    return []
  return list(dict.fromkeys(t for t in tokens if isinstance(t, int)))


def _template(directory: epath.PathLike) -> ChatTemplate | None:
  """The chat template of a model, if it has one that can be read."""
  try:
    return load_chat_template(directory)
  except ValueError:
    return None


def _self_contained(template: ChatTemplate) -> str:
  """The source of a template that needs no special tokens of a tokenizer."""
  lines = [
    f'{{% set {name} = {json.dumps(text, ensure_ascii=False)} %}}\n'
    for name, text in template.special_tokens.items()
    if re.search(rf'\b{re.escape(name)}\b', template.source)
  ]
  return ''.join([*lines, template.source])


def _without_tokenizer(files: Mapping[str, bytes]) -> dict[str, bytes]:
  """The files that are not those of a tokenizer or its chat template."""
  names = files.keys() - {*TOKENIZER_FILES, _CHAT_TEMPLATE}
  return {name: files[name] for name in files if name in names}


def _with_added_tokens(
  files: Mapping[str, bytes], tokenizer: SentencePieceTokenizer
) -> dict[str, bytes]:
  """The files, which add the tokens of a tokenizer to its sentencepiece model."""
  fields: dict[str, Any] = {} if tokenizer.spaces_parts else {'legacy': False}
  if tokenizer.added_tokens:
    fields['added_tokens_decoder'] = {
      str(token.id): {
        'content': token.text,
        'special': token.special,
        'lstrip': token.strips_left,
        'rstrip': token.strips_right,
      }
      for token in tokenizer.added_tokens
    }
  return _with_fields(files, 'tokenizer_config.json', **fields)


def _with_bos(
  files: Mapping[str, bytes], tokenizer: Tokenizer
) -> dict[str, bytes]:
  """The files, after which prompts begin with the BOS token of a tokenizer.

  Raises:
    ValueError: a `tokenizer.json` adds another BOS token, or none.
  """
  if 'tokenizer.json' not in files:
    fields = _fields(files, 'tokenizer_config.json')
    adds_bos = tokenizer.bos_id is not None
    if (fields.get('add_bos_token') is not False) == adds_bos:
      return dict(files)
    return _with_fields(files, 'tokenizer_config.json', add_bos_token=adds_bos)
  bos_id = JsonTokenizer(
    files['tokenizer.json'], end_tokens=tokenizer.end_ids
  ).bos_id
  if bos_id != tokenizer.bos_id:
    raise ValueError(
      'the tokenizer of a policy to export must have a file that determines the BOS'
      f' token, got the BOS token {tokenizer.bos_id} and a file that adds'
      f' {"none" if bos_id is None else bos_id}'
    )
  return dict(files)


def _with_generation_fields(
  files: Mapping[str, bytes], **fields: Any
) -> dict[str, bytes]:
  """The files with these fields of `generation_config.json`."""
  return _with_fields(files, _GENERATION_CONFIG, **fields)


def _with_fields(
  files: Mapping[str, bytes], file: str, **fields: Any
) -> dict[str, bytes]:
  """The files with these fields of a JSON file."""
  old_fields = _fields(files, file)
  if all(
    name in old_fields and old_fields[name] == fields[name] for name in fields
  ):
    return dict(files)
  text = json.dumps({**old_fields, **fields}, indent=2) + '\n'
  return {**files, file: text.encode()}


def _fields(files: Mapping[str, bytes], file: str) -> Mapping[str, Any]:
  """Fields of a JSON file, empty without one."""
  return parse_json(files[file], file) if file in files else {}
