# SPDX-License-Identifier: Apache-2.0
"""Description of a job, independent of the launcher."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

import jinja2

# Valid for Kubernetes, Cloud TPU and Slurm, and without special characters.
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
_VARIABLE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_SECRET = re.compile(
  r'TOKEN(?!IZER)|SECRET|PASSWORD|CREDENTIAL|API_?KEY', re.IGNORECASE
)


class LaunchError(ValueError):
  """Bad input, or a failed command, as one sentence with an exit status."""

  def __init__(self, message: str, *, status: int = 2) -> None:
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A training run to launch.

  Attributes:
    name: name of the job.
    arguments: arguments of `covrl train`.
    environment: environment variables; not for secrets, since they appear in
      commands and manifests.
    secrets: environment variables and the names of the secrets that hold their
      values.
    restarts: maximal number of restarts.

  Raises:
    LaunchError: if the name is not valid for all launchers, a variable's name is
      invalid or that of a secret, or the config or workdir is missing.
  """

  name: str
  arguments: tuple[str, ...]
  environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
  secrets: Mapping[str, str] = dataclasses.field(default_factory=dict)
  restarts: int = 100

  def __post_init__(self) -> None:
    if not _NAME.fullmatch(self.name):
      raise LaunchError(
        '--name must be at most 40 lower-case letters, digits and hyphens, '
        f'beginning with a letter, got {self.name!r}'
      )
    if self.restarts < 0:
      raise LaunchError(f'--restarts must be at least 0, got {self.restarts}')
    for name in (*self.environment, *self.secrets):
      if not _VARIABLE.fullmatch(name):
        raise LaunchError(
          f'the name of an environment variable must be an identifier, got {name!r}'
        )
    for name in self.environment:
      if _SECRET.search(name):
        raise LaunchError(
          f'--env must not hold secrets, got {name}; use --secret or the'
          ' environment of the cluster'
        )
    for text in (*self.arguments, *self.environment.values()):
      if '\0' in text:
        raise LaunchError(f'arguments must be without NUL, got {text!r}')
    for option in ('--config', '--workdir'):
      if self.value(option) is None:
        raise LaunchError(
          f'{option}=… of `covrl train` must follow `--`, got '
          f'{list(self.arguments)}'
        )

  def value(self, option: str) -> str | None:
    """Returns the value of an argument of `covrl train`, if given.

    Of several values `covrl train` takes the last one.
    """
    value = None
    for index, argument in enumerate(self.arguments):
      if argument.startswith(f'{option}='):
        value = argument.partition('=')[2]
      elif argument == option:
        following = self.arguments[index + 1 : index + 2]
        value = next(
          (text for text in following if not text.startswith('--')), None
        )
    return value

  def check_config_file(self) -> None:
    """Refuses a config file that does not exist on this machine."""
    spec = self.value('--config') or ''
    path, suffix, _ = spec.rpartition('.py')
    if suffix and not pathlib.Path(f'{path}.py').is_file():
      raise LaunchError(f'--config must name a Python file, got {spec!r}')

  def check_shared(self, hosts: int) -> None:
    """Refuses a workdir that several hosts do not share."""
    workdir = self.value('--workdir') or ''
    if '://' not in workdir:
      raise LaunchError(
        f'--workdir must be in a bucket (gs://…), shared by all {hosts} hosts,'
        f' got {workdir!r}'
      )


def check_not_empty(options: Mapping[str, object]) -> None:
  """Refuses options whose value is an empty text."""
  for name, value in options.items():
    if value == '':
      raise LaunchError(f"--{name.replace('_', '-')} must not be empty, got ''")


def parse_pairs(option: str, arguments: Sequence[str]) -> dict[str, str]:
  """Parses `NAME=VALUE` arguments.

  >>> parse_pairs('--env', ['A=b c', 'D='])
  {'A': 'b c', 'D': ''}
  """
  for argument in arguments:
    if '=' not in argument:
      raise LaunchError(f'{option} must be NAME=VALUE, got {argument!r}')
  return {
    name: value for name, _, value in (a.partition('=') for a in arguments)
  }


def render(template: str, **values: object) -> str:
  """Renders a template of `launch/templates`; the filter `sh` quotes values."""
  environment = jinja2.Environment(
    loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent / 'templates'),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
  )
  environment.filters['sh'] = shlex.quote
  return environment.get_template(template).render(**values)
