# SPDX-License-Identifier: Apache-2.0
"""Locates a pretrained model's directory and reads its configuration files."""

from __future__ import annotations

import re

from etils import epath

from covrl import storage
from covrl.pretrained.gguf import gguf_directory, is_gguf
from covrl.pretrained.json_files import (
  MAX_TOKENIZER_BYTES,
  read_bytes,
)
from covrl.pretrained.json_files import read_json as read_json
from covrl.pretrained.packages import is_in_package, package_path

TOKENIZER_FILES = (
  'tokenizer.json',
  'tokenizer.model',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
)
"""Files that belong to one tokenizer, without the chat template."""

CONFIG_FILES = (
  'config.json',
  'generation_config.json',
  *TOKENIZER_FILES,
  'chat_template.jinja',
)


def resolve(directory: epath.PathLike) -> epath.Path:
  """Returns a directory, downloading a model of the Hugging Face hub if needed.

  Args:
    directory: a local path, a path in a bucket, or `owner/name` of a model if
      no such path exists; or the path of a GGUF file, for which a temporary
      directory is made; or either in a Python package, see `package_path`.

  Raises:
    ValueError: the directory does not exist, and is not the name of a model
      that can be downloaded; or the GGUF file is malformed or not supported; or
      the Python package is not installed.
  """
  if is_in_package(directory):
    directory = package_path(directory)
  path = storage.as_path(directory)
  if is_gguf(path):
    return gguf_directory(path)
  try:
    if path.is_dir():
      return path
  except OSError as error:
    raise ValueError(
      f'{str(path)[:200]} cannot be read: {error.strerror}'
    ) from None
  if not re.fullmatch(r'[\w.-]+/[\w.-]+', str(directory)):
    raise ValueError(
      'a model must be a directory, a .gguf file or a name (owner/name),'
      f' got {str(directory)[:200]!r}'
    )
  from huggingface_hub import snapshot_download
  from huggingface_hub.errors import HfHubHTTPError

  patterns = ['*.safetensors', '*.safetensors.index.json', *CONFIG_FILES]
  patterns.append('adapter_config.json')
  try:
    return storage.as_path(
      snapshot_download(str(directory), allow_patterns=patterns)
    )
  except (HfHubHTTPError, OSError, ValueError) as error:
    # The rest of the message is advice for users of huggingface_hub.
    reason = str(error).partition('. ')[0].partition('\n')[0]
    raise ValueError(
      f'{directory} must be a directory or a model of the Hugging Face hub, got no'
      f' directory, and the model cannot be fetched from the hub: {reason}'
    ) from None


def read_config_files(directory: epath.Path) -> dict[str, bytes]:
  """Content of the configuration and tokenizer files, by name."""
  return {
    name: read_bytes(directory / name, MAX_TOKENIZER_BYTES)
    for name in CONFIG_FILES
    if (directory / name).exists()
  }
