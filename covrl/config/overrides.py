# SPDX-License-Identifier: Apache-2.0
"""Overrides of config fields from the command line."""

import copy
import difflib
from collections.abc import Iterator, Sequence

from covrl.config.errors import ConfigError
from covrl.config.fields import Config
from covrl.config.schema import Field, fields_by_name, sections

PREFIX = '--config.'

_RENAMED = {
  'data.layout': 'data.schema',
  'rewards.judge': 'rewards.sandbox',
  'rewards.judge_url': 'rewards.sandbox_url',
}
"""Fields of earlier versions whose new names are not similar."""


def apply(config: Config, overrides: Sequence[str]) -> Config:
  """Returns a copy of a configuration with fields overridden.

  Args:
    config: the configuration; it is not changed.
    overrides: `--config.FIELD=VALUE`, or `--config.FIELD` and `VALUE` as two
      arguments; `--config.FIELD` alone sets a bool to true.

  Raises:
    ConfigError: a field does not exist (the message names the nearest), or a
      value is of another type.

  >>> apply(Config(), ['--config.train.iterations=3', '--config.seed', '7']).seed
  7
  """
  config = copy.deepcopy(config)
  for name, text in _pairs(overrides):
    field = _find(name)
    value = _parse(field, text)
    section, _, leaf = name.rpartition('.')
    setattr(getattr(config, section) if section else config, leaf, value)
  return config


def names(overrides: Sequence[str]) -> tuple[str, ...]:
  """Returns the dotted names of the fields that are overridden.

  >>> names(['--config.train.iterations=3', '--config.seed', '7'])
  ('train.iterations', 'seed')
  """
  return tuple(dict.fromkeys(name for name, _ in _pairs(overrides)))


def not_an_override(argument: str) -> ConfigError:
  """Returns the error of an argument that does not begin with `--config.`.

  >>> str(not_an_override('--seed=1')).partition('; ')[2]
  'did you mean --config.seed?'
  """
  name = argument.removeprefix('--').partition('=')[0]
  return ConfigError(
    f'overrides must look like {PREFIX}FIELD=VALUE, got {argument!r}'
    f'{_advice(name)}'
  )


def _pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields field names and texts, `None` for a field without a value."""
  rest = list(overrides)
  while rest:
    argument = rest.pop(0)
    option, equals, text = argument.partition('=')
    if not option.startswith(PREFIX):
      raise not_an_override(argument)
    if equals:
      yield option.removeprefix(PREFIX), text
    elif rest and not rest[0].startswith('--'):
      yield option.removeprefix(PREFIX), rest.pop(0)
    else:
      yield option.removeprefix(PREFIX), None


def _find(name: str) -> Field:
  """Returns a field by its dotted name."""
  if name in fields_by_name():
    return fields_by_name()[name]
  if name in _groups():
    raise ConfigError(_description(name))
  raise ConfigError(
    f'overrides must name config fields, got {name!r}{_advice(name)}'
  )


def _advice(name: str) -> str:
  """Returns the end of an error: fields or groups that an unknown name may mean."""
  if name in fields_by_name():
    return f'; did you mean {PREFIX}{name}?'
  if name in _RENAMED:
    return f'; it is now {_RENAMED[name]}'
  name = name.removeprefix(PREFIX.removeprefix('--')).strip('.')
  if name in _groups():
    return f'; {_description(name)}'
  if nearest_fields := _nearest(name):
    return f'; did you mean {" or ".join(nearest_fields)}?'
  group = name.rpartition('.')[0]
  near_groups = difflib.get_close_matches(
    group or name, _groups(), n=1, cutoff=0.7
  )
  if not near_groups:
    return ''
  return f'; {_description(near_groups[0])}'


def _groups() -> dict[str, str]:
  """Returns the names of fields by group, each as one text."""
  return {
    section.name: ', '.join(field.name for field in section.fields)
    for section in sections()
    if section.name
  }


def _description(group: str) -> str:
  """Returns a sentence that lists the fields of a group."""
  return f'{group} is a group of config fields: {_groups()[group]}'


def _nearest(name: str) -> list[str]:
  """Returns the fields with the most similar last part of their name.

  There may be up to four if the name's group is unlike those of all of them.

  >>> _nearest('entropy.coeficient'), _nearest('xyzzy')
  (['entropy.coefficient'], [])
  >>> _nearest('every'), _nearest('train.low')
  (['evaluate.every', 'checkpoint.every'], ['train.clip_low'])
  """
  group, _, leaf = name.rpartition('.')

  def similarity(known: str) -> tuple[float, float]:
    """Returns the similarities of the last part and of the group of a name."""
    known_group, _, known_leaf = known.rpartition('.')
    is_part = f'_{leaf}_' in f'_{known_leaf}_'
    similarity_of_leaves = _similarity(leaf, known_leaf)
    return (
      max(similarity_of_leaves, 0.7) if is_part else similarity_of_leaves,
      _similarity(group, known_group),
    )

  similarities = {
    known: values
    for known in fields_by_name()
    if (values := similarity(known))[0] > 0.6
  }
  if not similarities:
    return []
  best = max(
    similarities,
    key=lambda known: similarities[known][0] + 0.3 * similarities[known][1],
  )
  of_leaf, of_group = similarities[best]
  if of_group > 0.6:
    return [best]
  equally_similar = [
    known for known in similarities if similarities[known][0] == of_leaf
  ]
  return equally_similar[:4]


def _similarity(name: str, known: str) -> float:
  """Returns the similarity of two names, from 0 to 1."""
  return difflib.SequenceMatcher(None, name, known).ratio()


def _parse(field: Field, text: str | None) -> bool | int | float | str:
  """Returns the value of a field from the text of an override."""
  if text is None:
    if field.kind is bool:
      return True
    raise ConfigError(
      f'{PREFIX}{field.name} must have a value, {field.type_name}, got none'
    )
  try:
    return field.parse(text)
  except ValueError:
    raise ConfigError(
      f'{PREFIX}{field.name} must be {field.type_name}, got {text[:100]!r}'
    ) from None
