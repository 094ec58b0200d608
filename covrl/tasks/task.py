# SPDX-License-Identifier: Apache-2.0
"""A task: problems, rewards and tokenizer."""

from __future__ import annotations

import dataclasses
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import NoneType
from typing import TypeAlias

from covrl.config import (
  Config,
  ConfigError,
  CountdownConfig,
  EvaluateConfig,
  MazeConfig,
  Recipe,
)
from covrl.data import (
  ConcatenatedSource,
  FileSource,
  ListSource,
  Problem,
  ProblemSource,
  PromptFormat,
  SubsetSource,
  Suite,
  Tokenizer,
  check_suite_names,
)
from covrl.rewards import Overlong, Reward, RewardPart

AnswerExtractor: TypeAlias = Callable[
  [Problem], Callable[[str], str | None] | None
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """Problems, the rewards of responses, and the tokenizer.

  Attributes:
    tokenizer: the policy's tokenizer.
    train: problems to sample responses to.
    solved: problems with responses to imitate in the warm start; `None` without
      any.
    held_out: problems for evaluation, in neither `train` nor `solved`.
    rewards: the parts of a response's reward; see `covrl.rewards`.
    suites: evaluation suites, besides `held_out`.
    answer_extractor: returns for a problem a function that extracts a
      response's final answer, for majority votes; `None` if the problem has no
      short answer. Two answers are equal if the rewards grade a response with one
      of them as correct where the other is the reference.
    reference_response: returns a correct response to a problem, `None` if
      unknown.
    checked_sources: problems whose reference responses are graded before a run,
      to find wrong references.
    notes: remarks on the problems, one sentence each.
    description: the problems and the reward, for readers of the report; empty for
      none.
    prompt_format: the format of all prompts, without which a run is neither resumed
      nor opened; `None` if the problems have their prompts as they are.
  """

  tokenizer: Tokenizer
  train: ProblemSource
  solved: ProblemSource | None
  held_out: Sequence[Problem]
  rewards: Sequence[RewardPart]
  suites: Sequence[Suite] = ()
  answer_extractor: AnswerExtractor = lambda problem: None
  reference_response: Callable[[Problem], str | None] = lambda p: p.solution
  checked_sources: Sequence[ProblemSource] = ()
  notes: Sequence[str] = ()
  description: str = ''
  prompt_format: PromptFormat | None = None

  def __post_init__(self) -> None:
    """Checks the types of the fields, and the names of the suites.

    Raises:
      ValueError: a field is of another type, or two suites have the same name.
    """
    for name, is_valid, requirement in (
      ('tokenizer', _has_type(Tokenizer), 'a Tokenizer'),
      (
        'train',
        _has_type(ProblemSource),
        'a ProblemSource, such as ListSource',
      ),
      ('solved', _has_type(ProblemSource, NoneType), 'a ProblemSource or None'),
      ('held_out', _is_sequence_of(Problem), 'a sequence of Problem'),
      ('rewards', _is_sequence_of(Reward, Overlong), 'a sequence of Reward'),
      ('suites', _is_sequence_of(Suite), 'a sequence of Suite'),
      ('answer_extractor', callable, 'a function of a problem'),
      ('reference_response', callable, 'a function of a problem'),
      (
        'checked_sources',
        _is_sequence_of(ProblemSource),
        'a sequence of ProblemSource',
      ),
      ('notes', _is_sequence_of(str), 'a sequence of texts'),
      ('description', _has_type(str), 'a text'),
      (
        'prompt_format',
        _has_type(PromptFormat, NoneType),
        'a PromptFormat or None',
      ),
    ):
      value = getattr(self, name)
      if not is_valid(value):
        shown = reprlib.repr(value)
        raise ConfigError(
          f"the task's {name} must be {requirement}, got {shown}"
        )
    _check_source('train', self.train)
    if self.solved is not None:
      _check_source('solved', self.solved)
    check_suite_names(self.suites)

  @property
  def sources(self) -> tuple[str, ...]:
    """Names of all data sources, including those of evaluation problems."""
    return _source_names(
      self.train.names, self.held_out, *(s.problems for s in self.suites)
    )

  def check_evaluation(self, config: EvaluateConfig) -> None:
    """Checks that the task has the number of held-out problems to evaluate.

    Raises:
      ConfigError: the task has held-out problems, but fewer.
    """
    count = len(self.held_out)
    if 0 < count < config.problems:
      raise ConfigError(
        f'evaluate.problems must be at most {count}, the held-out problems of the'
        f' task, got {config.problems}'
      )

  def evaluation_suites(self, config: EvaluateConfig) -> list[Suite]:
    """Returns the suites to evaluate; held-out problems come first, unnamed."""
    suites = [
      suite.with_overrides(
        problems=config.suite_problems or None,
        samples=None if config.suite_samples < 0 else config.suite_samples,
        temperature=None
        if config.suite_temperature < 0
        else config.suite_temperature,
      )
      for suite in self.suites
    ]
    if self.held_out:
      held_out = Suite(
        name='',
        problems=self.held_out[: config.problems],
        samples=config.samples,
        temperature=config.temperature,
      )
      suites.insert(0, held_out)
    return suites


def make_task(recipe: Recipe, config: Config | None = None) -> Task:
  """Returns a recipe's task.

  Args:
    recipe: the recipe.
    config: another configuration than the recipe's.

  Raises:
    ConfigError: the recipe's function returns something else.
  """
  task = recipe.task(recipe.config if config is None else config)
  if not isinstance(task, Task):
    raise ConfigError(
      f"the recipe's task must return a Task, got {type(task).__name__}"
    )
  notes = [*task.notes, *_evaluation_notes(task)]
  used = recipe.config if config is None else config
  if task.prompt_format is not None and not used.data.overlap_words:
    from covrl.tasks.trained_questions import trained_question_notes

    notes += trained_question_notes(
      used, used.evaluate.suites, used.evaluate.suite_directory
    )
  return dataclasses.replace(task, notes=tuple(notes))


def _evaluation_notes(task: Task) -> Iterator[str]:
  """Yields a sentence for each evaluation set with problems that are trained on.

  Another one is on held-out problems that repeat; suites have such notes already.
  """
  training_sets = [
    _problems_to_search(s, task) for s in (task.train, task.solved)
  ]
  training_prompts = {
    _words(problem) for problems in training_sets for problem in problems
  }
  for name, problems in (
    ('held-out problems', task.held_out),
    *((f'problems of {suite.name}', suite.problems) for suite in task.suites),
  ):
    count = sum(_words(problem) in training_prompts for problem in problems)
    if count:
      yield (
        f'warning: {count} of {len(problems)} {name} are trained on, too: their'
        ' results do not measure accuracy on new problems'
      )
  repeated = len(task.held_out) - len(set(map(_words, task.held_out)))
  if repeated:
    yield (
      f'warning: {repeated} of {len(task.held_out)} held-out problems repeat'
      ' another one:'
      ' each counts as a problem of its own, so that intervals are too narrow'
    )


def _problems_to_search(
  source: ProblemSource | None, task: Task
) -> Iterator[Problem]:
  """Yields the training problems that may be evaluated, too.

  Generated ones are not searched, which leave held-out problems out, nor those of
  files in a task of text, which are decontaminated.
  """
  if isinstance(source, ConcatenatedSource):
    for each in source.sources:
      yield from _problems_to_search(each, task)
  is_of_text = task.prompt_format is not None
  if isinstance(source, ListSource) or (
    isinstance(source, SubsetSource | FileSource) and not is_of_text
  ):
    yield from (source[index] for index in range(len(source)))


def _words(problem: Problem) -> str:
  """Returns a problem's prompt with single spaces."""
  return ' '.join(str(problem.prompt).split())


def _has_type(*types: type) -> Callable[[object], bool]:
  """Returns a function that checks the type of a value."""
  return lambda value: isinstance(value, types)


def _is_sequence_of(*types: type) -> Callable[[object], bool]:
  """Returns a function that checks for a sequence with items of some types."""
  return lambda value: (
    isinstance(value, Sequence)
    and not isinstance(value, str)
    and all(isinstance(each, types) for each in value)
  )


def _check_source(name: str, source: ProblemSource) -> None:
  """Refuses a source whose length or names cannot be used."""
  try:
    len(source)
  except (TypeError, ValueError, OverflowError) as error:
    raise ConfigError(
      f"the task's {name} must have a length of at least 0, got: {error}"
    ) from None
  names: object = source.names
  if not isinstance(names, list | tuple) or not _is_sequence_of(str)(names):
    raise ConfigError(
      f"the names of the task's {name} must be a tuple of texts, got {names!r}"
    )


def countdown_task(config: CountdownConfig) -> Task:
  """Countdown from reasoning-gym: reach a target using all given numbers."""
  from covrl.data import (
    CountdownSource,
    SolvedCountdownSource,
    countdown_tokenizer,
    held_out_countdown,
  )
  from covrl.rewards import COUNTDOWN_EXAMPLE, Reward, score_countdown

  return Task(
    tokenizer=countdown_tokenizer(config),
    train=CountdownSource(config),
    solved=SolvedCountdownSource(config),
    held_out=held_out_countdown(config),
    rewards=[
      Reward(name='countdown', score=score_countdown, example=COUNTDOWN_EXAMPLE)
    ],
    description=(
      'The prompt names numbers and a target. The response is an expression of all'
      ' numbers, each once, with + - * / and parentheses. The reward is 1 if its'
      ' value is the target, else 0.'
    ),
  )


def countdown_steps_task(config: CountdownConfig) -> Task:
  """Countdown in which a response writes every step with its result."""
  from covrl.data import (
    CountdownStepsSource,
    SolvedCountdownStepsSource,
    held_out_steps,
    steps_tokenizer,
  )
  from covrl.rewards import (
    COUNTDOWN_STEPS_EXAMPLE,
    Reward,
    score_countdown_steps,
  )

  return Task(
    tokenizer=steps_tokenizer(config),
    train=CountdownStepsSource(config),
    solved=SolvedCountdownStepsSource(config),
    held_out=held_out_steps(config),
    rewards=[
      Reward(
        name='countdown_steps',
        score=score_countdown_steps,
        example=COUNTDOWN_STEPS_EXAMPLE,
      )
    ],
    description=(
      'The prompt names numbers and a target. The response writes steps that take'
      ' two numbers each and put the result in their place. The reward is 1 if'
      ' every step is right and only the target is left in the end, else 0.'
    ),
  )


def maze_task(config: MazeConfig) -> Task:
  """Mazes: write a path from start to goal, cell by cell.

  The warm start imitates an explorer whose walks often do not reach the goal.
  """
  from covrl.data import (
    ExploredMazeSource,
    MazeSource,
    held_out_mazes,
    maze_tokenizer,
    solve_maze,
  )
  from covrl.data.generated.mazes import column_name
  from covrl.rewards import MAZE_EXAMPLE, Reward, score_maze

  return Task(
    tokenizer=maze_tokenizer(config),
    train=MazeSource(config),
    solved=ExploredMazeSource(config),
    held_out=held_out_mazes(config),
    rewards=[Reward(name='path', score=score_maze, example=MAZE_EXAMPLE)],
    reference_response=solve_maze,
    description=(
      f'A maze of {config.side} × {config.side} cells, columns a to'
      f' {column_name(config.side - 1)} and rows 1 to {config.side}. The prompt'
      ' names start, goal and the cells that are walls; the response writes a'
      ' path, cell by cell. The reward is 1 if every step leads to a free cell'
      ' beside, above or below the one before and the last cell is the goal, after'
      f' at most {config.max_steps} steps, else 0. The warm start imitates an'
      ' explorer that sees only the cells around it and often does not reach the'
      ' goal.'
    ),
  )


def _source_names(
  names: Iterable[str], *problem_groups: Iterable[Problem]
) -> tuple[str, ...]:
  """Given names and the source names of problems, each once."""
  others = (problem.source for group in problem_groups for problem in group)
  return tuple(dict.fromkeys((*names, *others)))
