# SPDX-License-Identifier: Apache-2.0
"""Entry point of the command line: parses arguments and runs a command.

A command is a module with `add_arguments(parser)` and `run(arguments)`; its
docstring is its help text. Command modules import JAX only inside functions, so
that help and errors of usage come at once.

Exit statuses are those of `covrl.exit_codes`. Invalid input ends with one
sentence on standard error and status 2, failed writes with status 45.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from covrl.cli import (
  advise,
  convert,
  evaluate,
  plan,
  recipes,
  report,
  sample,
  serve,
  theory,
  train,
)
from covrl.cli import compile as compile_command
from covrl.cli.errors import refuse_exit, report_error
from covrl.cli.options import config_help
from covrl.exit_codes import Exit
from covrl.run import streams

_DESCRIPTION = """\
Entropy control for reinforcement learning of language models.

  covrl train --config=countdown:kl_cov --workdir=runs/kl_cov
  covrl evaluate runs/kl_cov
  covrl report runs/kl_cov

`covrl recipes` lists the recipes for --config, `covrl COMMAND --help` describes a
command and its options.
"""

_COMMANDS = {
  'recipes': recipes,
  'plan': plan,
  'compile': compile_command,
  'train': train,
  'evaluate': evaluate,
  'sample': sample,
  'serve': serve,
  'convert': convert,
  'report': report,
  'advise': advise,
  'theory': theory,
}
# Commands that take `--config.FIELD=VALUE`.
_TAKE_OVERRIDES = ('plan', 'compile', 'train')


def _finish_stopped_run() -> None:
  """Ignores signals from here on, if a run has stopped; see `covrl.run.preemption`."""
  preemption = sys.modules.get('covrl.run.preemption')
  if preemption is not None:
    preemption.ignore_signals_of_stopped_run()


# Called after the functions that JAX registers, which is not imported yet.
atexit.register(_finish_stopped_run)


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the command in `argv`; the console script's entry point."""
  argv = [_underscored(a) for a in (sys.argv[1:] if argv is None else argv)]
  streams.prepare()
  try:
    arguments = _parse(argv)
    with refuse_exit():
      arguments.run(arguments)
    sys.stdout.flush()
  except KeyboardInterrupt:
    print('covrl: interrupted', file=sys.stderr)
    raise SystemExit(Exit.INTERRUPTED) from None
  except BrokenPipeError:
    # The reader of the output has ended, as in `covrl recipes | head`.
    streams.discard_results()
    raise SystemExit(Exit.FAILED) from None
  except Exception as error:
    status = report_error(error)
    if status is None:
      raise
    if status == Exit.STORAGE:
      streams.discard_results()
    raise SystemExit(status) from None


class _Parser(argparse.ArgumentParser):
  """Argument parser that reports errors as the usage and one sentence."""

  def error(self, message: str) -> NoReturn:
    """Prints the usage and a message, and exits with status 2."""
    self.print_usage(sys.stderr)
    self.exit(Exit.REFUSED, f'covrl: {message}; see {self.prog} --help\n')


def _parse(argv: Sequence[str]) -> argparse.Namespace:
  """Parses `argv`; `overrides` holds the leftover `--config.FIELD=VALUE`."""
  parser, command_parsers = _make_parser()
  command = argv[0] if argv else ''
  if command in _TAKE_OVERRIDES and {'-h', '--help'} & set(argv):
    with refuse_exit():
      command_parsers[command].epilog = config_help(argv)
  arguments, leftover = parser.parse_known_args(argv)
  _move_prompt(arguments, leftover)
  _check_not_empty(arguments, command_parsers[arguments.command])
  for argument in leftover:
    is_override = command in _TAKE_OVERRIDES and (
      argument.startswith('--config.') or not argument.startswith('--')
    )
    if not is_override:
      _refuse(argument, command, command_parsers[arguments.command])
  arguments.overrides, arguments.argv = leftover, argv
  return arguments


def _move_prompt(arguments: argparse.Namespace, leftover: list[str]) -> None:
  """Moves a prompt that follows an option from the leftover arguments.

  argparse leaves an optional positional argument empty if an option precedes it.
  """
  texts = [argument for argument in leftover if not argument.startswith('-')]
  if getattr(arguments, 'prompt', '') is None and len(texts) == 1:
    (arguments.prompt,) = texts
    leftover.remove(texts[0])


def _check_not_empty(arguments: argparse.Namespace, parser: _Parser) -> None:
  """Refuses an empty or blank text for anything but a prompt.

  An empty name or path would otherwise stand for the default, or for the
  current directory; a blank one is a mistake of quoting.
  """
  for name, value in vars(arguments).items():
    texts = value if isinstance(value, list) else [value]
    blank = [x for x in texts if isinstance(x, str) and not x.strip()]
    if blank and name != 'prompt' and value != parser.get_default(name):
      option = f'--{name}' if f'--{name} ' in parser.format_usage() else 'path'
      parser.error(f'{option} must not be empty, got {blank[0]!r}')


def _make_parser() -> tuple[_Parser, dict[str, _Parser]]:
  """Returns the parser, and the parsers of all commands by name."""
  parser = _Parser(
    prog='covrl',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('--version', action='version', version=_version())
  commands = parser.add_subparsers(
    title='commands', dest='command', metavar='COMMAND', required=True
  )
  parsers: dict[str, _Parser] = {}
  for name, module in _COMMANDS.items():
    text = module.__doc__ or ''
    parsers[name] = commands.add_parser(
      name,
      help=text.partition('\n')[0],
      description=text,
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    module.add_arguments(parsers[name])
    parsers[name].set_defaults(run=module.run)
  return parser, parsers


def _refuse(argument: str, command: str, parser: _Parser) -> NoReturn:
  """Refuses an unknown option, naming the nearest one."""
  options = re.findall(r'--[a-z_]+', parser.format_usage())
  close_matches = difflib.get_close_matches(
    argument.partition('=')[0], options, n=1
  )
  if close_matches:
    parser.error(
      f'unknown argument {argument!r}, did you mean {close_matches[0]}?'
    )
  if command in _TAKE_OVERRIDES:
    from covrl.config import overrides

    raise overrides.not_an_override(argument)
  parser.error(f'unknown argument {argument!r}')


def _underscored(argument: str) -> str:
  """Replaces hyphens in an option's name, so that both spellings work.

  >>> _underscored('--num-slices=2'), _underscored('--config.seed=-1')
  ('--num_slices=2', '--config.seed=-1')
  """
  name, equals, value = argument.partition('=')
  if not re.fullmatch(r'--[a-z]+(-[a-z]+)+', name):
    return argument
  return f'--{name[2:].replace("-", "_")}{equals}{value}'


def _version() -> str:
  """Returns the name and version of the installed package."""
  try:
    return f'covrl {importlib.metadata.version("covrl")}'
  except importlib.metadata.PackageNotFoundError:
    return 'covrl, not installed'
