# SPDX-License-Identifier: Apache-2.0
"""Where a pretrained model is, and the small files that travel with it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from etils import epath

from covrl import storage

SMALL_FILES = (
  'config.json',
  'generation_config.json',
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'chat_template.jinja',
)


def resolve(directory: epath.PathLike) -> epath.Path:
  """A directory as it is, or that of a model of the Hugging Face hub.

  Args:
    directory: a path, also in a bucket, or `owner/name` if there is no such
      path.

  Raises:
    ValueError: there is no such directory, and it names no model either, or
      one that cannot be fetched.
  """
  path = storage.path_of(directory)
  if path.is_dir():
    return path
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(directory)):
    raise ValueError(
      f'a directory or the name of a model (owner/name) is required, got'
      f' {str(directory)!r}'
    )
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import HfHubHTTPError

  patterns = ['*.safetensors', '*.safetensors.index.json', *SMALL_FILES]
  patterns.append('adapter_config.json')
  try:
    return storage.path_of(
      snapshot_download(str(directory), allow_patterns=patterns)
    )
  except (HfHubHTTPError, OSError, ValueError) as error:
    # What follows the first sentence is advice for users of the library.
    reason = str(error).partition('. ')[0].partition('\n')[0]
    raise ValueError(
      f'there is no directory {directory}, and no model of that name could be'
      f' fetched from the hub: {reason}'
    ) from None


def small_files(directory: epath.Path) -> dict[str, bytes]:
  """Content of those files that a directory has, by name."""
  return {
    name: (directory / name).read_bytes()
    for name in SMALL_FILES
    if (directory / name).is_file()
  }


def json_fields(file: epath.Path) -> tuple[Mapping[str, Any], str]:
  """The fields of a JSON file that a directory must have, and its name.

  Raises:
    ValueError: there is none, or it is no JSON.
  """
  if not file.is_file():
    raise ValueError(f'{file.parent} must hold {file.name}, and does not')
  try:
    return json.loads(file.read_text()), str(file)
  except json.JSONDecodeError as error:
    raise ValueError(f'{file}: must be JSON, got {error}') from None
