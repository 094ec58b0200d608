# SPDX-License-Identifier: Apache-2.0
"""Distinguishes run directories from pretrained models."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence


def add_trust(parser: argparse.ArgumentParser) -> None:
  """Adds `--trust`, which allows the code of another user's run."""
  parser.add_argument(
    '--trust',
    action='store_true',
    help="execute a run's copy of its recipe even if another user may have "
    'written it',
  )


def add_template_variables(parser: argparse._ActionsContainer) -> None:
  """Adds `--template_variables`, variables of a model's chat template."""
  parser.add_argument(
    '--template_variables',
    default='',
    metavar='JSON',
    help='variables of the chat template, such as {"enable_thinking": false}',
  )


def refuse_unused(
  arguments: argparse.Namespace, names: Sequence[str], use: str
) -> None:
  """Raises `ValueError` if one of some options is given without use for it.

  Args:
    arguments: the parsed options.
    names: names of the options; absent ones are `None` or empty.
    use: what makes use of them, for the message.
  """
  for name in names:
    value = getattr(arguments, name)
    if value not in (None, ''):
      raise ValueError(f'--{name} needs {use}, got {value!r} without')


def is_run(directory: str) -> bool:
  """Returns whether `directory` is a run's and not a pretrained model's.

  A pretrained model is a directory with a model's config, a GGUF file, or a
  name on the Hugging Face hub, such as `Qwen/Qwen2.5-0.5B`. Anything else counts
  as a run, which may turn out not to exist.
  """
  from covrl import storage

  path = storage.as_path(directory)
  if path.suffix == '.gguf':
    return False
  if (path / 'recipe').is_dir():
    return True
  if path.exists():
    names = ('config.json', 'adapter_config.json')
    return not any((path / name).is_file() for name in names)
  return re.fullmatch(r'[\w.-]+/[\w.-]+', directory) is None
