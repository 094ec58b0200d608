# SPDX-License-Identifier: Apache-2.0
"""What is to be run, whatever starts it."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex
from collections.abc import Mapping, Sequence

import jinja2

# Kubernetes, Cloud TPU and Slurm all take it, and no shell sees more in it.
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
_VARIABLE = re.compile(r'[A-Za-z_][A-Za-z0-9_]*')
_SECRET = re.compile(
  r'TOKEN|SECRET|PASSWORD|CREDENTIAL|API_?KEY', re.IGNORECASE
)


class LaunchError(ValueError):
  """Bad input, or a command that failed, in one sentence."""

  def __init__(self, message: str, *, status: int = 2) -> None:
    super().__init__(message)
    self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """A run of covrl.

  Attributes:
    name: of the job, wherever it runs.
    arguments: of `covrl train`.
    environment: variables and their values; nothing secret, for they stand in
      commands and manifests.
    secrets: variables and the names of the secrets that hold their values.
    restarts: how often it may be started again.

  Raises:
    LaunchError: a name no system takes, a variable's name that is none or
      sounds like a secret's, or arguments without config or workdir.
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
          f'the name of an environment variable is required, got {name!r}'
        )
    for name in self.environment:
      if _SECRET.search(name):
        raise LaunchError(
          f'--env must hold nothing secret, {name} sounds like it; use --secret '
          'or the environment of the cluster'
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
    """The value of an argument of `covrl train`, if it is given."""
    for place, argument in enumerate(self.arguments):
      if argument.startswith(f'{option}='):
        return argument.partition('=')[2]
      if argument == option and place + 1 < len(self.arguments):
        return self.arguments[place + 1]
    return None

  def check_shared(self, hosts: int) -> None:
    """Refuses a workdir that each of several hosts would have for itself."""
    workdir = self.value('--workdir') or ''
    if '://' not in workdir:
      raise LaunchError(
        f'--workdir must be in a bucket (gs://…), for {hosts} hosts that may '
        f'be lost share it, got {workdir!r}'
      )


def pairs(option: str, given: Sequence[str]) -> dict[str, str]:
  """`NAME=VALUE` arguments as a dictionary.

  >>> pairs('--env', ['A=b c', 'D='])
  {'A': 'b c', 'D': ''}
  """
  for each in given:
    if '=' not in each:
      raise LaunchError(f'{option} must be NAME=VALUE, got {each!r}')
  return {
    name: value for name, _, value in (each.partition('=') for each in given)
  }


def render(template: str, **values: object) -> str:
  """A script from `launch/templates`; every value is quoted there by `sh`."""
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
