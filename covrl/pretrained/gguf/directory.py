# SPDX-License-Identifier: Apache-2.0
"""Presents a GGUF file as a directory in the format of transformers.

The directory is temporary. It holds the configuration and tokenizer files, made
from the file's metadata, and a link to the file, whose tensors are read in place.
"""

from __future__ import annotations

import functools
import json
import pathlib

from etils import epath

from covrl import storage
from covrl.pretrained.families.config_json import model_config
from covrl.pretrained.gguf.config import config_fields
from covrl.pretrained.gguf.header import read_header
from covrl.pretrained.gguf.tokenizer import tokenizer_files
from covrl.pretrained.json_files import open_regular_file

_SUFFIX = '.gguf'
_LINK_NAME = f'model{_SUFFIX}'


def is_gguf(name: epath.PathLike) -> bool:
  """Whether a path names a GGUF file.

  >>> is_gguf('models/SmolLM2.Q4_1.gguf')
  True
  """
  return storage.as_path(name).suffix == _SUFFIX


def gguf_directory(file: epath.PathLike) -> epath.Path:
  """A temporary directory that stands for the model of a GGUF file.

  It is made once per process and version of the file, and removed when the
  process ends.

  Args:
    file: path of the file, local or in a bucket.

  Raises:
    ValueError: the file is missing, malformed, or holds a model or tokenizer
      that is not supported; the message names tensor or field.
  """
  path = storage.as_path(file)
  open_regular_file(path).close()
  local_file = _local_copy(path).absolute()
  file_status = local_file.stat()
  return _make_directory(
    local_file, file_status.st_size, file_status.st_mtime_ns
  )


def linked_gguf(directory: epath.Path) -> epath.Path | None:
  """The GGUF file of a directory of `gguf_directory`; `None` for others."""
  link = pathlib.Path(directory / _LINK_NAME)
  if storage.is_bucket(directory) or not link.is_symlink():
    return None
  return epath.Path(link.readlink())


@functools.cache
def _local_copy(path: epath.Path) -> pathlib.Path:
  """A local path to a file, copied once if it is in a bucket."""
  return storage.local_copy(path)


@functools.cache
def _make_directory(
  file: pathlib.Path, size: int, modified_ns: int
) -> epath.Path:
  """Makes the directory of a file; cached by its size and time of modification."""
  del size, modified_ns
  path = epath.Path(file)
  metadata, tensors = read_header(path)
  fields = config_fields(path, metadata, tensors)
  model_config(fields, fields['torch_dtype'], str(path))
  files = tokenizer_files(metadata, fields['vocab_size'])
  generation_config = json.loads(files['generation_config.json'])
  text = json.dumps({**fields, **generation_config}, indent=2)
  directory = storage.temporary_directory()
  for name, content in {**files, 'config.json': f'{text}\n'.encode()}.items():
    (directory / name).write_bytes(content)
  (directory / _LINK_NAME).symlink_to(file)
  return epath.Path(directory)
