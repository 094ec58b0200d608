# SPDX-License-Identifier: Apache-2.0
"""A finished or interrupted run, opened to be asked and measured."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import sys
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import Config, EvaluateConfig, Recipe, load
from covrl.data import (
  ListSource,
  Problem,
  PromptStream,
  Tokenizer,
  check_tokenizer,
)
from covrl.evaluation.evaluator import Evaluator
from covrl.evaluation.results import Evaluation
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.pretrained import load_params, load_pretrained
from covrl.rewards import Scoring
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.score import decode
from covrl.run.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.tasks.task import Task
from covrl.tasks.text import text_task
from covrl.tasks.verify import check_references
from covrl.train.init import base_params, policy_of
from covrl.train.rollout_batch import EVALUATE_STREAM, INIT_STREAM
from covrl.train.state_sharding import rollout_mesh
from covrl.train.warm_start import lender


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedRun:
  """A run's policy at its latest checkpoint.

  Attributes:
    config: of what made it.
    iteration: after which it was saved; `None` of a pretrained model.
    task: its problems.
    policy: the model.
    params: its parameters.
    mesh: where they are.
  """

  config: Config
  iteration: int | None
  task: Task
  policy: Policy
  params: PyTree
  mesh: Mesh

  def evaluate(
    self,
    *,
    samples: int | None = None,
    temperature: float | None = None,
    problems: int | None = None,
  ) -> Evaluation:
    """Measures the policy, on held-out problems and evaluation sets.

    Args:
      samples: k; as the run, or the set, has it if absent.
      temperature: of the samples; likewise.
      problems: how many of each set, at most; likewise.
    """
    config = self.config
    sets = [self.task.held_out, *(s.problems for s in self.task.suites)]
    most = max(map(len, sets))
    if problems is not None and not 1 <= problems <= most:
      raise ValueError(f'--problems must lie in [1, {most}], got {problems}')
    for flag, value in (('samples', samples), ('temperature', temperature)):
      if value is not None and value < 0:
        raise ValueError(f'--{flag} must be at least 0, got {value:g}')
    suites = self.task.evaluation(
      _changed(config.evaluate, samples, temperature, problems)
    )
    root = jax.random.key(config.seed)
    with Scoring(
      self.task.rewards,
      sources=self.task.sources,
      workers=config.rewards.workers,
      timeout=config.rewards.timeout,
    ) as scoring:
      for note in check_references(
        self.task, scoring, programs=config.data.checked_programs
      ):
        print(f'warning: {note}', file=sys.stderr)
      evaluator = Evaluator(
        self._engine(),
        scoring,
        self.task.tokenizer,
        suites,
        max_prompt_length=config.rollout.max_prompt_length,
        prompts_at_once=config.rollout.prompts_per_iteration,
        group_size=config.rollout.responses_per_prompt,
        key=jax.random.fold_in(root, EVALUATE_STREAM),
        reader=self.task.reader,
      )
      return evaluator.run(self.params)

  def sample(
    self,
    prompt: str,
    *,
    count: int,
    temperature: float,
    top_p: float,
    top_k: int,
    seed: int,
  ) -> list[tuple[str, float]]:
    """Responses to one prompt, each with its log-probability in nats."""
    return ask(
      self._engine(),
      self.params,
      self.task.tokenizer,
      prompt,
      max_prompt_length=self.config.rollout.max_prompt_length,
      count=count,
      sampling=Sampling.make(temperature, top_p, top_k),
      seed=seed,
    )

  def _engine(self) -> SamplingEngine:
    return SamplingEngine(
      self.policy,
      rollout_mesh(self.mesh, self.config.rollout.tensor),
      end_ids=self.task.tokenizer.end_ids,
      pad_id=self.task.tokenizer.pad_id,
      max_response_length=self.config.rollout.max_response_length,
    )


def _changed(
  config: EvaluateConfig,
  samples: int | None,
  temperature: float | None,
  problems: int | None,
) -> EvaluateConfig:
  """The configuration with what was given instead, of every set."""
  given = {
    'samples': samples,
    'suite_samples': samples,
    'temperature': temperature,
    'suite_temperature': temperature,
    'problems': problems,
    'suite_problems': problems,
  }
  return dataclasses.replace(
    config, **{name: v for name, v in given.items() if v is not None}
  )


def ask(
  engine: SamplingEngine,
  params: PyTree,
  tokenizer: Tokenizer,
  prompt: str,
  *,
  max_prompt_length: int,
  count: int,
  sampling: Sampling,
  seed: int,
) -> list[tuple[str, float]]:
  """Samples responses to one prompt.

  Args:
    engine: of the policy.
    params: its parameters.
    tokenizer: its alphabet.
    prompt: a text, as the policy knows prompts.
    max_prompt_length: tokens; a longer prompt is refused.
    count: how many responses.
    sampling: temperature and truncation.
    seed: of the samples.

  Returns:
    Each response with its log-probability in nats.

  Raises:
    ValueError: none is asked for, or the prompt is too long.
  """
  if count < 1:
    raise ValueError(f'--count must be at least 1, got {count}')
  stream = PromptStream(
    ListSource([Problem(prompt=prompt, reference=None, source='prompt')]),
    seed=0,
    prompts_per_draw=1,
    tokenizer=tokenizer,
    max_prompt_length=max_prompt_length,
    shuffle=False,
    prefetch=0,
  )
  batch = next(stream)
  samples = jax.device_get(
    engine.sample(
      params,
      batch.tokens,
      batch.mask,
      group_size=count,
      key=jax.random.key(seed),
      sequence_ids=np.arange(count, dtype=np.int32),
      sampling=sampling,
    )
  )
  texts = decode(tokenizer, samples)
  return list(
    zip(texts, samples.sampler_logprobs.sum(axis=1).tolist(), strict=True)
  )


@dataclasses.dataclass(frozen=True)
class Sets:
  """Evaluation sets to measure by, instead of what a run has of its own.

  Attributes:
    names: as `load_suites` has them.
    directory: where they are; where the run says unless given.
  """

  names: str
  directory: str | None = None


@contextlib.contextmanager
def open_run(workdir: str, sets: Sets | None = None) -> Iterator[SavedRun]:
  """Opens a run directory.

  Args:
    workdir: of the run.
    sets: what it will be measured by.

  Raises:
    ConfigError: if it is none.
    CheckpointError: if it has no usable checkpoint.
    ValueError: if its task is not of text, and there are sets.
  """
  directory = RunDirectory(workdir)
  recipe = directory.recipe()
  saved = CheckpointStore(directory.checkpoints, keep=1).latest()
  if saved is None:
    raise CheckpointError(f'{workdir} has no finished checkpoint yet')
  mesh = sharding.make_mesh(dataclasses.asdict(recipe.config.mesh))
  config, task, policy = _task_and_policy(recipe, sets)
  params = _params_of(directory, recipe.config, saved, task, policy, mesh)
  yield SavedRun(
    config=config,
    iteration=saved.notes['iteration'],
    task=task,
    policy=policy,
    params=params,
    mesh=mesh,
  )


@contextlib.contextmanager
def open_pretrained(
  directory: str, recipe_file: str, sets: Sets | None = None
) -> Iterator[SavedRun]:
  """Opens a pretrained model as what a recipe would begin with.

  Args:
    directory: of the model.
    recipe_file: has the task to measure it by.
    sets: what it will be measured by.

  Raises:
    ConfigError: if there is no such recipe.
    ValueError: if the directory is no pretrained model's, or its shape or
      tokenizer is not the recipe's, or as `open_run`.
  """
  # Adapters are the directory's, or there are none.
  overrides = [f'--config.pretrained={directory}', '--config.lora.rank=0']
  recipe = load(recipe_file, overrides)
  mesh = sharding.make_mesh(dataclasses.asdict(recipe.config.mesh))
  config, task, policy = _task_and_policy(recipe, sets)
  yield SavedRun(
    config=config,
    iteration=None,
    task=task,
    policy=policy,
    params=load_params(directory, policy, mesh),
    mesh=mesh,
  )


@contextlib.contextmanager
def open_model(
  directory: str, sets: Sets, *, lengths: tuple[int, int], prompts_at_once: int
) -> Iterator[SavedRun]:
  """Opens a pretrained model on its own, to measure it by evaluation sets.

  Args:
    directory: of the model.
    sets: what it will be measured by; questions are put by the model's chat
      template.
    lengths: of prompts and responses, at most, in tokens.
    prompts_at_once: problems decoded together.

  Raises:
    ValueError: if the directory is no pretrained model's, or a set is not
      right.
  """
  config = _measured(Config(pretrained=directory), sets)
  config.rollout.max_prompt_length, config.rollout.max_response_length = lengths
  config.rollout.prompts_per_iteration = prompts_at_once
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
  task = text_task(config)
  policy, params = load_pretrained(directory, mesh)
  check_tokenizer(task.tokenizer, policy.config.vocab_size)
  yield SavedRun(
    config=config,
    iteration=None,
    task=task,
    policy=policy,
    params=params,
    mesh=mesh,
  )


def _measured(config: Config, sets: Sets | None) -> Config:
  """The configuration of a task that is there to be measured by sets."""
  if sets is None:
    return config
  config = copy.deepcopy(config)
  config.evaluate.suites = sets.names
  if sets.directory is not None:
    config.evaluate.suite_directory = sets.directory
  config.data.train = ''
  return config


def _task_and_policy(
  recipe: Recipe, sets: Sets | None
) -> tuple[Config, Task, Policy]:
  """What a recipe trains, and on what."""
  config = _measured(recipe.config, sets)
  task = recipe.module.make_task(config)
  if sets is not None and not task.suites:
    raise ValueError(
      f'--suite needs a task of text (covrl.train.text_task), that of'
      f' {recipe.name} is none'
    )
  return config, task, policy_of(recipe, task)


def _params_of(
  directory: RunDirectory,
  config: Config,
  saved: Checkpoint,
  task: Task,
  policy: Policy,
  mesh: Mesh,
) -> PyTree:
  """All parameters of a run at a checkpoint, which may have adapters only."""
  like, rest = policy.split(policy.abstract_params(mesh))
  trainable = saved.restore_part('state.trainable', like)
  if not rest:
    return trainable
  own = CheckpointStore(directory.path / 'warm_start', keep=1)
  finished = lender(config, task) or own.latest()
  key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
  base = base_params(config, policy, mesh, key, finished)
  return policy.join(trainable, {'base': base})
