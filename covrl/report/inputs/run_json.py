# SPDX-License-Identifier: Apache-2.0
"""Reads JSON files of a run directory, including damaged ones.

Nothing here raises because of a file's content: what cannot be read is left out
and counted by `Unreadable`, whose sentences are on the page.
"""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from covrl import storage
from covrl.config.bounds import MAX_MAGNITUDES
from covrl.storage.append_log import read_log

# Larger numbers come from damaged files, since float32 ends at 3.4e38. Squares and
# sums of numbers up to this are finite in float64; smaller ones are taken as 0.
_LARGEST_NUMBER = 1e100
_SMALLEST_NUMBER = 1e-100
# Largest iteration or step: updates are counted in int32.
_LARGEST_COUNT = MAX_MAGNITUDES[int]
# Levels of nested mappings in a configuration.
_MAX_DEPTH = 8


IMPOSSIBLE = 'impossible number'
"""Kind of part, see `Unreadable.set_count`: values that a metric cannot have."""

MISSING_SEED = 'seed'
"""Kind of part: the seed of a run's configuration."""

REPEATED = 'repeated line'
"""Kind of part: lines with the step of a later line."""

FOREIGN_FILE = 'foreign file'
"""Kind of part: a file whose name or content is not as covrl writes it."""

MISSING_UPDATE = 'missing update'
"""Kind of part: updates without a line, though a later one has its own."""


class Unreadable:
  """Counts of the unreadable parts of a run's files.

  >>> unreadable = Unreadable()
  >>> unreadable.set_count('metrics.jsonl', 'line', 2)
  >>> unreadable.sentences()
  ['2 unreadable lines of metrics.jsonl were skipped.']
  """

  def __init__(self) -> None:
    self._counts: dict[tuple[str, str], int] = {}

  def set_count(self, file: str, part: str, count: int = 1) -> None:
    """Sets the number of unreadable parts of a file; `''` is the whole file.

    Args:
      file: name of the file within the run directory.
      part: kind of the parts, in the singular, such as `'line'`.
      count: number of these parts.
    """
    if count:
      self._counts[file, part] = count

  def sentences(self) -> list[str]:
    """One sentence per file and kind of part."""
    return [
      _sentence(file, part, count)
      for (file, part), count in self._counts.items()
    ]


def _sentence(file: str, part: str, count: int) -> str:
  """Sentence about the parts of a file that were skipped."""
  if not part:
    return f'{file} is unreadable and was skipped.'
  was, ending = ('was', '') if count == 1 else ('were', 's')
  if part == REPEATED:
    return (
      f'{count:,} line{ending} of {file} {was} skipped, as later ones have the'
      ' same step: it may hold the metrics of several runs.'
    )
  if part == FOREIGN_FILE:
    return (
      f'{file} was skipped: it is not a file that covrl writes, but perhaps a copy'
      ' of one.'
    )
  if part == MISSING_UPDATE:
    return (
      f'{count:,} update{ending} {was} not found in {file}, which has a later one:'
      ' numbers of the start and of the whole run are of the others.'
    )
  if part == IMPOSSIBLE:
    return (
      f'{count:,} impossible number{ending} of {file} {was} skipped, such as'
      ' entropies below 0 and shares above 1.'
    )
  if part == MISSING_SEED:
    return f'{file} has no seed: the run is compared as one of seed 0.'
  return f'{count:,} unreadable {part}{ending} of {file} {was} skipped.'


def read_json(
  path: epath.Path, name: str, unreadable: Unreadable
) -> dict[str, Any]:
  """A JSON object from a file; empty if the file is missing or unreadable.

  Args:
    path: the file.
    name: its name within the run directory.
    unreadable: counts the file if it is unreadable.
  """
  text = _read_text(path)
  if text is None:
    if path.exists():
      unreadable.set_count(name, '')
    return {}
  content = _parse_object(text)
  if content is None:
    unreadable.set_count(name, '')
  return content or {}


