# SPDX-License-Identifier: Apache-2.0
"""Evaluation suites in place of those of a run's configuration."""

from __future__ import annotations

import copy
import dataclasses

from covrl.config import Config, Recipe
from covrl.tasks.task import Task, make_task
from covrl.tasks.trained_questions import trained_question_notes


@dataclasses.dataclass(frozen=True)
class SuiteChoice:
  """Evaluation suites that replace those of a run's configuration.

  Attributes:
    names: names of the suites, separated by commas; see `covrl.data.load_suites`.
    directory: directory of the suites; the configuration's by default.
  """

  names: str
  directory: str | None = None


def with_suites(config: Config, suites: SuiteChoice | None) -> Config:
  """Returns a configuration that evaluates suites and has no training files."""
  if suites is None:
    return config
  config = copy.deepcopy(config)
  config.evaluate.suites = suites.names
  if suites.directory is not None:
    config.evaluate.suite_directory = suites.directory
  config.data.train = ''
  return config


def config_and_task(
  recipe: Recipe, suites: SuiteChoice | None, *, is_trained: bool
) -> tuple[Config, Task]:
  """Returns a recipe's configuration and task, with other suites if given.

  Args:
    recipe: the recipe.
    suites: suites that replace those of the recipe.
    is_trained: whether the policy was trained with the recipe; the task then has
      a note for each of these suites with questions that were trained on.

  Raises:
    ValueError: suites are given, and the task has none.
  """
  config = with_suites(recipe.config, suites)
  task = make_task(recipe, config)
  if suites is None:
    return config, task
  if not task.suites:
    raise ValueError(
      'the task must be a text_task with --suite, got another one in'
      f' {recipe.name}'
    )
  if is_trained:
    evaluate = config.evaluate
    notes = trained_question_notes(
      recipe.config, evaluate.suites, evaluate.suite_directory
    )
    task = dataclasses.replace(task, notes=(*task.notes, *notes))
  return config, task
