# SPDX-License-Identifier: Apache-2.0
"""Opens a run directory or a pretrained model to evaluate, sample or convert it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator

from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import (
  Config,
  EvaluateConfig,
  load,
  unknown_fields,
)
from covrl.data import check_tokenizer, prompt_ids
from covrl.evaluation.evaluator import OnProgress
from covrl.evaluation.results import Evaluation
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.pretrained import load_params, load_pretrained
from covrl.rewards.pool import Modules
from covrl.run.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.tasks.task import Task
from covrl.tasks.text import text_task
from covrl.train.rollout_batch import INIT_STREAM
from covrl.train.setup.build import (
  make_engine,
  make_evaluator,
  make_scoring,
  stream_key,
)
from covrl.train.setup.code import check_code, code_fingerprints
from covrl.train.setup.initial_policy import initial_base_params, make_policy
from covrl.train.setup.inputs import (
  check_edits,
  check_opened_run,
  check_recipe,
  warm_start_of,
  warn_of_newer,
)
from covrl.train.setup.model_lengths import model_lengths
from covrl.train.setup.sample import response_limit, sample_responses
from covrl.train.setup.shared_warm_start import shared_warm_start
from covrl.train.setup.suite_choice import (
  SuiteChoice,
  config_and_task,
  with_suites,
)
from covrl.train.sft import warm_start_store
from covrl.train.warnings.pretrained import pretrained_warnings

# Lengths of a model that is evaluated without a recipe, in tokens.
_PROMPT_LENGTH, _RESPONSE_LENGTH = 2048, 8192


def _print_message(text: str) -> None:
  print(text, file=sys.stderr)


def _warn(text: str) -> None:
  _print_message(f'covrl: warning: {text}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedRun:
  """A policy with its parameters, task and configuration.

  Attributes:
    config: the run's configuration.
    iteration: index of the iteration that the checkpoint precedes; `None` for a
      pretrained model.
    task: problems, rewards and tokenizer.
    policy: the model.
    params: all parameters of the policy.
    mesh: the mesh of the parameters.
    modules: see `Recipe.modules`.
  """

  config: Config
  iteration: int | None
  task: Task
  policy: Policy
  params: PyTree
  mesh: Mesh
  modules: Modules = dataclasses.field(default_factory=dict)

  def evaluate(
    self,
    *,
    samples: int | None = None,
    temperature: float | None = None,
    problems: int | None = None,
    on_progress: OnProgress | None = None,
    warn: Callable[[str], object] = _warn,
  ) -> Evaluation:
    """Evaluates the policy on held-out problems and evaluation suites.

    Args:
      samples: responses per problem; the configuration's number by default.
      temperature: sampling temperature; the configuration's by default.
      problems: problems per suite, at most; the configuration's by default.
      on_progress: called while responses are decoded.
      warn: receives warnings about reference answers.

    Raises:
      ValueError: an argument is out of range, or the task has no problems to
        evaluate on.
      EvaluationError: more responses than `rewards.max_failures` allows could
        not be scored.
    """
    suites = [self.task.held_out, *(s.problems for s in self.task.suites)]
    largest = max(map(len, suites))
    if not largest:
      raise ValueError('the recipe must have problems to evaluate on, got none')
    if problems is not None and not 1 <= problems <= largest:
      raise ValueError(f'--problems must lie in [1, {largest}], got {problems}')
    for flag, value in (('samples', samples), ('temperature', temperature)):
      if value is not None and not value >= 0:
        raise ValueError(f'--{flag} must be at least 0, got {value:g}')
      if value == math.inf:
        raise ValueError(f'--{flag} must be finite, got {value:g}')
    settings = _override(self.config.evaluate, samples, temperature, problems)
    with make_scoring(self.config, self.task, warn, self.modules) as scoring:
      scoring.warm_up()
      evaluator = make_evaluator(
        self.config,
        self.task,
        make_engine(self.config, self.policy, self.task.tokenizer, self.mesh),
        scoring,
        self.task.evaluation_suites(settings),
      )
      return evaluator.evaluate(self.params, on_progress)

  def sample(
    self,
    prompt: str,
    *,
    count: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
    min_p: float = 0.0,
    max_length: int | None = None,
  ) -> list[tuple[str, float]]:
    """Samples responses to one prompt; see `sample_responses`.

    Args:
      prompt: the text of the prompt.
      count: number of responses.
      temperature: sampling temperature.
      top_p: probability mass to sample from.
      top_k: number of tokens to sample from, 0 for all.
      seed: seed of the samples.
      min_p: least relative probability of a token, 0 for all.
      max_length: tokens of a response, at most; the configuration's number by
        default.

    Raises:
      ValueError: an argument is out of range, or the prompt is too long.
    """
    rollout = self.config.rollout
    if max_length is not None:
      limit = response_limit(
        self.config.pretrained, prompt, self.task.tokenizer, max_length
      )
      rollout = dataclasses.replace(rollout, max_response_length=limit)
    return sample_responses(
      self.policy,
      self.params,
      self.mesh,
      self.task.tokenizer,
      prompt,
      rollout=rollout,
      count=count,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      min_p=min_p,
      seed=seed,
    )


def _override(
  config: EvaluateConfig,
  samples: int | None,
  temperature: float | None,
  problems: int | None,
) -> EvaluateConfig:
  """Replaces the settings that are given, for held-out problems and suites."""
  fields = {
    'samples': samples,
    'suite_samples': samples,
    'temperature': temperature,
    'suite_temperature': temperature,
    'problems': problems,
    'suite_problems': problems,
  }
  return dataclasses.replace(
    config, **{name: v for name, v in fields.items() if v is not None}
  )


@contextlib.contextmanager
def open_run(
  workdir: str, suites: SuiteChoice | None = None, *, trust: bool = False
) -> Iterator[OpenedRun]:
  """Opens a run at its latest checkpoint.

  The copy of the recipe in the run directory is executed; a line on standard error
  names its files.

  Args:
    workdir: the run directory.
    suites: suites to evaluate, instead of the run's.
    trust: whether to execute a recipe that another user may have written.

  Raises:
    ConfigError: `workdir` is not a run directory or not trusted, its checkpoint is
      another run's, or an input of the policy has changed.
    CheckpointError: the run has no usable checkpoint.
    ValueError: suites are given, and the run's task has none.
  """
  directory = RunDirectory(workdir)
  recipe = directory.recipe(trust=trust)
  _print_message(
    f'covrl: executed the recipe in {directory.path / "recipe"}'
    f' ({", ".join(sorted(recipe.sources))})'
  )
  settings = directory.read_config()
  if unknown := unknown_fields(settings['config']):
    _warn(
      f'{workdir} was written by another version of covrl; the fields'
      f' {", ".join(unknown)} do not exist in this one and are ignored'
    )
  store = CheckpointStore(directory.checkpoints, keep=1)
  if store.latest() is None:
    raise CheckpointError(
      f'{workdir} must have a finished checkpoint, got none'
    )
  mesh = sharding.make_mesh(dataclasses.asdict(recipe.config.mesh))
  config, task = config_and_task(recipe, suites, is_trained=True)
  policy = make_policy(recipe, task.tokenizer)
  warm_start = None
  if policy.config.lora is not None:
    warm_start = shared_warm_start(recipe.config, task, policy)

  def read(saved: Checkpoint) -> PyTree:
    check_recipe(saved, settings['identity'])
    check_edits(saved, recipe, settings['config'], _warn)
    check_opened_run(config, task, policy, warm_start, saved, _warn)
    check_code(
      code_fingerprints(recipe, task),
      saved,
      _warn,
      'results may differ from those of the run',
    )
    return _saved_params(
      directory, recipe.config, saved, warm_start, policy, mesh
    )

  saved, params = store.read_latest(read)
  warn_of_newer(saved, _warn)
  yield OpenedRun(
    config=config,
    iteration=saved.metadata['iteration'],
    task=task,
    policy=policy,
    params=params,
    mesh=mesh,
    modules=recipe.modules,
  )


@contextlib.contextmanager
def open_pretrained(
  directory: str, recipe_spec: str, suites: SuiteChoice | None = None
) -> Iterator[OpenedRun]:
  """Opens a pretrained model in place of a recipe's initial policy.

  Args:
    directory: the pretrained model.
    recipe_spec: a recipe with the task to evaluate; see `covrl.config.load`.
    suites: suites to evaluate, instead of the recipe's.

  Raises:
    ConfigError: the recipe does not exist.
    ValueError: it is not a model of the recipe's shape, or the task has no suites.
  """
  # Adapters are part of the pretrained model or absent.
  overrides = [f'--config.pretrained={directory}', '--config.lora.rank=0']
  recipe = load(recipe_spec, overrides)
  mesh = sharding.make_mesh(dataclasses.asdict(recipe.config.mesh))
  config, task = config_and_task(recipe, suites, is_trained=False)
  policy = make_policy(recipe, task.tokenizer)
  for text in pretrained_warnings(directory, policy, task.tokenizer):
    _warn(text)
  yield OpenedRun(
    config=config,
    iteration=None,
    task=task,
    policy=policy,
    params=load_params(directory, policy, mesh),
    mesh=mesh,
    modules=recipe.modules,
  )


@contextlib.contextmanager
def open_model(
  directory: str,
  suites: SuiteChoice,
  *,
  lengths: tuple[int | None, int | None] = (None, None),
  prompts_per_batch: int,
  template_variables: str = '',
) -> Iterator[OpenedRun]:
  """Opens a pretrained model without a recipe, to evaluate it on suites.

  Prompts use the model's chat template.

  Args:
    directory: the pretrained model.
    suites: suites to evaluate.
    lengths: tokens of a prompt and of a response, at most; by default 2048 and
      8192, or less if the model has fewer positions.
    prompts_per_batch: problems that are decoded together.
    template_variables: variables of the chat template, see `DataConfig`.

  Raises:
    ValueError: the directory is not a pretrained model, the lengths exceed its
      positions, or a suite is invalid.
  """
  config = with_suites(Config(pretrained=directory), suites)
  rollout = config.rollout
  rollout.max_prompt_length, rollout.max_response_length = model_lengths(
    directory, lengths, (_PROMPT_LENGTH, _RESPONSE_LENGTH)
  )
  config.rollout.prompts_per_iteration = prompts_per_batch
  config.data.template_variables = template_variables
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
  task = text_task(config)
  # Prompts are padded to this length, and padding is computed like a prompt.
  rollout.max_prompt_length = min(
    rollout.max_prompt_length,
    max(
      len(prompt_ids(problem, task.tokenizer))
      for suite in task.suites
      for problem in suite.problems
    ),
  )
  policy, params = load_pretrained(directory, mesh)
  check_tokenizer(task.tokenizer, policy.config.vocab_size)
  yield OpenedRun(
    config=config,
    iteration=None,
    task=task,
    policy=policy,
    params=params,
    mesh=mesh,
  )


def _saved_params(
  directory: RunDirectory,
  config: Config,
  saved: Checkpoint,
  warm_start: Checkpoint | None,
  policy: Policy,
  mesh: Mesh,
) -> PyTree:
  """Restores all parameters of a run; its checkpoint may hold adapters only."""
  trainable_like, base_like = policy.split(policy.abstract_params(mesh))
  trainable = saved.restore_subtree('state.trainable', trainable_like)
  if not base_like:
    return trainable
  store = warm_start_store(directory)
  warm_start = warm_start or warm_start_of(saved, config, store)
  key = stream_key(config, INIT_STREAM)
  base = initial_base_params(config, policy, mesh, key, warm_start)
  return policy.join(trainable, {'base': base})
