# SPDX-License-Identifier: Apache-2.0
"""Help text of all config fields."""

import re
import textwrap
from typing import Any

from covrl.config.conversion import flatten
from covrl.config.fields import Config
from covrl.config.schema import Field, Section, sections

_WIDTH = 80


def field_help(config: Config) -> str:
  """Describes every config field: value, type and meaning, by section.

  Args:
    config: the configuration whose values are shown.

  >>> lines = field_help(Config()).splitlines()
  >>> lines[2].strip(), lines[3].strip()
  ('--config.seed=0', 'Seed of all random numbers. (an integer, in [0, 4294967295])')
  """
  values = flatten(config)
  blocks = [_section_help(section, values) for section in sections()]
  return '\n\n'.join(['config fields:', *blocks])


def _section_help(section: Section, values: dict[str, Any]) -> str:
  """Returns the help of a section: its title, and an entry per field."""
  fields = [_field_help(field, values[field.name]) for field in section.fields]
  heading = textwrap.fill(f'{section.name}: {section.title}', _WIDTH)
  return '\n'.join([heading, *fields] if section.name else fields)


def _field_help(field: Field, value: object) -> str:
  """Returns the help of a field: the override that sets it, and its meaning."""
  limits = f', {field.bounds}' if field.bounds else ''
  choices = ' | '.join(choice or "''" for choice in field.choices)
  meaning = field.meaning
  # Symbols such as γ and k mean something else in upper case.
  if len(re.split(r'\W', meaning, maxsplit=1)[0]) > 1:
    meaning = f'{meaning[0].upper()}{meaning[1:]}'
  text = textwrap.fill(
    f'{meaning} ({choices or field.type_name}{limits})',
    width=_WIDTH,
    initial_indent=' ' * 6,
    subsequent_indent=' ' * 6,
    break_long_words=False,
    break_on_hyphens=False,
  )
  return f'  --config.{field.name}={_override_text(value)}\n{text}'


def _override_text(value: object) -> str:
  """Returns the text of a value in an override.

  >>> _override_text(True), _override_text('a b'), _override_text(0.5)
  ('true', "'a b'", '0.5')
  """
  if isinstance(value, bool):
    return str(value).lower()
  if isinstance(value, str) and (not value or ' ' in value):
    return f"'{value}'"
  return str(value)
