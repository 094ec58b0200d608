# SPDX-License-Identifier: Apache-2.0
"""A finished or interrupted run, opened to be asked and measured."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl import sharding
from covrl.config import Recipe, load
from covrl.data import (
  ListSource,
  Problem,
  PromptStream,
  Tokenizer,
  check_tokenizer,
)
from covrl.models import Policy
from covrl.pretrained import load_params
from covrl.rewards import RewardPool
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.collect import decode
from covrl.train.checkpoint import CheckpointError, CheckpointStore
from covrl.train.evaluate import Evaluator
from covrl.train.iteration import EVALUATE_STREAM
from covrl.train.layout import rollout_mesh
from covrl.train.run_directory import RunDirectory
from covrl.train.task import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class SavedRun:
  """A run's policy at its latest checkpoint.

  Attributes:
    recipe: what made it.
    task: its problems.
    policy: the model.
    params: its parameters.
    mesh: where they are.
  """

  recipe: Recipe
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
  ) -> dict[str, float]:
    """Measures the policy; see `Evaluation.summary`.

    Args:
      samples: k; the run's own if absent.
      temperature: of the samples; the run's own if absent.
      problems: how many; the run's own number if absent.
    """
    config = self.recipe.config
    count = config.evaluate.problems if problems is None else problems
    if not 1 <= count <= len(self.task.held_out):
      raise ValueError(
        f'--problems must lie in [1, {len(self.task.held_out)}], got {count}'
      )
    root = jax.random.key(config.seed)
    with RewardPool(
      self.task.score,
      workers=config.rewards.workers,
      timeout=config.rewards.timeout,
      example=self.task.example,
    ) as pool:
      evaluator = Evaluator(
        self._engine(),
        pool,
        self.task.tokenizer,
        self.task.held_out[:count],
        samples=config.evaluate.samples if samples is None else samples,
        temperature=config.evaluate.temperature
        if temperature is None
        else temperature,
        max_prompt_length=config.rollout.max_prompt_length,
        prompts_at_once=config.rollout.prompts_per_iteration,
        key=jax.random.fold_in(root, EVALUATE_STREAM),
      )
      return evaluator.run(self.params).summary()

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
      max_prompt_length=self.recipe.config.rollout.max_prompt_length,
      count=count,
      sampling=Sampling.make(temperature, top_p, top_k),
      seed=seed,
    )

  def _engine(self) -> SamplingEngine:
    return SamplingEngine(
      self.policy,
      rollout_mesh(self.mesh, self.recipe.config.rollout.tensor),
      end_ids=self.task.tokenizer.end_ids,
      pad_id=self.task.tokenizer.pad_id,
      max_response_length=self.recipe.config.rollout.max_response_length,
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


@contextlib.contextmanager
def open_run(workdir: str) -> Iterator[SavedRun]:
  """Opens a run directory.

  Raises:
    ConfigError: if it is none.
    CheckpointError: if it has no usable checkpoint.
  """
  directory = RunDirectory(pathlib.Path(workdir))
  recipe = directory.recipe()
  config = recipe.config
  saved = CheckpointStore(directory.checkpoints, keep=1).latest()
  if saved is None:
    raise CheckpointError(f'{workdir} has no finished checkpoint yet')
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh))
  task, policy = _task_and_policy(recipe)
  params = saved.restore_part('state.trainable', policy.abstract_params(mesh))
  yield SavedRun(
    recipe=recipe, task=task, policy=policy, params=params, mesh=mesh
  )


@contextlib.contextmanager
def open_pretrained(directory: str, recipe_file: str) -> Iterator[SavedRun]:
  """Opens a pretrained model as what a recipe would begin with.

  Args:
    directory: of the model.
    recipe_file: has the task to measure it by.

  Raises:
    ConfigError: if there is no such recipe.
    ValueError: if the directory is no pretrained model's, or its shape or
      tokenizer is not the recipe's.
  """
  recipe = load(recipe_file, [f'--config.pretrained={directory}'])
  mesh = sharding.make_mesh(dataclasses.asdict(recipe.config.mesh))
  task, policy = _task_and_policy(recipe)
  params = load_params(directory, policy, mesh)
  yield SavedRun(
    recipe=recipe, task=task, policy=policy, params=params, mesh=mesh
  )


def _task_and_policy(recipe: Recipe) -> tuple[Task, Policy]:
  """What a recipe trains, and on what."""
  task = recipe.module.make_task(recipe.config)
  model = recipe.module.make_model(recipe.config, task.tokenizer.vocab_size)
  check_tokenizer(task.tokenizer, model.vocab_size)
  return task, Policy(model)
