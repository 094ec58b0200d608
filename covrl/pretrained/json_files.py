# SPDX-License-Identifier: Apache-2.0
"""Reads small files of models, whose size is checked first."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any, BinaryIO

from etils import epath

from covrl import storage

# Bytes of a JSON file or header, at most: the index of the largest published
# model has 9 MB. Decoded, they take up to 25 times as much memory.
MAX_JSON_BYTES = 2**24
# Bytes of a tokenizer file, at most: the largest published ones have 35 MB.
MAX_TOKENIZER_BYTES = 2**28


def read_json(file: epath.Path) -> tuple[Mapping[str, Any], str]:
  """Fields of a required JSON file, and the file's name for errors.

  Raises:
    ValueError: the file is missing, too large, or not a JSON object.
  """
  if not file.exists():
    raise ValueError(f'{file.parent} must hold {file.name}, got none')
  return parse_json(read_bytes(file, MAX_JSON_BYTES), str(file)), str(file)


def is_regular_file(file: epath.Path) -> bool:
  """Whether a path is a file with content, not a pipe, device or directory."""
  if storage.is_bucket(file):
    return file.is_file()
  # `epath` takes everything except directories for files.
  return pathlib.Path(file).is_file()


def open_regular_file(file: epath.Path) -> BinaryIO:
  """Opens a file for reading bytes, if it has content.

  Raises:
    ValueError: the file is missing, a pipe or a device, or cannot be read.
  """
  try:
    if not is_regular_file(file):
      actual_kind = 'another kind' if file.exists() else 'none'
      raise ValueError(f'{file} must be a regular file, got {actual_kind}')
    return storage.open_binary(file)
  except OSError as error:
    reason = error.strerror or type(error).__name__
    raise ValueError(f'{str(file)[:200]} cannot be read: {reason}') from None


def read_bytes(file: epath.Path, limit: int) -> bytes:
  """Content of a file of at most `limit` bytes.

  Raises:
    ValueError: the file is larger, is a pipe or device, or cannot be read.
  """
  with open_regular_file(file) as stream:
    size = storage.file_size(file)
    if size > limit:
      raise ValueError(f'{file} must have at most {limit} bytes, got {size}')
    return stream.read(size)


def parse_json(text: bytes, owner: str) -> Mapping[str, Any]:
  """Decodes a JSON object.

  Args:
    text: the JSON text.
    owner: description of the text, such as its file, for errors.

  Raises:
    ValueError: the text is not a JSON object, or has two values of a name.

  >>> parse_json(b'{"a": 1}', 'it')
  {'a': 1}
  """

  def make_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
      for name, value in pairs:
        if value != fields[name]:
          raise ValueError(f'two values of {name[:80]}')
    return fields

  try:
    fields = json.loads(text, object_pairs_hook=make_fields)
  except RecursionError:
    raise ValueError(f'{owner} must be JSON, got nested too deeply') from None
  except ValueError as error:
    raise ValueError(f'{owner} must be JSON, got {error}') from None
  if not isinstance(fields, Mapping):
    raise ValueError(
      f'{owner} must be a JSON object, got a {type(fields).__name__}'
    )
  return fields
