# SPDX-License-Identifier: Apache-2.0
"""Records which fields of a configuration a function reads."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from covrl.config.fields import Config


@contextlib.contextmanager
def recorded_reads(
  config: Config, *, counts_copies: bool = True
) -> Iterator[set[str]]:
  """Context in which reads of a configuration's fields are recorded.

  The config objects stay the same ones; within the context their classes are
  subclasses that record reads.

  Args:
    config: the configuration.
    counts_copies: whether all fields of an object that is copied count as read.

  Yields:
    The dotted names of the fields that were read so far.

  >>> with recorded_reads(config := Config()) as read:
  ...   _ = config.train.clip_low, config.seed
  >>> sorted(read)
  ['seed', 'train.clip_low']
  """
  read_fields: set[str] = set()
  sections: list[tuple[Any, str]] = [(config, '')]
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if dataclasses.is_dataclass(value):
      sections.append((value, f'{field.name}.'))
  section_types = [type(section) for section, _ in sections]
  try:
    for section, prefix in sections:
      section.__class__ = _recording_subclass(
        type(section), section.__class__, prefix, read_fields, counts_copies
      )
    yield read_fields
  finally:
    for (section, _), section_type in zip(sections, section_types, strict=True):
      section.__class__ = section_type


def _recording_subclass(
  base: Any,
  original: type,
  prefix: str,
  read_fields: set[str],
  counts_copies: bool,
) -> type:
  """Returns a subclass whose instances add the fields that are read to a set.

  Args:
    base: the class to derive from; within another context it records reads, too.
    original: the class outside of all contexts.
    prefix: prefix of the fields' names.
    read_fields: receives the names.
    counts_copies: see `recorded_reads`.
  """
  leaf_fields = frozenset(
    field.name
    for field in dataclasses.fields(base)
    if not dataclasses.is_dataclass(field.default_factory)
  )

  def get(self: Any, name: str) -> Any:
    """Returns an attribute, and records it if it is a field."""
    if name == '__class__':
      return original
    if name in leaf_fields:
      read_fields.add(f'{prefix}{name}')
    return base.__getattribute__(self, name)

  def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
    """Pickles an instance of the original class."""
    fields_read_before = set(read_fields)
    make, _, *rest = object.__reduce_ex__(self, protocol)
    if not counts_copies:
      read_fields.intersection_update(fields_read_before)
    return make, (original,), *rest

  # Copied and pickled objects are of the original class.
  members = {'__getattribute__': get, '__reduce_ex__': reduce}
  return type(base.__name__, (base,), {'__slots__': (), **members})
