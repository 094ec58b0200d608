# SPDX-License-Identifier: Apache-2.0
"""Evaluation suites by name: their files, and how published results sample them."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import math
import reprlib
from collections.abc import Sequence

from etils import epath

from covrl import storage
from covrl.array_checks import concrete_number
from covrl.data.problems import Problem, check_unicode
from covrl.data.shards import check_shards
from covrl.data.sources import FileSource

# Suffixes of files of problems, in order of precedence.
SUFFIXES = ('.jsonl', '.parquet', '.array_record')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
  """An evaluation set and its sampling settings.

  Attributes:
    name: name of the set.
    problems: all problems.
    samples: k, the sampled responses per problem besides the greedy one; 0 for
      the greedy one alone.
    temperature: temperature of the k samples.
    schema: names of the schemas of its files, separated by commas.
    warnings: sentences on its files, see `FileSource`.

  Raises:
    TypeError: the problems are not a sequence of `Problem`, but a generator for
      example, or the temperature is not a number.
    ValueError: the name is not valid Unicode, the samples are not a whole number
      from 0, or the temperature is negative or not finite.
  """

  name: str
  problems: Sequence[Problem] = dataclasses.field(repr=False)
  samples: int = 0
  temperature: float = 1.0
  schema: str = ''
  warnings: Sequence[str] = ()

  def __post_init__(self) -> None:
    samples, temperature = self.samples, self.temperature
    check_unicode(self.name, 'the name of an evaluation set')
    problems: object = self.problems
    if not isinstance(problems, Sequence) or not all(
      isinstance(problem, Problem) for problem in problems
    ):
      raise TypeError(
        f'problems of the suite {self.name!r} must be a sequence of Problem, got'
        f' {reprlib.repr(problems)}'
      )
    concrete_number(
      temperature,
      f'temperature of the suite {self.name!r}',
      allow_schedule=False,
    )
    is_whole = isinstance(samples, int) and not isinstance(samples, bool)
    if not is_whole or samples < 0:
      raise ValueError(
        f'samples of the suite {self.name!r} must be a whole number from 0, got'
        f' {samples!r}'
      )
    if not 0 <= temperature < math.inf:
      raise ValueError(
        f'temperature of the suite {self.name!r} must be finite and at least 0,'
        f' got {temperature}'
      )

  def with_overrides(
    self,
    *,
    problems: int | None = None,
    samples: int | None = None,
    temperature: float | None = None,
  ) -> Suite:
    """The suite with other settings; `None` keeps a setting.

    Args:
      problems: maximum number of problems, at least 1; the first ones are kept.
      samples: k.
      temperature: temperature of the k samples.

    Raises:
      ValueError: a setting is out of range.
    """
    if problems is not None and problems < 1:
      raise ValueError(
        f'problems of the suite {self.name!r} must be at least 1, got {problems}'
      )
    return dataclasses.replace(
      self,
      problems=self.problems[:problems],
      samples=self.samples if samples is None else samples,
      temperature=self.temperature if temperature is None else temperature,
    )


@dataclasses.dataclass(frozen=True)
class SuiteInfo:
  """A known evaluation set, with the sampling settings of published results.

  Attributes:
    title: full name.
    samples: number of responses per problem that published results average
      over; 0 for greedy responses.
    temperature: temperature of these samples.
  """

  title: str
  samples: int = 0
  temperature: float = 1.0


# Sampling as in Cui et al., arXiv:2505.22617, section 4: the small sets at
# temperature 0.6, the rest greedily. Their scripts do not state the number of samples;
# 32 is common for sets of this size.
SUITES = {
  'math500': SuiteInfo('MATH500'),
  'aime24': SuiteInfo('AIME 2024', 32, 0.6),
  'aime25': SuiteInfo('AIME 2025', 32, 0.6),
  'amc': SuiteInfo('AMC', 32, 0.6),
  'omni_math': SuiteInfo('OMNI-MATH'),
  'olympiadbench': SuiteInfo('OlympiadBench'),
  'minerva': SuiteInfo('Minerva'),
  'gsm8k': SuiteInfo('GSM8K'),
}


def load_suites(names: str, directory: epath.PathLike) -> list[Suite]:
  """Reads evaluation suites from local files or a bucket; downloads nothing.

  Args:
    names: comma-separated names of `SUITES` or of files. The files of a suite
      are `math500.jsonl` in the directory, or all files in the folder
      `math500`; only those named test…, if there are any.
    directory: directory of the suites in `SUITES`.

  Returns:
    The suites, with the sampling settings of published results; files are
    sampled greedily.

  Raises:
    ValueError: a name is unknown (the message gives the nearest), a suite has
      no files or two with the same questions, or a file is invalid, see
      `FileSource`.
  """
  stripped_names = filter(None, (name.strip() for name in names.split(',')))
  return [
    _load(name, storage.as_path(directory))
    for name in dict.fromkeys(stripped_names)
  ]


def _load(name: str, directory: epath.Path) -> Suite:
  """Reads one suite, by its name in `SUITES` or its file."""
  info = SUITES.get(name, SuiteInfo(name))
  if name in SUITES:
    files = _suite_files(name, directory)
  elif name.endswith(SUFFIXES):
    files = [storage.as_path(name)]
    name = files[0].stem
  else:
    raise ValueError(_unknown_suite_message(name))
  sources = [FileSource(file, name=name) for file in files]
  _check_different(name, sources)
  return Suite(
    name=name,
    problems=[s[index] for s in sources for index in range(len(s))],
    samples=info.samples,
    temperature=info.temperature,
    schema=', '.join(dict.fromkeys(source.schema.name for source in sources)),
    warnings=[text for source in sources for text in source.warnings],
  )


def check_suite_names(suites: Sequence[Suite]) -> None:
  """Checks that names differ and can be names of files.

  Metrics and results of an evaluation are named after its suites.

  Raises:
    ValueError: a name is empty or has a slash, is that of other results of a run,
      or two suites have the same, be it in another case: some file systems do not
      distinguish them.
  """
  used_names: dict[str, str] = {}
  for suite in suites:
    name = suite.name
    if not name or '/' in name:
      raise ValueError(
        'the name of an evaluation set must be one of a file, without slashes, got'
        f' {name!r}'
      )
    if name == 'held_out' or name.startswith('iteration_'):
      raise ValueError(
        'an evaluation set must not be named held_out or iteration_…, as results'
        f' of runs are, got {name!r}'
      )
    other = used_names.get(name.casefold())
    if other == name:
      raise ValueError(
        f'evaluation sets must have different names, got two {name!r}; a set in a'
        ' file has the name of the file'
      )
    if other is not None:
      raise ValueError(
        'the names of evaluation sets must differ by more than case, got'
        f' {other!r} and {name!r}'
      )
    used_names[name.casefold()] = name


def _suite_files(name: str, directory: epath.Path) -> list[epath.Path]:
  """Files of a suite in `SUITES`."""
  single_files = [directory / f'{name}{suffix}' for suffix in SUFFIXES]
  files = [file for file in single_files if file.exists()]
  if files:
    return files[:1]
  folder = directory / name
  if folder.is_dir():
    folder_files = [*folder.glob('*'), *folder.glob('*/*')]
    files = sorted(
      file for file in folder_files if file.name.endswith(SUFFIXES)
    )
    files = [file for file in files if file.name.startswith('test')] or files
  if not files:
    raise ValueError(
      f'the evaluation set {name} must be in {directory}, as {name}.jsonl,'
      f' .parquet or .array_record, or in a folder {name}, got none; nothing is'
      ' downloaded'
    )
  check_shards(files)
  return files


def _check_different(name: str, sources: Sequence[FileSource]) -> None:
  """Refuses files with the same questions, each of which would count twice.

  Folders of published datasets may have several versions of a set, such as GSM8K's
  `main` and `socratic`, or one in several formats.
  """
  keys = [{problem.key for problem in source} for source in sources]
  for (first, first_keys), (second, second_keys) in itertools.combinations(
    zip(sources, keys, strict=True), 2
  ):
    if first_keys <= second_keys or second_keys <= first_keys:
      raise ValueError(
        f'the files of the evaluation set {name} must hold different questions,'
        f' got the same in {first.file} and {second.file}; one of them has to be'
        ' removed'
      )


def _unknown_suite_message(name: str) -> str:
  """Returns the error's message for an unknown name."""
  nearest = difflib.get_close_matches(name, SUITES, n=1)
  hint = f'; did you mean {nearest[0]}?' if nearest else ''
  return (
    f'an evaluation set must be one of {", ".join(SUITES)}, or a file'
    f' ({", ".join(SUFFIXES)}), got {name!r}{hint}'
  )
