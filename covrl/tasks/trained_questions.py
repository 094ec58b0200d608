# SPDX-License-Identifier: Apache-2.0
"""Notes on evaluation suites with questions that a run was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from covrl.config import Config, DataConfig
from covrl.data import FileSource, NgramIndex, Problem, load_suites
from covrl.data.filters import ProblemFilter
from covrl.pretrained import load_tokenizer
from covrl.tasks.text import problem_filter, prompt_format
from covrl.tasks.training_files import weighted_files


def trained_question_notes(
  config: Config, suites: str, suite_directory: str
) -> list[str]:
  """Returns a sentence for each suite with questions that a run was trained on.

  The training files are read as they are now. A question is compared as in
  decontamination, with as many consecutive words, or by default with 13 if the run
  was not decontaminated. Problems that the run left out are not counted.

  Args:
    config: the configuration of the run, with its own suites.
    suites: names of the suites to compare, see `covrl.data.load_suites`.
    suite_directory: directory of these suites.

  Returns:
    The sentences; one that says why the suites were not compared if a file cannot
    be read.
  """
  if not config.data.train or not suites:
    return []
  try:
    return [
      f'warning: {text}' for text in _compare(config, suites, suite_directory)
    ]
  except (ValueError, OSError, ImportError) as error:
    return [
      f'warning: whether the run was trained on questions of {suites} was not checked:'
      f' {error}'
    ]


def _compare(
  config: Config, suites: str, suite_directory: str
) -> Iterator[str]:
  """Yields a sentence for each suite with questions that are trained on."""
  data, evaluate = config.data, config.evaluate
  words = data.overlap_words or DataConfig().overlap_words
  problems_of_suite = {
    suite.name: suite.problems for suite in load_suites(suites, suite_directory)
  }
  trained = problem_filter(
    config,
    prompt_format(config),
    load_tokenizer(config.pretrained),
    load_suites(evaluate.suites, evaluate.suite_directory),
  )
  in_suites = _overlap(
    trained, NgramIndex(problems_of_suite, ngram_words=words)
  )
  in_suite = {
    name: _overlap(trained, NgramIndex({name: problems}, ngram_words=words))
    for name, problems in problems_of_suite.items()
  }
  # Location of the first problem with a question, by the question's key.
  found: dict[str, dict[str, str]] = {name: {} for name in in_suite}
  for problem in _training_problems(data):
    if in_suites.drop_reason(problem) and _is_kept(problem, trained):
      for name, overlap in in_suite.items():
        if overlap.drop_reason(problem):
          found[name].setdefault(problem.key, problem.location)
  for name, locations in found.items():
    if locations:
      first = next(iter(locations.values()))
      yield (
        f'{len(locations):,} of the problems that the run was trained on are also'
        f' in {name} (first: {first}): results on {name} do not measure'
        ' accuracy on new problems'
      )


def _training_problems(data: DataConfig) -> Iterator[Problem]:
  """Yields the problems of the training files, one file at a time."""
  for file, _ in weighted_files(data.train):
    yield from FileSource(file, schema=data.schema or None)


def _overlap(trained: ProblemFilter, ngrams: NgramIndex) -> ProblemFilter:
  """Returns a filter that drops the questions of evaluation sets alone."""
  return dataclasses.replace(
    trained, evaluation_ngrams=ngrams, min_pass_rate=0.0, max_pass_rate=1.0
  )


def _is_kept(problem: Problem, trained: ProblemFilter) -> bool:
  """Whether a problem is trained on, of which another copy may be."""
  if trained.drop_reason(problem) is not None:
    return False
  return trained.length_reason(trained.format_prompt(problem)) is None
