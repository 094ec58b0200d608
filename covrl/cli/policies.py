# SPDX-License-Identifier: Apache-2.0
"""Options of commands that open a policy, and the format of its prompts."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from covrl.config import Config
  from covrl.data import Tokenizer
  from covrl.rollout import Caching
  from covrl.run.progress import Progress


def add_policy(parser: argparse.ArgumentParser) -> None:
  """Adds `POLICY`, a run or a pretrained model."""
  parser.add_argument(
    'policy',
    metavar='POLICY',
    help="a run's directory, or a pretrained model's directory or name",
  )


def add_trust(parser: argparse.ArgumentParser) -> None:
  """Adds `--trust`, which allows the code of another user's run."""
  parser.add_argument(
    '--trust',
    action='store_true',
    help="execute a run's copy of its recipe even if another user may have "
    'written it',
  )


def add_caching(parser: argparse.ArgumentParser) -> None:
  """Adds `--cache_dtype` and `--prefill_chunk`, options of the KV cache."""
  parser.add_argument(
    '--cache_dtype',
    choices=('model', 'int8'),
    help="type of the KV cache: the model's, or integers of 8 bits, which take "
    'half the memory of bfloat16 and change log-probabilities (default: model)',
  )
  parser.add_argument(
    '--prefill_chunk',
    type=int,
    metavar='N',
    help='tokens of each prompt that are processed together, which bounds memory '
    'with long prompts; 0 for all (default: 0)',
  )


def caching(arguments: argparse.Namespace) -> Caching:
  """Returns the options of the KV cache, see `add_caching`.

  Raises:
    ValueError: `--prefill_chunk` is negative.
  """
  from covrl.rollout import Caching

  chunk = arguments.prefill_chunk or 0
  if chunk < 0:
    raise ValueError(f'--prefill_chunk must be at least 0, got {chunk}')
  return Caching(chunk=chunk, int8=arguments.cache_dtype == 'int8')


def check_numbers(arguments: argparse.Namespace) -> None:
  """Checks numbers of responses, lengths and queues, before anything is loaded.

  Raises:
    ValueError: one is too small, or far beyond any use.
  """
  for name, least, most in (
    ('count', 1, 2**16),
    ('samples', 0, 2**16),
    ('slots', 1, 2**16),
    ('max_prompt_length', 1, 2**20),
    ('max_length', 1, 2**20),
    ('max_waiting', 0, 2**20),
  ):
    value = getattr(arguments, name, None)
    if value is not None and value < least:
      raise ValueError(f'--{name} must be at least {least}, got {value}')
    if value is not None and value > most:
      raise ValueError(f'--{name} must be at most {most}, got {value}')


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
  """Raises `ValueError` if an option is given that has no effect.

  Args:
    arguments: the parsed options.
    names: names of options without effect; absent ones are `None` or empty.
    use: option or argument that they require, for the message.
  """
  for name in names:
    value = getattr(arguments, name)
    if value not in (None, ''):
      given = f'--{name}' if value is True else repr(value)
      raise ValueError(f'--{name} must be given with {use}, got {given} alone')


def prompt_format(
  arguments: argparse.Namespace, config: Config
) -> Callable[[str], str]:
  """Returns a function that formats a prompt, as a conversation with `--chat`.

  The conversation begins with the system message of the run, if it has one.

  Args:
    arguments: the parsed options `policy`, `chat` and `template_variables`.
    config: configuration of the run, or one that names the pretrained model.

  Raises:
    ValueError: `--chat` is given, and the policy has no chat template.
  """
  if not arguments.chat:
    return lambda prompt: prompt
  if not config.pretrained or config.data.template:
    raise ValueError(
      f'prompts of {arguments.policy} must have a chat template with --chat, got'
      f' those of {"data.template" if config.pretrained else "its task"}'
    )
  from covrl import pretrained
  from covrl.data.prompts import PROMPT_DATE
  from covrl.tasks.text import parse_template_variables

  template = pretrained.load_chat_template(config.pretrained)
  variables = parse_template_variables(
    arguments.template_variables or config.data.template_variables, template
  )
  system = config.data.system
  before = [{'role': 'system', 'content': system}] if system else []
  return lambda prompt: template.render(
    [*before, {'role': 'user', 'content': prompt}],
    now=PROMPT_DATE,
    **variables,
  )


def print_prompt_notes(
  arguments: argparse.Namespace,
  config: Config,
  tokenizer: Tokenizer,
  progress: Progress,
) -> None:
  """Prints notes on BOS tokens of prompts and on the ends of responses.

  The latter are on conversations, with `--chat`.

  Args:
    arguments: the parsed options `prompt` and `chat`.
    config: see `prompt_format`.
    tokenizer: the policy's tokenizer.
    progress: prints the notes.
  """
  from covrl.pretrained.tokenizer import bos_notes
  from covrl.tasks.text import chat_notes

  notes: list[str] = []
  if config.pretrained:
    prompt = prompt_format(arguments, config)(arguments.prompt or '')
    notes += bos_notes(config.pretrained, tokenizer, prompt)
  if arguments.chat:
    notes += chat_notes(config.pretrained, tokenizer)
  for text in notes:
    progress.note(text)


def is_run(directory: str) -> bool:
  """Returns whether `directory` is a run's and not a pretrained model's.

  A pretrained model is a directory with a model's config, a GGUF file, or a
  name on the Hugging Face hub, such as `Qwen/Qwen2.5-0.5B`. Anything else counts
  as a run, which may turn out not to exist.
  """
  from covrl import storage

  path = storage.as_path(directory)
  if storage.is_directory(path / 'recipe'):
    return True
  if path.suffix == '.gguf':
    return False
  if path.exists():
    names = ('config.json', 'adapter_config.json')
    return not any((path / name).is_file() for name in names)
  return re.fullmatch(r'[\w.-]+/[\w.-]+', directory) is None