def read_objects(
  path: epath.Path, name: str, unreadable: Unreadable
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields line numbers and JSON objects, and counts other lines.

  Args:
    path: a file of JSON objects, one per line; in a bucket, its numbered
      parts are read, see `covrl.storage.append_log`.
    name: its name within the run directory.
    unreadable: counts the lines that are not JSON objects.
  """
  text = _read_text(path)
  if text is None and path.exists():
    unreadable.set_count(name, '')
  failures = 0
  # A JSON text may hold the other characters that end lines in Python.
  for number, line in enumerate((text or '').split('\n')):
    if not line.strip():
      continue
    content = _parse_object(line)
    if content is None:
      failures += 1
      unreadable.set_count(name, 'line', failures)
    else:
      yield number, content


def finite_number(value: Any) -> float | None:
  """The value as a float; `None` unless it is a number of at most 10¹⁰⁰ in size.

  >>> finite_number(2), finite_number('2'), finite_number(10**400)
  (2.0, None, None)
  """
  if isinstance(value, bool) or not isinstance(value, int | float):
    return None
  if not -_LARGEST_NUMBER <= value <= _LARGEST_NUMBER:  # Also for NaN.
    return None
  return 0.0 if abs(value) < _SMALLEST_NUMBER else float(value)


def is_count(value: Any) -> bool:
  """Whether a value can be an iteration, a step or a number of them."""
  number = finite_number(value)
  return (
    number is not None and 0 <= number <= _LARGEST_COUNT and number.is_integer()
  )


def is_marked_missing(value: Any) -> bool:
  """Whether a value stands for a missing one: null or NaN."""
  return value is None or (isinstance(value, float) and math.isnan(value))


def short_text(value: Any, limit: int = 200) -> str:
  """A value as text; the middle of a long text is cut, with a note.

  >>> short_text('abcdefgh', 4)
  'ab… 4 characters cut …gh'
  """
  text = value if isinstance(value, str) else _repr(value)
  if len(text) <= limit:
    return text
  half = limit // 2
  num_cut = len(text) - 2 * half
  return (
    f'{text[:half]}… {num_cut:,} characters cut …{text[len(text) - half :]}'
  )


def flatten_config(
  config: Mapping[str, object], prefix: str = '', depth: int = 0
) -> dict[str, str]:
  """Nested fields by dotted name, as text.

  A long text or list is cut, and followed by a digest: different values differ.

  >>> flatten_config({'seed': 1, 'train': {'iterations': 60}})
  {'seed': '1', 'train.iterations': '60'}
  """
  fields: dict[str, str] = {}
  for name, value in config.items():
    name = f'{prefix}{short_text(name, 80)}'
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
      fields |= flatten_config(value, f'{name}.', depth + 1)
    elif value is None:
      fields[name] = 'none'
    else:
      fields[name] = text = short_text(value)
      whole = value if isinstance(value, str) else _whole_repr(value)
      if text != whole:
        digest = hashlib.sha256(whole.encode(errors='surrogatepass'))
        fields[name] += f' (digest {digest.hexdigest()[:8]})'
  return fields


def _whole_repr(value: object) -> str:
  """Text of a value of JSON; cut if it is nested too deeply."""
  try:
    return repr(value)
  except RecursionError:
    return _repr(value)


def _repr(value: Any) -> str:
  """Text of a value that is not a string, of bounded length and depth."""
  if isinstance(value, Mapping | list):
    return reprlib.repr(value)
  return str(value)


def _read_text(path: epath.Path) -> str | None:
  """The text of a file or a log; `None` if it is missing or not a file.

  Invalid UTF-8 becomes escape sequences that are invalid in JSON.
  """
  try:
    if path.exists() and not storage.is_regular_file(path):
      return None
    return read_log(path, errors='backslashreplace')
  except OSError:
    return None


def _parse_object(text: str) -> dict[str, Any] | None:
  """A JSON object; `None` if the text is not one."""
  try:
    content = json.loads(text)
  except (ValueError, RecursionError):
    return None
  return content if isinstance(content, dict) else None
