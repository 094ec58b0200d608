# SPDX-License-Identifier: Apache-2.0
"""Evaluation sets by name: where their files are, and how they are sampled."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

from etils import epath

from covrl import storage
from covrl.data.problems import Problem
from covrl.data.sources import FileSource

SUFFIXES = ('.jsonl', '.parquet', '.array_record')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """An evaluation set, and how its problems are answered.

  Attributes:
    name: as users call it.
    problems: all of them.
    samples: k, responses to each beside the likeliest one; 0 for none.
    temperature: of the k samples.
    layout: of its files' columns.
  """

  name: str
  problems: Sequence[Problem] = dataclasses.field(repr=False)
  samples: int = 0
  temperature: float = 1.0
  layout: str = ''

  def changed(
    self,
    *,
    problems: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
  ) -> Suite:
    """The same set with other numbers, where they are given.

    Args:
      problems: at most so many, the first ones.
      samples: k.
      temperature: of the samples.
    """
    return dataclasses.replace(
      self,
      problems=self.problems[:problems],
      samples=self.samples if samples is None else samples,
      temperature=self.temperature if temperature is None else temperature,
    )


@dataclasses.dataclass(frozen=True)
class Published:
  """What is known of a set.

  Attributes:
    title: as it is written.
    samples: how many responses to a problem are published figures' mean over;
      0 where they are of the likeliest response.
    temperature: of these samples.
  """

  title: str
  samples: int = 0
  temperature: float = 1.0


# Sampling as in Cui et al., arXiv:2505.22617, section 4: the small sets at
# temperature 0.6, the rest greedily. Their scripts do not say how many samples;
# 32 is what others take for sets of this size.
SUITES = {
  'math500': Published('MATH500'),
  'aime24': Published('AIME 2024', 32, 0.6),
  'aime25': Published('AIME 2025', 32, 0.6),
  'amc': Published('AMC', 32, 0.6),
  'omni_math': Published('OMNI-MATH'),
  'olympiadbench': Published('OlympiadBench'),
  'minerva': Published('Minerva'),
  'gsm8k': Published('GSM8K'),
}


def load_suites(names: str, directory: epath.PathLike) -> list[Suite]:
  """Reads evaluation sets; nothing is downloaded.

  Args:
    names: separated by commas: of the sets in `SUITES`, whose files are in the
      directory (`math500.jsonl`, or all files of a folder `math500`, those
      called test… if there are any), or files of one's own.
    directory: where they are.

  Returns:
    All problems of each, to be sampled as published; files of one's own
    greedily.

  Raises:
    ValueError: there is no such set (the nearest name is said), it has no
      files, or one of them is not right, see `FileSource`.
  """
  wanted = list(filter(None, (name.strip() for name in names.split(','))))
  return [
    _load(name, storage.path_of(directory)) for name in dict.fromkeys(wanted)
  ]


def _load(name: str, directory: epath.Path) -> Suite:
  published = SUITES.get(name, Published(name))
  if name in SUITES:
    files = _files_of(name, directory)
  elif name.endswith(SUFFIXES):
    files = [storage.path_of(name)]
    name = files[0].stem
  else:
    raise ValueError(_unknown(name))
  sources = [FileSource(file, name=name) for file in files]
  return Suite(
    name=name,
    problems=[s[index] for s in sources for index in range(len(s))],
    samples=published.samples,
    temperature=published.temperature,
    layout=', '.join(dict.fromkeys(source.layout.name for source in sources)),
  )


def _files_of(name: str, directory: epath.Path) -> list[epath.Path]:
  """The files of a set that is known by name."""
  single = [directory / f'{name}{suffix}' for suffix in SUFFIXES]
  files = [file for file in single if file.exists()]
  if files:
    return files[:1]
  folder = directory / name
  if folder.is_dir():
    inside = [*folder.glob('*'), *folder.glob('*/*')]
    files = sorted(file for file in inside if file.name.endswith(SUFFIXES))
    files = [file for file in files if file.name.startswith('test')] or files
  if not files:
    raise ValueError(
      f'The evaluation set {name} must be in {directory}, as {name}.jsonl,'
      f' .parquet or .array_record, or in a folder {name}, and is not; nothing'
      ' is downloaded.'
    )
  return files


def _unknown(name: str) -> str:
  near = difflib.get_close_matches(name, SUITES, n=1)
  hint = f'; did you mean {near[0]}?' if near else '.'
  return (
    f'An evaluation set must be one of {", ".join(SUITES)}, or a file'
    f' ({", ".join(SUFFIXES)}), got {name!r}{hint}'
  )
