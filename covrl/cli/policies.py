# SPDX-License-Identifier: Apache-2.0
"""Distinguishes run directories from pretrained models."""

from __future__ import annotations

import argparse
import re


def add_trust(parser: argparse.ArgumentParser) -> None:
  """Adds `--trust`, which allows the code of another user's run."""
  parser.add_argument(
    '--trust',
    action='store_true',
    help="execute a run's copy of its recipe even if another user may have "
    'written it',
  )


def add_template_variables(group: argparse._ArgumentGroup) -> None:
  """Adds `--template_variables`, variables of a model's chat template."""
  group.add_argument(
    '--template_variables',
    default='',
    metavar='JSON',
    help='variables of the chat template, such as {"enable_thinking": false}',
  )


def refuse_template_variables(arguments: argparse.Namespace, use: str) -> None:
  """Raises `ValueError` if there are variables, but no use for them.

  Args:
    arguments: the parsed options.
    use: the options that make use of them, for the message.
  """
  if arguments.template_variables:
    raise ValueError(
      f'--template_variables needs {use}, got'
      f' {arguments.template_variables!r} without'
    )


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
